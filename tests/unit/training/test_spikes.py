"""A loss spike is said once, when it begins."""

from __future__ import annotations

from megatron_ext.training.spikes import FEWEST_STEPS, WINDOW_STEPS, SpikeWatch


def look(
    losses: list[float], *, nats: float = 1.0, before: list[float] | None = None
) -> list[tuple[float | None, bool]]:
    watch = SpikeWatch(nats, before or [])
    return [watch.look(loss) for loss in losses]


def test_a_spike_is_measured_from_the_median_and_begins_once() -> None:
    seen = look([2.0] * 10 + [3.5, 3.25, 2.0, 3.5])
    assert seen[:10] == [(None, False)] * 10
    assert seen[10:] == [(1.5, True), (1.25, False), (None, False), (1.5, True)]


def test_a_loss_at_the_limit_is_no_spike() -> None:
    assert look([2.0] * 10 + [3.0])[-1] == (None, False)


def test_the_first_steps_are_too_few_for_a_median() -> None:
    assert look([2.0] * (FEWEST_STEPS - 1) + [9.0])[-1] == (None, False)


def test_a_loss_that_stays_high_is_a_level_after_half_a_window() -> None:
    seen = look([2.0] * WINDOW_STEPS + [4.0] * (WINDOW_STEPS // 2 + 2))[WINDOW_STEPS:]
    # After 25 of them the median lies between both levels, 1 nat below: no more than the limit.
    assert seen == [(2.0, True)] + [(2.0, False)] * (WINDOW_STEPS // 2 - 1) + [(None, False)] * 2


def test_losses_before_a_resume_count() -> None:
    assert look([9.0], before=[2.0] * FEWEST_STEPS) == [(7.0, True)]


def test_zero_watches_nothing() -> None:
    assert look([2.0] * 20 + [99.0], nats=0.0)[-1] == (None, False)
