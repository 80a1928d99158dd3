"""Tokens of some inputs, without writing them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from data_tools.engine_check import EngineCheck
from data_tools.inputs import find_inputs, open_part
from data_tools.job import TokenizeJob
from data_tools.parts import Part
from data_tools.progress import Progress
from data_tools.readers import BadRecord
from data_tools.records import Conversation, as_document
from data_tools.tokenizer import Tokenizer


@dataclass
class Counted:
    """What some inputs would give.

    Attributes:
        documents: Records with text.
        tokens: Of all of them, end-of-document tokens included where the job appends them.
        rejected: Records without text, by reason.
    """

    documents: int
    tokens: int
    rejected: Counter[str]


def count(job: TokenizeJob, progress: Progress) -> Counted:
    """Counts the tokens of a job; its output is not touched, and bad records never stop it.

    Raises:
        DataError: If an input or the tokenizer cannot be read, or the two libraries disagree.
    """
    inputs = find_inputs(job.inputs)
    tokenizer = Tokenizer.load(job.tokenizer, special_tokens=job.special_tokens, engine=job.bpe)
    check = EngineCheck(tokenizer, documents=job.verify_sample, total_bytes=inputs.size)
    total = Counted(0, 0, Counter())
    for file in inputs.files:
        convert = job.reads.for_file(file.path)
        for block in open_part(Part(file), job.reads.columns).blocks():
            texts = []
            for raw in block.records:
                try:
                    item = convert(raw)
                except BadRecord as error:
                    total.rejected[error.reason] += 1
                    continue
                texts.append(as_document(item).text if isinstance(item, Conversation) else item.text)
            encoded = tokenizer.encode_batch(texts)
            check.check(texts, block.size, lambda number, path=file.path: f"{path}: document {number}")  # type: ignore[misc]
            total.documents += len(texts)
            total.tokens += len(encoded.ids) + len(texts) * job.append_eod
            progress.advance(block.size)
    return total
