"""What the local backend refuses, said before it would be silently wrong."""

from __future__ import annotations

from typing import Any

from data_tools.errors import RecipeError


class UnsupportedError(RecipeError, NotImplementedError):
    """Something that Megatron-Core can ask for and the local backend cannot do yet."""


def refuse_unlike_row(packed_seq_params: Any, *, tokens: int, rows: int) -> None:
    """Raises UnsupportedError for packed parameters that do not describe one whole row of `tokens`.

    Without `total_tokens` core builds no `seq_idx`, and state would run across document ends without a word.
    """
    total = packed_seq_params.total_tokens
    if packed_seq_params.qkv_format != "thd" or (total, rows) != (tokens, 1):
        raise UnsupportedError(
            f"packed_seq_params: qkv_format {packed_seq_params.qkv_format}, total_tokens {total}, for {rows} row(s) "
            f"of {tokens} tokens; they must describe one whole row. Build them with datasets.packed_params, and "
            "lay several rows end to end."
        )


def refuse_packed_decoding(packed_seq_params: Any) -> None:
    """Raises UnsupportedError: a cache holds one document a row."""
    if packed_seq_params is not None:
        raise UnsupportedError(
            "packed_seq_params: several documents of one row cannot be decoded from a cache; give each a row."
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
