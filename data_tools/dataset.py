"""A tokenised dataset as it lies on the disk: one pair, or shards that are read one after another.

| at PREFIX                                  | is                                                            |
|--------------------------------------------|---------------------------------------------------------------|
| `PREFIX.manifest.json`                     | one pair                                                      |
| `PREFIX/plan.json`, `PREFIX/shard-00000…`  | the shards of `tokenize --shard-bytes`; whole when all are there |
| `PREFIX-00000…`, `PREFIX-00001…`           | pairs that were numbered by whoever made them                 |

Two of these at one PREFIX are refused. `PREFIX.validation` is a dataset like any other, with a plan.json of
its own. A shard may be empty: of an empty input file, or where none of its documents is held out.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from data_tools.errors import DataError
from data_tools.manifest import ChatRecord, Manifest, TokenizerRecord, check_files, manifest_path, read_manifest

PLAN_FORMAT_VERSION = 1
_NUMBER = re.compile(r"-\d{5,}(-of-\d{5,})?")


@dataclass(frozen=True)
class Shard:
    """One pair of a dataset.

    Attributes:
        prefix: PREFIX of its files.
        manifest: Which its files fit.
    """

    prefix: str
    manifest: Manifest


@dataclass(frozen=True)
class StoredDataset:
    """A finished dataset whose files fit their manifests.

    Attributes:
        prefix: PREFIX of the whole.
        shards: In the order of the documents; at least one.
    """

    prefix: str
    shards: tuple[Shard, ...]

    @property
    def documents(self) -> int:
        """Documents of all shards."""
        return sum(shard.manifest.documents for shard in self.shards)

    @property
    def tokens(self) -> int:
        """Tokens of all shards."""
        return sum(shard.manifest.tokens for shard in self.shards)

    @property
    def tokens_by_domain(self) -> dict[str, int] | None:
        """Tokens of all shards by domain of the document; None where one of them does not say it."""
        sums: Counter[str] = Counter()
        for shard in self.shards:
            if shard.manifest.tokens_by_domain is None:
                return None
            for domain, tokens in shard.manifest.tokens_by_domain.items():
                sums[domain] += tokens
        return dict(sorted(sums.items()))

    @property
    def max_token_id(self) -> int:
        """Largest id of all shards."""
        return max(shard.manifest.max_token_id for shard in self.shards)

    @property
    def data_id(self) -> str:
        """Identity of the content: a pair's own; of more shards, the sha256 of theirs in order, a line each."""
        ids = [shard.manifest.data_id for shard in self.shards]
        return ids[0] if len(ids) == 1 else hashlib.sha256("\n".join(ids).encode()).hexdigest()

    @property
    def append_eod(self) -> bool:
        """Whether each document ends with the end-of-document id."""
        return self.shards[0].manifest.append_eod

    @property
    def tokenizer(self) -> TokenizerRecord:
        """What made the ids of all shards."""
        return self.shards[0].manifest.tokenizer

    @property
    def chat(self) -> ChatRecord | None:
        """Of conversations, the record of the first shard."""
        return self.shards[0].manifest.chat


def read_dataset(prefix: str | Path) -> StoredDataset:
    """Opens the dataset at a prefix. Reads manifests and index headers, no tokens.

    Raises:
        DataError: If there is none, it is not finished, its files do not fit their manifests, or its shards
            do not go together.
    """
    found = find_dataset(prefix)
    if found is None:
        read_manifest(prefix)  # says what is there and how to make it
        raise DataError(f"{manifest_path(prefix)}: came while it was looked for; run the command again")
    return found


def is_built(prefix: str | Path) -> bool:
    """Whether something stands at a prefix that claims to be a dataset, sound and finished or not."""
    return bool(_layouts(Path(prefix)))


def find_dataset(prefix: str | Path) -> StoredDataset | None:
    """The dataset at a prefix; None where nothing claims to be one.

    Raises:
        DataError: If one is there and not finished, damaged, or its shards do not go together.
    """
    path = Path(prefix)
    layouts = _layouts(path)
    if len(layouts) > 1:
        raise DataError(
            f"{prefix}: both {layouts[0]} and {layouts[1]} stand there; remove one, with what belongs to it"
        )
    if not layouts:
        return None
    if layouts[0].name == "plan.json":
        shards = _shards_of_plan(path)
    elif layouts[0] == manifest_path(path):
        shards = [_open(path)]
    else:
        shards = [_open(found) for found in _numbered(path)]
    _refuse_strangers(shards)
    return StoredDataset(str(prefix), tuple(shards))


def _layouts(prefix: Path) -> list[Path]:
    """A file of each way in which a dataset stands at a prefix."""
    numbered = [manifest_path(found) for found in _numbered(prefix)[:1]]
    return [path for path in (manifest_path(prefix), prefix / "plan.json") if path.is_file()] + numbered


def _numbered(prefix: Path) -> list[Path]:
    names = (path.name.removesuffix(".manifest.json") for path in prefix.parent.glob(f"{prefix.name}-*.manifest.json"))
    return [prefix.parent / name for name in sorted(names) if _NUMBER.fullmatch(name.removeprefix(prefix.name))]


def _open(prefix: Path) -> Shard:
    manifest = read_manifest(prefix)
    check_files(prefix, manifest)
    return Shard(str(prefix), manifest)


def shard_prefix(folder: Path, number: int) -> Path:
    """PREFIX of a shard of a plan."""
    return folder / f"shard-{number:05d}"


def read_plan(folder: Path) -> dict[str, Any]:
    """The fields of a folder's plan.json; `data_tools.shards` describes and writes them.

    Raises:
        DataError: If there is none, or it is damaged.
    """
    path = folder / "plan.json"
    try:
        fields = orjson.loads(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}; make it with tokenize --shard-bytes") from None
    except orjson.JSONDecodeError as error:
        raise DataError(f"{path}: not JSON ({error})") from None
    if not isinstance(fields, dict) or fields.get("format_version") != PLAN_FORMAT_VERSION:
        raise DataError(f"{path}: is no plan of format_version {PLAN_FORMAT_VERSION}")
    return fields


def open_shard(folder: Path, plan: dict[str, Any], number: int) -> Shard:
    """A finished shard of a plan.

    Raises:
        DataError: If it is not finished, is damaged, or was made by another plan.
    """
    shard = _open(shard_prefix(folder, number))
    part, source = plan["shards"][number], shard.manifest.sources[0]
    file = plan["files"][part["file"]]
    planned = {
        "first byte": part["start"],
        "bytes": (file["bytes"] if part["end"] is None else part["end"]) - part["start"],
        "time of change": file["mtime_ns"] if source.mtime_ns else 0,
        "tokenizer": plan["settings"]["tokenizer"],
    }
    made = {
        "first byte": source.start,
        "bytes": source.bytes,
        "time of change": source.mtime_ns,
        "tokenizer": shard.manifest.tokenizer.fingerprint,
    }
    for name, value in planned.items():
        if made[name] != value:
            raise DataError(
                f"{manifest_path(shard.prefix)}: was made from another plan: {name} of the input: it has "
                f"{made[name]}, {folder / 'plan.json'} says {value}; run tokenize with --overwrite"
            )
    return shard


def finished_shards(folder: Path, plan: dict[str, Any]) -> range:
    """The numbers of a plan's shards.

    Raises:
        DataError: If one is not finished, with how many.
    """
    numbers = range(len(plan["shards"]))
    missing = [number for number in numbers if not manifest_path(shard_prefix(folder, number)).is_file()]
    if missing:
        raise DataError(
            f"{folder}: {len(missing):,} of {len(numbers):,} shards are not finished, "
            f"{shard_prefix(folder, missing[0]).name} the first; run the "
            f"same tokenize command again (python -m data_tools status {folder} says why)"
        )
    return numbers


def _shards_of_plan(folder: Path) -> list[Shard]:
    plan = read_plan(folder)
    return [open_shard(folder, plan, number) for number in finished_shards(folder, plan)]


def _refuse_strangers(shards: Sequence[Shard]) -> None:
    """Shards are read as one, so they must mean the same."""
    first = shards[0]
    refuse_two_tokenizers(shards)
    for shard in shards[1:]:
        for name in ("append_eod", "eod_id", "dtype", "special_tokens", "split", "block_documents"):
            found, said = getattr(shard.manifest, name), getattr(first.manifest, name)
            if found != said:
                raise DataError(
                    f"{shard.prefix}: {name}: {found}, but {first.prefix} has {said}; tokenize one of them again"
                )
        if bool(shard.manifest.chat) != bool(first.manifest.chat):
            raise DataError(f"{shard.prefix} and {first.prefix}: one holds conversations, the other text; part them")


def refuse_two_tokenizers(shards: Sequence[Shard]) -> None:
    """Ids of two tokenizers mean different things; one blend reads one tokenizer's.

    Raises:
        DataError: Naming one dataset of each.
    """
    for shard in shards[1:]:
        one, other = shards[0].manifest.tokenizer, shard.manifest.tokenizer
        if one.fingerprint != other.fingerprint:
            raise DataError(
                f"{shard.prefix}: made with tokenizer {other.name!r} ({other.fingerprint[:12]}…), {shards[0].prefix} "
                f"with {one.name!r} ({one.fingerprint[:12]}…); tokenize one of them again"
            )
