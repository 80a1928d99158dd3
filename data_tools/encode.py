"""Records into token ids on the disk: the part of `tokenize` that takes the time."""

from __future__ import annotations

import datetime
import platform
from dataclasses import dataclass, field
from importlib.metadata import version
from types import TracebackType
from typing import Self

import numpy as np
import numpy.typing as npt

from data_tools.adapters.adapter import FileAdapter
from data_tools.atomic_files import beside
from data_tools.bpe import Encoded
from data_tools.dataset_writer import DatasetWriter, WrittenDataset, chosen, with_eod
from data_tools.engine_check import EngineCheck
from data_tools.errors import DataError
from data_tools.indexed import dtype_for
from data_tools.inputs import open_part
from data_tools.job import TokenizeJob
from data_tools.manifest import BLOCK_DOCUMENTS, EngineRecord, Manifest, SourceFile, TokenizerRecord
from data_tools.origin import Origins, origins_of
from data_tools.parts import Part, place_of
from data_tools.progress import Progress
from data_tools.readers import READER_VERSION, BadRecord, Block
from data_tools.records import Conversation, Document, as_document
from data_tools.rejects import Rejects
from data_tools.selection import Where, answer_lengths, no_answer
from data_tools.split import held_out_below
from data_tools.tokenizer import Tokenizer, tokenizer_name


@dataclass
class _Documents:
    """What one block says.

    Attributes:
        part: Where the block is from.
        documents: Of the records that gave one.
        rows: Of each document, its row.
    """

    part: Part
    documents: list[Document] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)

    def place(self, number: int) -> str:
        """`file:row` of a document."""
        return place_of(self.part, self.rows[number])


class Encoder:
    """One job while it runs: open partial files and counts.

    As a context manager it removes the partial files when the job fails.
    """

    def __init__(self, tokenizer: Tokenizer, job: TokenizeJob, *, total_bytes: int) -> None:
        """Opens the partial files.

        Args:
            tokenizer: Makes the ids.
            job: What to do.
            total_bytes: Of the input; 0 where it is not known.
        """
        self._tokenizer = tokenizer
        self._job = job
        self._adapter = job.reads
        self._dtype = dtype_for(tokenizer.vocab_size)
        self._check = EngineCheck(tokenizer, documents=job.verify_sample, total_bytes=total_bytes)
        self._is_control = np.zeros(tokenizer.vocab_size, bool)
        self._is_control[tokenizer.control_ids] = True
        self._held_out_below = held_out_below(job.hold_out_percent)
        self._rejects_partial = beside(job.rejects_path, ".partial")
        self._rejects = Rejects(self._rejects_partial, skips=job.on_error == "skip", max_bad=job.max_bad)
        self._left_out = 0
        self.writers = [DatasetWriter(prefix, dtype=self._dtype) for prefix in job.outputs]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._rejects.close()
        if error is not None:
            self._rejects_partial.unlink(missing_ok=True)
            for writer in self.writers:
                writer.discard()

    def read(self, part: Part, source: int, progress: Progress) -> SourceFile:
        """Encodes the documents of one file, or of a part of one.

        Args:
            part: What to read.
            source: Its number among the sources of the manifest.
            progress: Is told of every byte.

        Raises:
            DataError: If the file cannot be read, or a record has no text and bad ones are not skipped.
        """
        convert = self._adapter.for_file(part.file.path)
        reader = open_part(part, self._adapter.columns)
        for block in reader.blocks():
            self._write(self._documents_of(part, block, convert), source, block.size)
            progress.advance(block.size)
        return reader.seen()

    def _documents_of(self, part: Part, block: Block, convert: FileAdapter) -> _Documents:
        found = _Documents(part)
        for row, raw in enumerate(block.records, start=block.first_row):
            try:
                item = convert(raw)
            except BadRecord as error:
                if not (self._job.compat and error.reason == "empty"):
                    self._rejects.add(part, row, error)
                    continue
                item = Document(id=f"{part.file.path.name}:{row}", text="")
            document = as_document(item) if isinstance(item, Conversation) else item
            found.documents.append(self._job.answer_rule.applied(document) if self._job.answer_rule else document)
            found.rows.append(row)
        return found

    def _write(self, found: _Documents, source: int, size: int) -> None:
        texts = [document.text for document in found.documents]
        encoded = self._tokenizer.encode_batch(texts)
        self._check.check(texts, size, found.place)
        origins = origins_of(found.documents, found.rows, source=source)
        origins["answer_tokens"] = answer_lengths(found.documents, self._tokenizer)
        keep = self._kept(found, encoded)
        if self._job.where:
            keep &= self._selected(self._job.where, found, encoded, origins, keep)
        if not keep.all():
            encoded, origins = chosen(encoded, keep), origins[keep]
        if self._job.append_eod:
            encoded = with_eod(encoded, self._tokenizer.eod_id, dtype=self._dtype)
        if len(self.writers) == 1:
            self.writers[0].add(encoded, origins)
            return
        is_held_out = origins["id_hash"] < np.uint64(self._held_out_below)
        origins["split"] = is_held_out
        for writer, takes in zip(self.writers, (~is_held_out, is_held_out), strict=True):
            writer.add(chosen(encoded, takes), origins[takes])

    def _kept(self, found: _Documents, encoded: Encoded) -> npt.NDArray[np.bool_]:
        """Which documents are written: those with a token, and without a control token where that is asked for."""
        keep = np.full(len(encoded), bool(self._job.compat)) | (encoded.lengths > 0)
        for number in np.flatnonzero(~keep):
            error = BadRecord("empty", "the tokenizer makes no token of its text")
            self._rejects.add(found.part, found.rows[number], error)
        if self._job.special_tokens == "reject":
            places = np.flatnonzero(self._is_control[encoded.ids])
            numbers, first = np.unique(np.searchsorted(np.cumsum(encoded.lengths), places, "right"), return_index=True)
            for number, token in zip(numbers, encoded.ids[places[first]], strict=True):
                spelled = self._tokenizer.decode([int(token)])
                error = BadRecord(
                    "control token", f"the text spells {spelled!r}; --special-tokens reject leaves it out"
                )
                self._rejects.add(found.part, found.rows[number], error)
            keep[numbers] = False
        return keep

    def _selected(
        self, where: Where, found: _Documents, encoded: Encoded, origins: Origins, keep: npt.NDArray[np.bool_]
    ) -> npt.NDArray[np.bool_]:
        """Which documents the filter takes; of those that are kept so far it counts the others, or refuses them."""
        selected = where.select(text_tokens=encoded.lengths, answer_tokens=origins["answer_tokens"])
        for number in np.flatnonzero(keep & selected.unknown):
            self._rejects.add(found.part, found.rows[number], no_answer())
        self._left_out += int((keep & ~selected.taken & ~selected.unknown).sum())
        return selected.taken

    def finish(self, sources: list[SourceFile]) -> list[Manifest]:
        """Completes the partial files and describes them, a dataset each.

        Raises:
            DataError: If no record had text, or too many had none.
        """
        written = [writer.finish() for writer in self.writers]
        documents = sum(len(one.pair.lengths) for one in written)
        if not documents and self._job.part is None:  # a shard may be that of an empty file
            names = ", ".join(source.path for source in sources)
            rejected = f"{self._rejects.by_reason.total():,} lines rejected"
            if self._left_out:
                raise DataError(
                    f"{names}: --where '{self._job.where}' takes none of {self._left_out:,} documents ({rejected}); "
                    "nothing was written"
                )
            raise DataError(f"{names}: no document has text ({rejected}); nothing was written")
        self._rejects.check(documents + self._left_out)
        return [self._manifest(one, sources, held_out=number > 0) for number, one in enumerate(written)]

    def _manifest(self, written: WrittenDataset, sources: list[SourceFile], *, held_out: bool) -> Manifest:
        job, tokenizer, pair = self._job, self._tokenizer, written.pair
        rejected = {} if held_out else dict(sorted(self._rejects.by_reason.items()))
        return Manifest(
            documents=len(pair.lengths),
            tokens=int(pair.lengths.sum(dtype=np.int64)),
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
            append_eod=job.append_eod,
            eod_id=tokenizer.eod_id,
            text_key=job.text_key,
            adapter=job.adapter,
            where=str(job.where or ""),
            answer_rule=job.answer_rule.text if job.answer_rule else "",
            special_tokens=job.special_tokens,
            compat=job.compat,
            hold_out_percent=job.hold_out_percent,
            split="validation" if held_out else "train",
            tokenizer=TokenizerRecord(
                fingerprint=tokenizer.fingerprint,
                vocab_size=tokenizer.vocab_size,
                name=tokenizer_name(job.tokenizer),
            ),
            engine=EngineRecord(
                name=tokenizer.chosen.engine.name,
                version=tokenizer.chosen.engine.version,
                reason=tokenizer.chosen.reason,
                compared=self._check.compared,
            ),
            sources=sources,
            command=job.command,
            versions=_versions(),
            created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        )


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
