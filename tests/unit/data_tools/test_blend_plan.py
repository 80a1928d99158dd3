"""A blend becomes exact samples, whatever its weighting and however it is nested."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_tools.blend_budget import Resolved, resolve
from data_tools.blend_plan import Blend, Entry, Source, split_samples
from data_tools.errors import RecipeError

LENGTH = 16
PLENTY = 10**9

sizes = st.integers(min_value=10**9, max_value=10**12)
weights = st.integers(min_value=1, max_value=50)


def entry(of: Source | Blend, **amounts: float | int) -> Entry:
    return Entry(of=of, place=f"blend.yaml:1: {of.name}", **amounts)  # type: ignore[arg-type]


def source(name: str, tokens: int = PLENTY) -> Source:
    return Source(name, tokens)


def samples(resolved: Resolved) -> dict[str, int]:
    return {allotment.source: allotment.samples for allotment in resolved.allotments}


def refusal(blend: Blend, tokens: int | None) -> str:
    with pytest.raises(RecipeError) as caught:
        resolve(blend, tokens=tokens, sequence_length=LENGTH)
    return str(caught.value)


def test_fixed_shares_divide_the_budget() -> None:
    blend = Blend("b", (entry(source("a"), share=0.75), entry(source("b"), share=0.25)))
    assert samples(resolve(blend, tokens=640, sequence_length=LENGTH)) == {"a": 30, "b": 10}


def test_a_budget_between_samples_is_rounded_and_said() -> None:
    resolved = resolve(Blend("b", (entry(source("a"), share=1),)), tokens=650, sequence_length=LENGTH)
    assert resolved.total_samples == 41
    assert resolved.notes == ("--tokens 650 is 40.62 samples of 16 tokens: rounded to 41 samples, 656 tokens.",)


def test_natural_weighting_is_a_union_by_size() -> None:
    blend = Blend("b", (entry(source("a", 3000)), entry(source("b", 1000))), "natural")
    assert samples(resolve(blend, tokens=640, sequence_length=LENGTH)) == {"a": 30, "b": 10}


def test_equal_weighting_ignores_size() -> None:
    blend = Blend("b", (entry(source("a", 3000)), entry(source("b", 1000))), "equal")
    assert samples(resolve(blend, tokens=640, sequence_length=LENGTH)) == {"a": 20, "b": 20}


def test_temperature_two_takes_square_roots_of_sizes() -> None:
    blend = Blend("b", (entry(source("a", 9_000_000)), entry(source("b", 1_000_000))), "temperature", 2)
    assert samples(resolve(blend, tokens=640, sequence_length=LENGTH)) == {"a": 30, "b": 10}


def test_temperature_one_is_natural() -> None:
    entries = (entry(source("a", 3001)), entry(source("b", 1000)))
    of_one = resolve(Blend("b", entries, "temperature", 1), tokens=1600, sequence_length=LENGTH)
    assert of_one == resolve(Blend("b", entries, "natural"), tokens=1600, sequence_length=LENGTH)


def test_tokens_and_epochs_come_first_and_shares_divide_the_rest() -> None:
    blend = Blend(
        "b",
        (
            entry(source("written"), tokens=160),
            entry(source("twice", 81), epochs=2),  # 162 tokens, 161 without the last label: 10 samples
            entry(source("most"), share=0.75),
            entry(source("rest"), share=0.25),
        ),
    )
    found = resolve(blend, tokens=640, sequence_length=LENGTH)
    assert samples(found) == {"written": 10, "twice": 10, "most": 15, "rest": 5}
    assert [allotment.max_epochs for allotment in found.allotments] == [1, 2, 1, 1]


def test_entries_that_all_say_their_tokens_need_no_budget() -> None:
    blend = Blend("b", (entry(source("a"), tokens=160), entry(source("b", 33), epochs=1)))
    assert samples(resolve(blend, tokens=None, sequence_length=LENGTH)) == {"a": 10, "b": 2}
    assert "take 192 of its 640 tokens; give one entry a share, or change the budget" in refusal(blend, 640)


def test_shares_alone_need_a_budget() -> None:
    assert refusal(Blend("b", (entry(source("a"), share=1),)), None).endswith("give --tokens N")


def test_written_tokens_that_leave_nothing_to_the_shares_are_refused() -> None:
    blend = Blend("b", (entry(source("a"), tokens=640), entry(source("b"), share=1)))
    assert refusal(blend, 640).endswith("take 640 of its 640 tokens; nothing is left for its shares")


def test_a_blend_has_no_epochs() -> None:
    inner = Blend("inner", (entry(source("a"), share=1),))
    assert "inner is a blend; epochs count passes over one source" in refusal(
        Blend("b", (entry(inner, epochs=1),)), None
    )


def test_the_smallest_max_epochs_on_the_way_down_counts() -> None:
    inner = Blend("inner", (entry(source("a"), share=0.5, max_epochs=9), entry(source("b"), share=0.5, max_epochs=2)))
    outer = Blend("outer", (entry(inner, share=0.5, max_epochs=4), entry(source("c"), share=0.5)))
    found = resolve(outer, tokens=640, sequence_length=LENGTH)
    assert [allotment.max_epochs for allotment in found.allotments] == [4, 2, 1]


def test_a_source_that_is_reached_twice_gives_the_sum_and_that_is_said() -> None:
    inner = Blend("inner", (entry(source("a"), share=0.5, max_epochs=3), entry(source("b"), share=0.5)))
    outer = Blend("outer", (entry(inner, share=0.5), entry(source("a"), share=0.5, max_epochs=2)))
    found = resolve(outer, tokens=640, sequence_length=LENGTH)
    assert samples(found) == {"a": 30, "b": 10}
    assert found.allotments[0].max_epochs == 2
    assert found.notes == ("source a is reached 2 times: shares summed.",)


def test_a_source_that_falls_short_is_refused_with_remedies_that_work() -> None:
    def blend(share: float = 0.25, max_epochs: float = 1) -> Blend:
        small = entry(source("b", 100), share=share, max_epochs=max_epochs)
        return Blend("blend", (entry(source("a"), share=1 - share), small))

    assert refusal(blend(), 640).splitlines() == [
        'blend.yaml:1: b: source "b" cannot supply its share.',
        "  needed   160 processed tokens (25.0 % of budget 640)",
        "  has      100 tokens x max_epochs 1 = 100",
        "  Lower --tokens to 416, lower the share to 0.1500 and raise others by as much, or raise max_epochs to 2.",
    ]
    assert samples(resolve(blend(), tokens=416, sequence_length=LENGTH))["b"] == 6
    assert "cannot supply" in refusal(blend(), 432)
    assert samples(resolve(blend(0.15), tokens=640, sequence_length=LENGTH))["b"] == 6
    assert samples(resolve(blend(max_epochs=2), tokens=640, sequence_length=LENGTH))["b"] == 10


def test_no_smaller_budget_is_offered_where_amounts_do_not_shrink_with_it() -> None:
    blend = Blend("blend", (entry(source("a", 100), tokens=160), entry(source("b"), share=1)))
    assert refusal(blend, 640).splitlines()[-1] == "  Raise max_epochs to 2."


def test_a_source_that_gives_less_than_a_sample_is_refused() -> None:
    blend = Blend("blend", (entry(source("a"), share=0.99), entry(source("b"), share=0.01)))
    assert "0.01 of 40 samples is less than one, so 'b' would not be read" in refusal(blend, 640)


@given(st.lists(weights, min_size=1, max_size=8), st.integers(min_value=1000, max_value=10**9))
def test_samples_sum_to_the_total_and_each_is_within_one_of_its_quota(parts: list[int], total: int) -> None:
    total = max(total, 2 * sum(parts))
    sources = tuple(entry(source(str(index), part * 10**12)) for index, part in enumerate(parts))
    found = resolve(Blend("b", sources, "natural"), tokens=total * LENGTH, sequence_length=LENGTH)
    assert sum(allotment.samples for allotment in found.allotments) == total
    for part, allotment in zip(parts, found.allotments, strict=True):
        assert abs(allotment.samples - Fraction(total * part, sum(parts))) < 1
    assert sum(allotment.share for allotment in found.allotments) == 1


@given(st.lists(st.lists(weights, min_size=1, max_size=4), min_size=1, max_size=4), weights, st.data())
def test_a_nested_blend_gives_what_its_flattened_form_gives(
    groups: list[list[int]], scale: int, data: st.DataObject
) -> None:
    outer = data.draw(st.lists(weights, min_size=len(groups), max_size=len(groups)))
    huge = 10**15
    nested = tuple(
        entry(
            Blend(f"g{g}", tuple(entry(source(f"{g}.{i}", part * huge)) for i, part in enumerate(parts)), "natural"),
            share=float(weight),
        )
        for g, (parts, weight) in enumerate(zip(groups, outer, strict=True))
    )
    flat_shares = [
        Fraction(weight * part, sum(outer) * sum(parts))
        for parts, weight in zip(groups, outer, strict=True)
        for part in parts
    ]
    total = 60_000 * scale
    found = resolve(Blend("nested", nested), tokens=total * LENGTH, sequence_length=LENGTH)
    assert [allotment.share for allotment in found.allotments] == flat_shares
    assert tuple(samples(found).values()) == split_samples(flat_shares, total)


@given(sizes, sizes, st.integers(min_value=1, max_value=8))
def test_a_higher_temperature_is_flatter(small: int, more: int, temperature: int) -> None:
    entries = (entry(source("small", small * 10**6)), entry(source("large", (small + more) * 10**6)))

    def share(degrees: float) -> Fraction:
        blend = Blend("b", entries, "temperature", degrees)
        return resolve(blend, tokens=10**15, sequence_length=1).allotments[0].share

    assert share(temperature) <= share(temperature + 1) <= Fraction(1, 2)


def test_the_largest_floor_on_the_way_down_counts_and_is_said_where_it_is_not_reached() -> None:
    inner = Blend("inner", (entry(source("a", 1_000), share=0.5, min_epochs=0.2), entry(source("b", 1_000), share=0.5)))
    outer = Blend("outer", (entry(inner, share=0.5, min_epochs=0.4), entry(source("c"), share=0.5)))
    resolved = [allotment.min_epochs for allotment in resolve(outer, tokens=1_600, sequence_length=16).allotments]
    assert resolved == [0.4, 0.4, 0.0]
    assert "wanted   1,000 tokens x min_epochs 0.4 = 400\n  Raise --tokens to 1,536, or lower min_epochs to 0.256." in (
        refusal(outer, 1_024)
    )
