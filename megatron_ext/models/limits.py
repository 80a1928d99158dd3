"""What the local backend refuses, said before it would be silently wrong."""

from __future__ import annotations

from typing import Any

from data_tools.errors import RecipeError


class UnsupportedError(RecipeError, NotImplementedError):
    """Something that Megatron-Core can ask for and the local backend cannot do yet."""


def refuse_packed_sequences(packed_seq_params: Any) -> None:
    """Raises UnsupportedError for packed rows: attention and state would run across document ends."""
    if packed_seq_params is not None:
        raise UnsupportedError(
            "packed_seq_params: the local backend cannot keep documents of one row apart yet; "
            "pass rows without packed_seq_params (document_isolation: none)."
        )


def refuse_context_parallel(context_parallel_size: int) -> None:
    """Raises UnsupportedError when a sequence is split over ranks."""
    if context_parallel_size != 1:
        raise UnsupportedError(
            f"context_parallel_size: {context_parallel_size}: the local backend needs whole sequences on a rank; "
            "set it to 1 and use tensor parallelism."
        )


def refuse_dynamic_batching(inference_context: Any) -> None:
    """Raises UnsupportedError for continuous batching: the local mixer keeps one state a row, not a pool."""
    if inference_context is not None and not inference_context.is_static_batching():
        raise UnsupportedError(
            "inference_context: the local backend decodes with StaticInferenceContext only; "
            "use an inference engine such as vLLM for many prompts at once."
        )
