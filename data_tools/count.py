"""Tokens of some inputs, without writing them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from data_tools.engine_check import EngineCheck
from data_tools.inputs import find_inputs, open_part
from data_tools.job import TokenizeJob
from data_tools.parts import InputFile, Part
from data_tools.progress import Progress
from data_tools.readers import BadRecord
from data_tools.records import Conversation, Document, as_document
from data_tools.selection import answer_lengths, no_answer
from data_tools.tokenizer import Tokenizer


@dataclass
class Counted:
    """What some inputs would give.

    Attributes:
        documents: Records with text that the filter takes.
        tokens: Of all of them, end-of-document tokens included where the job appends them.
        left_out: Documents that the filter leaves out.
        rejected: Records that would be refused, by reason.
    """

    documents: int
    tokens: int
    left_out: int
    rejected: Counter[str]


def count(job: TokenizeJob, progress: Progress) -> Counted:
    """Counts the tokens of a job; its output is not touched, and bad records never stop it.

    Raises:
        UsageError: If there is no such adapter.
        DataError: If an input or the tokenizer cannot be read, or the two libraries disagree.
    """
    inputs = find_inputs(job.inputs)
    tokenizer = Tokenizer.load(job.tokenizer, special_tokens=job.special_tokens, engine=job.bpe)
    check = EngineCheck(tokenizer, documents=job.verify_sample, total_bytes=inputs.size)
    total = Counted(0, 0, 0, Counter())
    for file in inputs.files:
        for documents, size in _documents(job, file, total.rejected):
            texts = [document.text for document in documents]
            encoded = tokenizer.encode_batch(texts)
            check.check(texts, size, lambda number, path=file.path: f"{path}: document {number}")  # type: ignore[misc]
            taken = encoded.lengths > 0
            if empty := int((~taken).sum()):
                total.rejected["empty"] += empty
            if job.where:
                answers = answer_lengths(documents, tokenizer)
                selected = job.where.select(text_tokens=encoded.lengths, answer_tokens=answers)
                total.left_out += int((taken & ~selected.taken & ~selected.unknown).sum())
                if unknown := int((taken & selected.unknown).sum()):
                    total.rejected[no_answer().reason] += unknown
                taken &= selected.taken
            total.documents += int(taken.sum())
            total.tokens += int(encoded.lengths[taken].sum(dtype=np.int64)) + int(taken.sum()) * job.append_eod
            progress.advance(size)
    return total


def _documents(job: TokenizeJob, file: InputFile, rejected: Counter[str]) -> Iterator[tuple[list[Document], int]]:
    """The documents of each block of a file, and the block's bytes."""
    convert = job.reads.for_file(file.path)
    for block in open_part(Part(file), job.reads.columns).blocks():
        documents = []
        for raw in block.records:
            try:
                item = convert(raw)
            except BadRecord as error:
                rejected[error.reason] += 1
                continue
            document = as_document(item) if isinstance(item, Conversation) else item
            documents.append(job.answer_rule.applied(document) if job.answer_rule else document)
        yield documents, block.size
