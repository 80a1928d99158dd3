"""Which groups a step learns from, where dynamic sampling has drawn more than it needs."""

from __future__ import annotations

from megatron_ext.training.rollout_groups import Group, choose_groups


def group(is_flat: bool) -> Group:
    return Group(prompt=None, samples=(), penalties=(), advantages=(), is_flat=is_flat)  # type: ignore[arg-type]


def test_groups_that_teach_are_kept_in_their_order_and_flat_ones_replaced() -> None:
    found = [group(is_flat) for is_flat in (True, False, True, False, False)]
    kept, replaced = choose_groups(found, 3)
    assert [id(one) for one in kept] == [id(found[1]), id(found[3]), id(found[4])]
    assert [id(one) for one in replaced] == [id(found[0]), id(found[2])]


def test_the_first_flat_groups_stay_where_too_few_others_were_found() -> None:
    found = [group(is_flat) for is_flat in (True, False, True, True)]
    kept, replaced = choose_groups(found, 3)
    assert [id(one) for one in kept] == [id(found[0]), id(found[1]), id(found[2])]
    assert [id(one) for one in replaced] == [id(found[3])]


def test_of_more_than_enough_the_last_drawn_is_replaced() -> None:
    found = [group(False) for _ in range(3)]
    kept, replaced = choose_groups(found, 2)
    assert [id(one) for one in (*kept, *replaced)] == [id(one) for one in found]
