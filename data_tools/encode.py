"""Records into token ids on the disk: the part of `tokenize` that takes the time, and what `chat` shares of it."""

from __future__ import annotations

import datetime
import platform
from dataclasses import dataclass, field
from importlib.metadata import version
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from data_tools.adapters.adapter import FileAdapter
from data_tools.atomic_files import beside
from data_tools.bpe import Encoded
from data_tools.dataset_writer import Batch, DatasetWriter, WrittenDataset, chosen, with_eod
from data_tools.engine_check import EngineCheck
from data_tools.errors import DataError
from data_tools.indexed import dtype_for
from data_tools.inputs import open_part
from data_tools.job import TokenizeJob
from data_tools.manifest import BLOCK_DOCUMENTS, READER_VERSION, EngineRecord, Manifest, SourceFile, TokenizerRecord
from data_tools.origin import Origins, origins_of
from data_tools.parts import Part, place_of
from data_tools.progress import Progress
from data_tools.readers import BadRecord, Raw
from data_tools.records import Conversation, Document, as_document
from data_tools.rejects import Rejects
from data_tools.selection import answer_lengths, no_answer
from data_tools.split import held_out_below
from data_tools.tokenizer import Tokenizer, tokenizer_name


@dataclass
class Read:
    """What one block says.

    Attributes:
        part: Where the block is from.
        source: Number of its file among the sources of the manifest.
        size: Bytes of input that it took.
        items: Of the records that gave one.
        rows: Of each item, its row.
    """

    part: Part
    source: int
    size: int
    items: list[Any] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)

    def place(self, number: int) -> str:
        """`file:row` of an item."""
        return place_of(self.part, self.rows[number])


class BlockEncoder:
    """One job while it runs: open partial files and counts.

    As a context manager it removes the partial files when the job fails.
    """

    def __init__(self, tokenizer: Tokenizer, job: Any, *, total_bytes: int) -> None:
        """Opens the partial files.

        Args:
            tokenizer: Makes the ids.
            job: What to do.
            total_bytes: Of the input; 0 where it is not known.
        """
        self.tokenizer = tokenizer
        self.job = job
        self._adapter = job.reads
        self._dtype = dtype_for(tokenizer.vocab_size)
        self.is_control = np.zeros(tokenizer.vocab_size, bool)
        self.is_control[tokenizer.control_ids] = True
        self._held_out_below = held_out_below(job.hold_out_percent)
        partial = beside(job.rejects_path, ".partial")
        self.rejects = Rejects(partial, skips=job.on_error == "skip", max_bad=job.max_bad)
        self._left_out = 0
        self.writers = [DatasetWriter(prefix, dtype=self._dtype, suffixes=job.suffixes) for prefix in job.outputs]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            return
        self.rejects.discard()
        for writer in self.writers:
            writer.discard()
        if isinstance(error, OSError) and not error.filename:  # writing to an open file does not name it
            error.filename = str(self.job.output)

    def read(self, part: Part, source: int, progress: Progress) -> SourceFile:
        """Encodes the documents of one file, or of a part of one.

        Args:
            part: What to read.
            source: Its number among the sources of the manifest.
            progress: Is told of every byte.

        Raises:
            DataError: If the file cannot be read, or a record has no text and bad ones are not skipped.
        """
        convert = self._adapter.for_file(part.file.path, start=part.start)
        reader = open_part(part, self._adapter.columns)
        for block in reader.blocks():
            read = Read(part, source, block.size)
            for row, raw in enumerate(block.records, start=block.first_row):
                try:
                    read.items.append(self.item_of(raw, convert, part, row))
                    read.rows.append(row)
                except BadRecord as error:
                    self.rejects.add(part, row, error)
            if (batch := self.encode(read)) is not None:
                self._write(batch)
            progress.advance(block.size)
        return reader.seen()

    def item_of(self, raw: Raw, convert: FileAdapter, part: Part, row: int) -> Any:
        """What is encoded of a record.

        Raises:
            BadRecord: If there is nothing.
        """
        raise NotImplementedError

    def encode(self, read: Read) -> Batch | None:
        """The documents of a block, None for none; those that are left out are told to `rejects`."""
        raise NotImplementedError

    def selected(
        self, read: Read, encoded: Encoded, origins: Origins, keep: npt.NDArray[np.bool_]
    ) -> npt.NDArray[np.bool_]:
        """Which of the documents that are kept so far the filter takes; it counts the others, or refuses them."""
        if not self.job.where:
            return keep
        selected = self.job.where.select(text_tokens=encoded.lengths, answer_tokens=origins["answer_tokens"])
        for number in np.flatnonzero(keep & selected.unknown):
            self.rejects.add(read.part, read.rows[number], no_answer())
        self._left_out += int((keep & ~selected.taken & ~selected.unknown).sum())
        taken: npt.NDArray[np.bool_] = keep & selected.taken
        return taken

    def record(self, written: WrittenDataset) -> dict[str, Any]:
        """Fields of the manifest that tell how the tokens were made."""
        raise NotImplementedError

    def _write(self, batch: Batch) -> None:
        if len(self.writers) == 1:
            self.writers[0].add(batch)
            return
        is_held_out = batch.origins["id_hash"] < np.uint64(self._held_out_below)
        batch.origins["split"] = is_held_out
        for writer, takes in zip(self.writers, (~is_held_out, is_held_out), strict=True):
            writer.add(batch.chosen(takes))

    def finish(self, sources: list[SourceFile]) -> list[Manifest]:
        """Completes the partial files and describes them, a dataset each.

        Raises:
            DataError: If no record had text, or too many had none.
        """
        written = [writer.finish() for writer in self.writers]
        documents = sum(len(one.pair.lengths) for one in written)
        if not documents and self.job.part is None:  # a shard may be that of an empty file
            names = ", ".join(source.path for source in sources)
            rejected = f"{self.rejects.by_reason.total():,} lines rejected"
            if self._left_out:
                raise DataError(
                    f"{names}: --where '{self.job.where}' takes none of {self._left_out:,} documents ({rejected}); "
                    "nothing was written"
                )
            raise DataError(f"{names}: no document has text ({rejected}); nothing was written")
        self.rejects.check(documents + self._left_out)
        self.rejects.close()
        return [self._manifest(one, sources, held_out=number > 0) for number, one in enumerate(written)]

    def _manifest(self, written: WrittenDataset, sources: list[SourceFile], *, held_out: bool) -> Manifest:
        job, tokenizer, pair = self.job, self.tokenizer, written.pair
        rejected = {} if held_out else dict(sorted(self.rejects.by_reason.items()))
        return Manifest(
            documents=len(pair.lengths),
            tokens=int(pair.lengths.sum(dtype=np.int64)),
            tokens_by_domain=written.tokens_by_domain,
            rejected=sum(rejected.values()),
            rejected_by_reason=rejected,
            left_out=0 if held_out else self._left_out,
            bin_bytes=pair.bin_bytes,
            idx_bytes=pair.idx_bytes,
            bin_sha256=pair.bin_sha256,
            idx_sha256=pair.idx_sha256,
            origin_bytes=written.origin_bytes,
            origin_sha256=written.origin_sha256,
            dtype=self._dtype,
            max_token_id=pair.max_token_id,
            tokens_per_block=tokens_per_block(pair.lengths, block_documents=BLOCK_DOCUMENTS),
            eod_id=tokenizer.eod_id,
            adapter=job.adapter,
            where=str(job.where or ""),
            special_tokens=job.special_tokens,
            hold_out_percent=job.hold_out_percent,
            split="validation" if held_out else "train",
            tokenizer=TokenizerRecord(
                fingerprint=tokenizer.fingerprint,
                vocab_size=tokenizer.vocab_size,
                name=tokenizer_name(job.tokenizer),
            ),
            **self.record(written),
            sources=sources,
            command=job.command,
            versions=_versions(),
            created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        )

    def engine_record(self, *, compared: int) -> EngineRecord:
        """The library that made the ids, and how many documents the other one was asked about."""
        chosen = self.tokenizer.chosen
        return EngineRecord(
            name=chosen.engine.name, version=chosen.engine.version, reason=chosen.reason, compared=compared
        )


class Encoder(BlockEncoder):
    """Documents of text."""

    def __init__(self, tokenizer: Tokenizer, job: TokenizeJob, *, total_bytes: int) -> None:
        """As in `BlockEncoder`."""
        super().__init__(tokenizer, job, total_bytes=total_bytes)
        self._check = EngineCheck(tokenizer, documents=job.verify_sample, total_bytes=total_bytes)

    def item_of(self, raw: Raw, convert: FileAdapter, part: Part, row: int) -> Document:
        """The document of a record."""
        try:
            item = convert(raw)
        except BadRecord as error:
            if not (self.job.compat and error.reason == "empty"):
                raise
            item = Document(id=f"{part.file.path.name}:{row}", text="")
        document = as_document(item) if isinstance(item, Conversation) else item
        return self.job.answer_rule.applied(document) if self.job.answer_rule else document

    def encode(self, read: Read) -> Batch:
        """As in `BlockEncoder`."""
        texts = [document.text for document in read.items]
        encoded = self.tokenizer.encode_batch(texts)
        self._check.check(texts, read.size, read.place)
        origins = origins_of(read.items, read.rows, source=read.source)
        origins["answer_tokens"] = answer_lengths(read.items, self.tokenizer)
        keep = self.selected(read, encoded, origins, self._kept(read, encoded))
        if not keep.all():
            encoded, origins = chosen(encoded, keep), origins[keep]
        if self.job.append_eod:
            encoded = with_eod(encoded, self.tokenizer.eod_id, dtype=self._dtype)
        return Batch(encoded, origins)

    def record(self, written: WrittenDataset) -> dict[str, Any]:
        """As in `BlockEncoder`."""
        return {
            "append_eod": self.job.append_eod,
            "text_key": self.job.text_key,
            "answer_rule": self.job.answer_rule.text if self.job.answer_rule else "",
            "compat": self.job.compat,
            "engine": self.engine_record(compared=self._check.compared),
        }

    def _kept(self, read: Read, encoded: Encoded) -> npt.NDArray[np.bool_]:
        """Which documents are written: those with a token, and without a control token where that is asked for."""
        keep = np.full(len(encoded), bool(self.job.compat)) | (encoded.lengths > 0)
        for number in np.flatnonzero(~keep):
            error = BadRecord("empty", "the tokenizer makes no token of its text")
            self.rejects.add(read.part, read.rows[number], error)
        if self.job.special_tokens == "reject":
            places = np.flatnonzero(self.is_control[encoded.ids])
            numbers, first = np.unique(np.searchsorted(np.cumsum(encoded.lengths), places, "right"), return_index=True)
            for number, token in zip(numbers, encoded.ids[places[first]], strict=True):
                spelled = self.tokenizer.decode([int(token)])
                error = BadRecord(
                    "control token", f"the text spells {spelled!r}; --special-tokens reject leaves it out"
                )
                self.rejects.add(read.part, read.rows[number], error)
            keep[numbers] = False
        return keep


def tokens_per_block(lengths: npt.NDArray[np.int32] | npt.NDArray[np.int64], *, block_documents: int) -> list[int]:
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
    return [int(total) for total in np.add.reduceat(lengths, starts, dtype=np.int64)]


def _versions() -> dict[str, str]:
    return {
        "reader": READER_VERSION,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "tokenizers": version("tokenizers"),
    }
