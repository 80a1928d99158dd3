"""Lines of text into token ids on the disk: the part of `tokenize` that takes the time."""

from __future__ import annotations

import datetime
import platform
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import numpy.typing as npt
import orjson

from data_tools.adapters import adapter
from data_tools.adapters.adapter import FileAdapter
from data_tools.bpe import Encoded
from data_tools.errors import DataError
from data_tools.indexed import IndexedWriter, dtype_for
from data_tools.inputs import open_part
from data_tools.manifest import BLOCK_DOCUMENTS, Manifest, SourceFile, TokenizerRecord
from data_tools.parts import InputFile, Part, place_of
from data_tools.progress import Progress
from data_tools.readers import READER_VERSION, BadRecord, Block
from data_tools.records import Conversation, as_document
from data_tools.tokenizer import Tokenizer

_ENCODE_CHARACTERS = 1 << 20
"""Characters handed to the tokenizer at once: enough to keep its threads busy, small beside a block."""


@dataclass(frozen=True)
class PartialFiles:
    """Files that grow under these names and are renamed when they are whole."""

    bin: Path
    idx: Path
    rejects: Path


@dataclass
class _Batch:
    """Texts that wait to be encoded."""

    texts: list[str] = field(default_factory=list)
    characters: int = 0

    def add(self, text: str) -> None:
        self.texts.append(text)
        self.characters += len(text)

    def take(self) -> list[str]:
        texts, self.texts, self.characters = self.texts, [], 0
        return texts


class Encoder:
    """One job while it runs: open partial files and counts.

    As a context manager it removes the partial files when the job fails.
    """

    def __init__(
        self, tokenizer: Tokenizer, partial: PartialFiles, *, key: str, append_eod: bool, skips_bad_lines: bool
    ) -> None:
        """Opens the partial files.

        Args:
            tokenizer: Makes the ids.
            partial: Where to write.
            key: Key of the text in a record.
            append_eod: Whether each document ends with the end-of-document id.
            skips_bad_lines: Whether a line without text is listed and left out, or ends the job.
        """
        self._tokenizer = tokenizer
        self._partial = partial
        self._key = key
        self._adapter = adapter("text", key=key)
        self._append_eod = append_eod
        self._skips_bad_lines = skips_bad_lines
        self._rejected: Counter[str] = Counter()
        partial.rejects.parent.mkdir(parents=True, exist_ok=True)
        self._writer = IndexedWriter(partial.bin, dtype=dtype_for(tokenizer.vocab_size))
        self._rejects = partial.rejects.open("wb")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._rejects.close()
        self._writer.close()
        if error is not None:
            for path in (self._partial.bin, self._partial.idx, self._partial.rejects):
                path.unlink(missing_ok=True)

    def read(self, file: InputFile, progress: Progress) -> SourceFile:
        """Encodes the documents of one file.

        Raises:
            DataError: If the file cannot be read, or a record has no text and bad ones are not skipped.
        """
        part, convert = Part(file), self._adapter.for_file(file.path)
        reader = open_part(part, self._adapter.columns)
        for block in reader.blocks():
            self._encode_block(part, block, convert)
            progress.advance(block.size)
        return reader.seen()

    def _encode_block(self, part: Part, block: Block, convert: FileAdapter) -> None:
        batch = _Batch()
        for row, raw in enumerate(block.records, start=block.first_row):
            try:
                item = convert(raw)
                batch.add(as_document(item).text if isinstance(item, Conversation) else item.text)
            except BadRecord as error:
                self._reject(part, row, error)
            if batch.characters >= _ENCODE_CHARACTERS:
                self._encode(batch.take())
        self._encode(batch.take())

    def _reject(self, part: Part, line: int, error: BadRecord) -> None:
        if not self._skips_bad_lines:
            raise DataError(
                f"{place_of(part, line)}: {error}; "
                "mend the line, or give --on-error skip to leave out such lines and list them"
            )
        self._rejected[error.reason] += 1
        row = {"file": str(part.file.path), "line": line, "reason": error.reason, "detail": error.detail}
        self._rejects.write(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE))

    def _encode(self, texts: Sequence[str]) -> None:
        if not texts:
            return
        encoded = self._tokenizer.encode_batch(texts)
        if self._append_eod:
            encoded = with_eod(encoded, self._tokenizer.eod_id)
        self._writer.add_documents(encoded.ids, encoded.lengths)

    def finish(self, sources: list[SourceFile], *, tokenizer_name: str, command: str) -> Manifest:
        """Completes the partial files and describes them.

        Raises:
            DataError: If no line had text.
        """
        pair = self._writer.finish(self._partial.idx)
        if not len(pair.lengths):
            names = ", ".join(source.path for source in sources)
            raise DataError(
                f"{names}: no document has text ({self._rejected.total():,} lines rejected); nothing was written"
            )
        return Manifest(
            documents=len(pair.lengths),
            tokens=int(pair.lengths.sum(dtype=np.int64)),
            rejected=self._rejected.total(),
            rejected_by_reason=dict(sorted(self._rejected.items())),
            bin_bytes=pair.bin_bytes,
            idx_bytes=pair.idx_bytes,
            bin_sha256=pair.bin_sha256,
            idx_sha256=pair.idx_sha256,
            dtype=dtype_for(self._tokenizer.vocab_size),
            max_token_id=pair.max_token_id,
            tokens_per_block=tokens_per_block(pair.lengths, block_documents=BLOCK_DOCUMENTS),
            append_eod=self._append_eod,
            eod_id=self._tokenizer.eod_id,
            text_key=self._key,
            tokenizer=TokenizerRecord(
                fingerprint=self._tokenizer.fingerprint, vocab_size=self._tokenizer.vocab_size, name=tokenizer_name
            ),
            sources=sources,
            command=command,
            versions=_versions(),
            created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        )


def with_eod(documents: Encoded, eod_id: int) -> Encoded:
    """The documents with the end-of-document id after each.

    >>> with_eod(Encoded(np.array([7, 8, 9], np.uint32), np.array([1, 2])), 0).ids.tolist()
    [7, 0, 8, 9, 0]
    """
    lengths = documents.lengths + 1
    ends = np.cumsum(lengths) - 1
    ids = np.empty(int(lengths.sum()), documents.ids.dtype)
    is_text = np.ones(len(ids), bool)
    is_text[ends] = False
    ids[is_text] = documents.ids
    ids[ends] = eod_id
    return Encoded(ids, lengths)


def tokens_per_block(lengths: npt.NDArray[np.int32], *, block_documents: int) -> list[int]:
    """Tokens of each run of `block_documents` documents; the last run may be shorter.

    Args:
        lengths: [documents] tokens of each.
        block_documents: Documents of one run.

    >>> tokens_per_block(np.array([5, 1, 7], np.int32), block_documents=2)
    [6, 7]
    """
    if not len(lengths):
        return []
    starts = np.arange(0, len(lengths), block_documents)
    return [int(total) for total in np.add.reduceat(lengths.astype(np.int64), starts)]


def _versions() -> dict[str, str]:
    import tokenizers

    return {
        "reader": READER_VERSION,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "tokenizers": tokenizers.__version__,
    }
