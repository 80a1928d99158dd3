"""`PREFIX.manifest.json`: what a tokenised dataset holds, and the proof that it is finished.

The manifest is written last. A `PREFIX.bin/.idx` pair without one is not a dataset: it may be half
of one. JSON, UTF-8, these fields:

| field                | meaning |
|----------------------|---------|
| format_version       | version of this table; another version is refused |
| documents            | documents in the pair; each is one sequence |
| tokens               | tokens in the pair, end-of-document tokens included |
| tokens_by_domain     | the same by domain of the document; sums to `tokens`. Null where nobody has counted |
| rejected             | input records that are not in the pair |
| rejected_by_reason   | the same, by reason; sums to `rejected` |
| left_out             | documents that --where leaves out; no rejects |
| bin_bytes, idx_bytes | sizes of the two files; bin_bytes = tokens x 2 (uint16) or 4 (int32) |
| bin_sha256, idx_sha256 | sha256 of the two files |
| origin_bytes, origin_sha256 | the same of `.origin` (see `origin.py`); null where there is none |
| dtype                | type of one token on disk |
| max_token_id         | largest id in the pair; must be below the vocabulary of whoever reads it |
| block_documents      | documents of one block: 65,536 |
| tokens_per_block     | tokens of each run of block_documents documents; sums to `tokens` |
| append_eod, eod_id   | whether each document ends with the end-of-document id, and that id |
| text_key             | key of the records that was read |
| adapter              | what read the records |
| where, answer_rule   | which documents were taken, and where the answer starts; empty: all, as the adapter says |
| special_tokens       | what text that spells a control token gave: literal, parse, reject |
| compat               | `megatron`, or empty |
| split, hold_out_percent | train or validation; part of the documents that is held out, by the hash of their id |
| engine               | name, version, reason (why not the fast one), compared (documents encoded by both) |
| tokenizer            | fingerprint, vocab_size, name (its folder's) |
| sources              | of each input file, in order: path, bytes, sha256, start (above 0 in shards), and
|                      | mtime_ns, ctime_ns, inode, by which `file_state.py` knows it again |
| chat                 | of conversations: see `ChatRecord`; null for text |
| parts                | of a merged dataset: the data id of each part, in order; else empty |
| command              | the command line |
| versions             | of the software that wrote it |
| created              | UTC, ISO 8601 |

Worked size: 3 documents of 5, 1 and 7 tokens in uint16 are 13 tokens, bin_bytes 26, and
idx_bytes 34 + 3*4 + 3*8 + 4*8 = 102.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path

from data_tools.atomic_files import beside, write_atomically
from data_tools.checked_record import BadField, CheckedRecord, Count, Size
from data_tools.errors import DataError
from data_tools.index_header import ITEM_BYTES, DTypeName, read_index_header
from data_tools.records import Domain

FORMAT_VERSION = 1
BLOCK_DOCUMENTS = 65_536


READER_VERSION = "2"
"""Raised when the same record would give other text."""
CHAT_VERSION = "4"
"""Raised when the same conversation would give other ids, another mask, or none."""


@dataclass(frozen=True, kw_only=True)
class SourceFile(CheckedRecord):
    """One input file, as it was when it was read."""

    path: str
    bytes: Count
    sha256: str
    mtime_ns: int = 0
    ctime_ns: int = 0
    inode: int = 0
    start: Count = 0


@dataclass(frozen=True, kw_only=True)
class TokenizerRecord(CheckedRecord):
    """The tokenizer that made the ids."""

    fingerprint: str
    vocab_size: Size
    name: str


@dataclass(frozen=True, kw_only=True)
class EngineRecord(CheckedRecord):
    """The library that made the ids.

    Attributes:
        name: gigatoken or tokenizers.
        version: Of it.
        reason: What gigatoken said when it refused the tokenizer; empty where it did not, or was not asked.
        compared: Documents that were encoded by both and compared.
    """

    name: str
    version: str
    reason: str = ""
    compared: Count = 0


@dataclass(frozen=True, kw_only=True)
class ChatRecord(CheckedRecord):
    """How conversations became tokens, and the `PREFIX.mask` beside them.

    Attributes:
        version: Of what makes ids and masks of a conversation.
        template: File of the chat template.
        template_sha256: Of the template's text.
        template_tokens: By name, the tokens of tokenizer_config.json that the template asks for.
        train_on: What of an assistant's turn is trained on.
        thinking: Which traces of thinking were kept.
        trained_tokens: Tokens that the mask marks.
        mask_bytes: Size of `PREFIX.mask`.
        mask_sha256: Hash of it, hex.
    """

    version: str
    template: str
    template_sha256: str
    template_tokens: dict[str, str] = field(default_factory=dict)
    train_on: list[str]
    thinking: str
    trained_tokens: Count
    mask_bytes: Count
    mask_sha256: str


@dataclass(frozen=True, kw_only=True)
class Manifest(CheckedRecord):
    """What a tokenised dataset holds; the fields are described at the top of this file."""

    format_version: int = FORMAT_VERSION
    documents: Count
    tokens: Count
    tokens_by_domain: dict[Domain, Count] | None = None
    rejected: Count
    rejected_by_reason: dict[str, int]
    left_out: Count = 0
    bin_bytes: Count
    idx_bytes: Count
    bin_sha256: str
    idx_sha256: str
    origin_bytes: int | None = None
    origin_sha256: str | None = None
    dtype: DTypeName
    max_token_id: Count
    block_documents: Size = BLOCK_DOCUMENTS
    tokens_per_block: list[int]
    append_eod: bool
    eod_id: Count
    text_key: str = "text"
    adapter: str = "text"
    where: str = ""
    answer_rule: str = ""
    special_tokens: str = "literal"
    compat: str = ""
    split: str = "train"
    hold_out_percent: float = 0.0
    engine: EngineRecord | None = None
    tokenizer: TokenizerRecord
    sources: list[SourceFile]
    chat: ChatRecord | None = None
    parts: list[str] = field(default_factory=list)
    command: str
    versions: dict[str, str]
    created: str

    def __post_init__(self) -> None:
        """Checks the fields; a manifest that contradicts itself was edited or damaged.

        Raises:
            BadField: If one does not fit, or a sum is not what it must be.
        """
        super().__post_init__()
        expected_bytes = self.tokens * ITEM_BYTES[self.dtype]
        if self.bin_bytes != expected_bytes:
            raise BadField(f"bin_bytes {self.bin_bytes} is not tokens x {ITEM_BYTES[self.dtype]} = {expected_bytes}")
        if sum(self.tokens_per_block) != self.tokens:
            raise BadField(f"tokens_per_block sums to {sum(self.tokens_per_block)}, tokens is {self.tokens}")
        by_domain = self.tokens_by_domain
        if by_domain is not None and sum(by_domain.values()) != self.tokens:
            raise BadField(f"tokens_by_domain sums to {sum(by_domain.values())}, tokens is {self.tokens}")
        if sum(self.rejected_by_reason.values()) != self.rejected:
            raise BadField(f"rejected_by_reason does not sum to rejected = {self.rejected}")

    @property
    def data_id(self) -> str:
        """Identity of the tokenised content: independent of path, time and machine."""
        parts = [self.bin_sha256, self.idx_sha256, self.tokenizer.fingerprint]
        parts += [self.chat.mask_sha256] if self.chat else []
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def manifest_path(prefix: str | Path) -> Path:
    """`PREFIX.manifest.json`."""
    return beside(prefix, ".manifest.json")


def read_manifest(prefix: str | Path) -> Manifest:
    """Reads the manifest of a finished dataset.

    Args:
        prefix: PREFIX of PREFIX.bin, PREFIX.idx and PREFIX.manifest.json.

    Raises:
        DataError: If there is none, it is malformed, contradicts itself, or has another format version.
    """
    path = manifest_path(prefix)
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        raise DataError(_absent(prefix, path)) from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None
    try:
        fields = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not JSON ({error}); tokenize it again with --overwrite") from None
    version = fields.get("format_version") if isinstance(fields, dict) else None
    if version != FORMAT_VERSION:
        raise DataError(
            f"{path}: format_version: {version!r} is not {FORMAT_VERSION}, the one read here; "
            "tokenize it again with --overwrite"
        )
    try:
        return Manifest.of(fields)
    except BadField as error:
        raise DataError(f"{path}: {error}; tokenize it again with --overwrite") from None


def _absent(prefix: str | Path, path: Path) -> str:
    remedy = f"make it with: python -m data_tools tokenize --input … --tokenizer … --output {prefix}"
    if beside(prefix, ".bin").exists():
        return f"{path}: no such file, so {prefix}.bin is not known to be finished; {remedy}"
    folder = Path(prefix) if Path(prefix).is_dir() else path.parent
    ends = len(".manifest.json")
    there = sorted(str(found)[:-ends] for found in folder.glob("*.manifest.json"))
    beside_it = f"; finished datasets there: {', '.join(there[:5])}{', …' if there[5:] else ''}" if there else ""
    return f"{path}: no such file{beside_it}; {remedy}"


def write_manifest(prefix: str | Path, manifest: Manifest) -> None:
    """Writes the manifest atomically. Call it last: from here on the dataset counts as finished."""
    import orjson

    content = orjson.dumps(manifest, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)
    write_atomically(manifest_path(prefix), content)


def check_files(prefix: str | Path, manifest: Manifest) -> None:
    """Checks cheaply that the pair is the one that the manifest describes: sizes and index header.

    It reads 34 bytes, no tokens: a changed token is found by the sha256 only.

    Raises:
        DataError: Naming the file and both numbers.
    """
    remedy = "the files were changed or only partly copied; copy all three again, or tokenize with --overwrite"
    sizes = [(".bin", manifest.bin_bytes), (".idx", manifest.idx_bytes)]
    sizes += [(".mask", manifest.chat.mask_bytes)] if manifest.chat else []
    sizes += [(".origin", manifest.origin_bytes)] if manifest.origin_bytes is not None else []
    for suffix, expected in sizes:
        path = beside(prefix, suffix)
        try:
            size = path.stat().st_size
        except OSError as error:
            raise DataError(f"{path}: {error.strerror}, but its manifest says {expected:,} bytes; {remedy}") from None
        if size != expected:
            raise DataError(f"{path}: has {size:,} bytes, its manifest says {expected:,}; {remedy}")
    path = beside(prefix, ".idx")
    header = read_index_header(path)
    for name, found, said in (
        ("dtype", header.dtype, manifest.dtype),
        ("documents", header.documents, manifest.documents),
        ("idx_bytes", header.idx_bytes, manifest.idx_bytes),
    ):
        if found != said:
            raise DataError(f"{path}: {name}: the index says {found}, its manifest says {said}; {remedy}")
