"""A predicted speed as rows of a plan's table, and as JSON."""

from __future__ import annotations

from typing import Any

from data_tools.quantities import format_exact
from megatron_ext.plan.predict import Prediction, origin
from megatron_ext.plan.render_table import Row

_PARTS = {
    "products": "matrix products",
    "ssd": "SSD",
    "elementwise": "elementwise",
    "update": "update",
    "host": "waiting for launches",
    "communication": "sent",
    "idle": "idle",
}


def format_hours(hours: float) -> str:
    """GPU-hours, whole from a hundred on.

    >>> format_hours(29055.6), format_hours(0.51234)
    ('29,056', '0.512')
    """
    return f"{hours:,.0f}" if hours >= 100 else f"{hours:.3g}"


def speed_rows(prediction: Prediction, *, total_tokens: int) -> list[Row]:
    """Speed, where a step's time goes, what it is an estimate from, and the stage's GPU-hours."""
    slowest, fastest = prediction.range_per_s
    step = prediction.step
    shares = {name: getattr(step, name) / step.total for name in _PARTS}
    parts = ", ".join(f"{_PARTS[name]} {100 * share:.3g} %" for name, share in shares.items() if share >= 0.001)
    hours, ranks = total_tokens / prediction.tokens_per_s / 3600, prediction.ranks
    return [
        (
            "speed",
            f"{prediction.tokens_per_s:,.0f} tokens/s a GPU ({slowest:,.0f} to {fastest:,.0f}), "
            f"{prediction.tokens_per_s * ranks:,.0f} in all; MFU {100 * prediction.mfu:.3g} % of "
            f"{prediction.gpu.peak_tflops:g} TFLOP/s ({prediction.gpu.name})",
        ),
        ("", f"a step {step.total:.3g} s: {parts}"),
        *(("", sentence) for sentence in origin(prediction)),
        (
            "GPU-hours",
            f"{format_hours(hours)} ({format_hours(total_tokens / fastest / 3600)} to "
            f"{format_hours(total_tokens / slowest / 3600)}): "
            f"{hours / ranks / 24:,.3g} days on {format_exact(ranks)}",
        ),
    ]


def prediction_facts(prediction: Prediction | None) -> dict[str, Any] | None:
    """The same for programs: seconds of a step by part, rates a GPU, and the measured step it starts from."""
    if prediction is None:
        return None
    slowest, fastest = prediction.range_per_s
    return {
        "gpu": prediction.gpu._asdict(),
        "tokens_per_s_per_gpu": prediction.tokens_per_s,
        "slowest_tokens_per_s_per_gpu": slowest,
        "fastest_tokens_per_s_per_gpu": fastest,
        "mfu": prediction.mfu,
        "step_s": prediction.step.total,
        "parts_s": prediction.step._asdict(),
        "from_point": prediction.anchor.point.name,
        "factor": prediction.anchor.factor,
        "parameters_ratio": prediction.anchor.parameters_ratio,
        "length_ratio": prediction.anchor.length_ratio,
    }
