"""How many bytes of text some tokens stand for, by decoding."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from data_tools.errors import TrainingError
from data_tools.tokenizer import Tokenizer
from megatron_ext.datasets.open_files import OpenFiles
from megatron_ext.datasets.shards import open_documents
from megatron_ext.evaluate.results import Interval, Metric
from megatron_ext.plan.stage_plan import SourcePlan

_TOKENS_AT_ONCE = 1 << 20


def bytes_of(ids: np.ndarray, tokenizer: Tokenizer) -> int:
    """UTF-8 bytes of the text of one document, or a part of it.

    An end of document counts none. Where a part begins or ends within a character, that character counts as the
    replacement sign that its half decodes to, 3 bytes.

    Args:
        ids: [tokens].
        tokenizer: That made them.
    """
    return len(tokenizer.decode(ids[ids != tokenizer.eod_id].tolist()).encode())


def bytes_of_labels(source: SourcePlan, tokenizer_folder: Path, *, num_labels: int) -> int:
    """Bytes of the tokens 1 to `num_labels` of a source's held-out set: those that its rows predict.

    Args:
        source: Of the plan.
        tokenizer_folder: That made the tokens.
        num_labels: Tokens that are predicted.
    """
    tokenizer = Tokenizer.load(tokenizer_folder, special_tokens="parse")
    documents = open_documents(
        source.validation_prefix, source=source.source, data_id=source.validation_data_id, files=OpenFiles(most=4)
    )
    found, begin, end = 0, 1, num_labels + 1
    while begin < end:
        size = min(_TOKENS_AT_ONCE, end - begin)
        tokens = np.empty(size, np.int64)
        documents.read_in_file_order(begin, tokens)
        starts = [start for start in documents.starts_in_file_order(begin, size) if start > 0]
        if begin + size < end and starts:  # the last document goes on behind: the next block begins with it
            size = starts.pop()
        found += sum(bytes_of(part, tokenizer) for part in np.split(tokens[:size], starts))
        begin += size
    return found


def bits_per_byte(nats: float, num_bytes: int, tokens: int, interval: Interval | None = None) -> Metric:
    """Cross entropy of a text in bits for each of its bytes: comparable between tokenizers, unlike that of a token."""
    value = nats / math.log(2) / max(1, num_bytes)
    return Metric(name="bits_per_byte", value=value, n=tokens, is_higher_better=False, interval=interval)


def require_finite(nats: float, what: str) -> float:
    """The loss, if it is a number.

    Raises:
        TrainingError: It is not: the weights are of a run that diverged.
    """
    if math.isfinite(nats):
        return nats
    raise TrainingError(
        f"{what}: the loss is {nats}; the checkpoint's weights or logits are not finite. Look at the loss of its run, "
        "and take an earlier checkpoint."
    )
