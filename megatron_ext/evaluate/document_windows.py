"""Loss of a tokenised dataset, document by document: each alone, as if nothing stood before it.

The first token of a document is predicted behind an end-of-document token. A document longer than `sequence_length`
is read in windows of so many tokens; the first token of a later window is predicted behind the one token before it, and
knows no more of the document. Every token is predicted once, its end of document too.

Source of the rule: rolling log-likelihoods of the Language Model Evaluation Harness with a context of one token.

Windows go through the model in passes of like length (`continuations.py`), the same ones whatever the number of ranks.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from data_tools.dataset import StoredDataset, read_dataset
from data_tools.errors import DataError
from data_tools.progress import shown
from data_tools.tokenizer import Tokenizer
from megatron_ext.datasets.documents import Documents, Span, first_unknown_id, unknown_id_error
from megatron_ext.datasets.open_files import OpenFiles
from megatron_ext.datasets.shards import ShardedDocuments, open_documents
from megatron_ext.evaluate.continuations import Continuation, ContinuationScorer, passes_of
from megatron_ext.evaluate.evaluation import Evaluation
from megatron_ext.evaluate.kept_items import Key, Line
from megatron_ext.evaluate.results import Contamination, Interval, Metric, TaskResult
from megatron_ext.evaluate.shared_lines import lines_of_all_ranks
from megatron_ext.evaluate.tasks import TaskRequest
from megatron_ext.evaluate.text_bytes import bits_per_byte, bytes_of, require_finite
from megatron_ext.training.intervals import bootstrap_interval

_RULE = (
    "each document alone, behind an end-of-document token; longer ones in windows of {length:,} tokens, a later window "
    "behind the one token before it; every token predicted once; bytes by decoding documents, an end of document "
    "counts none"
)
_BOOTSTRAP = "percentile bootstrap over documents, 2,000 resamples"


class Window(NamedTuple):
    """A run of tokens that is predicted at once."""

    document: int
    number: int  # of the window in its document, from 0
    start: int  # of its first token in the document
    length: int


def windows_of(lengths: Iterable[int], *, most: int) -> list[Window]:
    """The windows of some documents.

    >>> [tuple(window) for window in windows_of([3, 0, 5], most=4)]
    [(0, 0, 0, 3), (2, 0, 0, 4), (2, 1, 4, 1)]

    Args:
        lengths: Tokens of each document.
        most: Tokens of a window at most.
    """
    return [
        Window(document, number, start, min(most, length - start))
        for document, length in enumerate(lengths)
        for number, start in enumerate(range(0, length, most))
    ]


def evaluate_documents(request: TaskRequest, evaluation: Evaluation, contamination: Contamination) -> TaskResult:
    """Loss and bits per byte of the dataset that a request names.

    All ranks must call this.

    Args:
        request: What was asked.
        evaluation: Of the checkpoint.
        contamination: Whether the dataset was trained on.
    """
    dataset, plan = read_dataset(request.argument), evaluation.opened.plan
    documents = open_documents(request.argument, source=request.name, data_id=dataset.data_id, files=OpenFiles(most=4))
    lengths = itertools.chain.from_iterable(
        documents.lengths_of_block(block).tolist() for block in range(len(documents.block_tokens))
    )
    windows = windows_of(itertools.islice(lengths, request.options.limit), most=plan.batch.sequence_length)
    if not windows:
        raise DataError(f"{request.task}: its first {request.options.limit:,} documents hold no token; raise limit.")
    there = lines_of_all_ranks(
        evaluation.items, request.name, lambda there: _score(request, evaluation, documents, windows, there)
    )
    lines = [there[_item(window), window.number] for window in windows]
    return _result(request, dataset, lines, contamination, length=plan.batch.sequence_length)


def _item(window: Window) -> str:
    return f"{window.document:08d}"


def _score(
    request: TaskRequest,
    evaluation: Evaluation,
    documents: Documents | ShardedDocuments,
    windows: Sequence[Window],
    there: Mapping[Key, Line],
) -> list[Line]:
    """The lines of this rank's share of the passes that are not there yet."""
    groups = evaluation.opened.groups
    scorer = ContinuationScorer(evaluation.opened.model, batch_tokens=request.options.batch_tokens)
    tokenizer = Tokenizer.load(evaluation.opened.tokenizer_folder, special_tokens="parse")
    passes = passes_of([window.length for window in windows], batch_tokens=request.options.batch_tokens)
    missing = [
        [windows[index] for index in one]
        for one in passes
        if any((_item(windows[index]), windows[index].number) not in there for index in one)
    ]
    mine = missing[groups.dp.rank() :: groups.dp.size()]
    sizes: Counter[int] = Counter()
    for window in windows:
        sizes[window.document] += window.length
    lines = []
    tokens = sum(window.length for batch in mine for window in batch)
    with shown(f"{request.name}: tokens", tokens, unit="tokens") as progress:
        for batch in mine:
            rows = [_read(documents, window, tokenizer.eod_id, evaluation) for window in batch]
            scores = scorer.score([Continuation(tuple(row.tolist()), len(row) - 1) for row in rows])
            for window, row, score in zip(batch, rows, scores, strict=True):
                key = _item(window), window.number
                nats = require_finite(-score.log_prob, f"{request.task}, document {window.document:,}")
                if key in there:
                    continue
                whole = _whole(documents, window.document, sizes[window.document]) if window.number == 0 else None
                size = bytes_of(whole, tokenizer) if whole is not None else 0
                line = {"sample": window.number, "score": nats, "weight": len(row) - 1, "bytes": size}
                lines.append(evaluation.items.add(request.name, key[0], **line))
            progress.advance(sum(window.length for window in batch))
    return lines


def _read(documents: Documents | ShardedDocuments, window: Window, eod_id: int, evaluation: Evaluation) -> np.ndarray:
    """[1 + length] the token before a window, and its own."""
    row = np.full(window.length + 1, eod_id, np.int64)
    before = int(window.start > 0)
    documents.read([Span(window.document, window.start - before, window.length + before)], row[1 - before :])
    vocab_size = evaluation.opened.plan.model.vocab_size
    if (place := first_unknown_id(row, vocab_size=vocab_size)) is not None:
        raise unknown_id_error(
            source=documents.source, document=window.document, token_id=int(row[place]), vocab_size=vocab_size
        )
    return row


def _whole(documents: Documents | ShardedDocuments, document: int, length: int) -> np.ndarray:
    """[length] a whole document: a character may lie across two of its windows."""
    tokens = np.empty(length, np.int64)
    documents.read([Span(document, 0, length)], tokens)
    return tokens


def _result(
    request: TaskRequest,
    dataset: StoredDataset,
    lines: Sequence[Line],
    contamination: Contamination,
    *,
    length: int,
) -> TaskResult:
    by_document = [list(group) for _, group in itertools.groupby(lines, key=lambda line: line["item"])]
    nats, tokens, sizes = (
        [math.fsum(line[key] for line in group) for group in by_document] for key in ("score", "weight", "bytes")
    )
    total, count, num_bytes = math.fsum(nats), round(math.fsum(tokens)), round(math.fsum(sizes))
    seed = request.options.seed
    metrics = [
        Metric(
            name="loss",
            value=total / count,
            n=count,
            is_higher_better=False,
            interval=_interval(nats, tokens, seed=seed),
        )
    ]
    if num_bytes:
        pairs = [(value / math.log(2), size) for value, size in zip(nats, sizes, strict=True) if size]
        interval = _interval([bits for bits, _ in pairs], [size for _, size in pairs], seed=seed)
        metrics.append(bits_per_byte(total, num_bytes, count, interval=interval))
    read = len(by_document)
    return TaskResult(
        task=request.task,
        kind=request.kind,
        name=request.name,
        domain=request.domain,
        headline="loss",
        metrics=tuple(metrics),
        items=read,
        data=request.argument,
        data_id=dataset.data_id,
        method=_RULE.format(length=length),
        seed=seed,
        contamination=contamination,
        notes=(f"the first {read:,} of {dataset.documents:,} documents",) if read < dataset.documents else (),
        details={
            "nats": total,
            "tokens": count,
            "bytes": num_bytes,
            "documents_in_windows": sum(len(group) > 1 for group in by_document),
        },
    )


def _interval(values: Sequence[float], weights: Sequence[float], *, seed: int) -> Interval | None:
    """Of a sum over a sum; None where no two documents differ: resampling them would say that nothing else can be."""
    if len({value / weight for value, weight in zip(values, weights, strict=True)}) < 2:
        return None
    low, high = bootstrap_interval(values, weights=weights, seed=seed)
    return Interval(low=low, high=high, method=_BOOTSTRAP)
