"""The interleaving of sources: Tijdeman's bound, for any plan."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_ext.datasets.interleave import Interleaver

plans = st.lists(st.integers(min_value=0, max_value=60), min_size=1, max_size=12).filter(sum)
properties = settings(deadline=None)  # a busy machine is no failure


def test_shares_of_five_two_and_one_are_dealt_by_earliest_deadline():
    # The j-th sample may come from slot floor(8 j / n) and must come before slot ceil(8 (j + 1) / n):
    # source 0 in [0,2) [1,4) [3,5) [4,7) [6,8), source 1 in [0,4) [4,8), source 2 in [0,8).
    assert Interleaver([5, 2, 1]).take(8) == [0, 0, 1, 0, 0, 1, 0, 2]


def test_a_source_without_samples_is_never_dealt():
    assert Interleaver([0, 3]).take(3) == [1, 1, 1]


@properties
@given(plans)
def test_at_every_prefix_each_count_is_off_its_ideal_by_less_than_one_sample(planned):
    total = sum(planned)
    counts = [0] * len(planned)
    for slot, source in enumerate(Interleaver(planned).take(total), start=1):
        counts[source] += 1
        for count, share in zip(counts, planned, strict=True):
            assert abs(count * total - share * slot) < total


@properties
@given(plans)
def test_the_whole_stage_gives_each_source_exactly_its_planned_samples(planned):
    interleaver = Interleaver(planned)
    interleaver.take(sum(planned))
    assert interleaver.counts == tuple(planned)


@properties
@given(plans, st.data())
def test_going_on_from_the_counts_deals_what_an_unbroken_stage_deals(planned, data):
    whole = Interleaver(planned).take(sum(planned))
    stop = data.draw(st.integers(min_value=0, max_value=len(whole)))
    first = Interleaver(planned)
    first.take(stop)
    assert Interleaver(planned, counts=first.counts).take(len(whole) - stop) == whole[stop:]


def test_counts_beyond_the_precision_of_a_double_are_dealt_exactly():
    interleaver = Interleaver([3 * 10**17, 10**17], counts=[3 * 10**17 - 3, 10**17 - 1])
    assert interleaver.take(4) == [0, 0, 0, 1]


@pytest.mark.parametrize("counts", [[5, 0], [2], [-1, 1], [1, 2]])
def test_counts_that_no_dealing_reaches_are_refused(counts):
    with pytest.raises(ValueError, match="source|counts"):
        Interleaver([5, 2], counts=counts)
