"""What a source has: counted from the manifests of its datasets, or declared until they are built.

A source's `prefix` is one dataset, or, where none stands there, its shards `PREFIX-00000`, `PREFIX-00001`, ….
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from data_tools.errors import DataError
from data_tools.manifest import Manifest, check_files, manifest_path, read_manifest
from data_tools.schema import SourceRecipe

_SHARD = re.compile(r"-\d{5,}(-of-\d{5,})?")


@dataclass(frozen=True)
class Shard:
    """One dataset of a source."""

    prefix: str
    manifest: Manifest


@dataclass(frozen=True)
class SourceSize:
    """Tokens of a source.

    Attributes:
        tokens: Of all shards, or as declared.
        shards: The datasets; empty where the size is declared.
    """

    tokens: int
    shards: tuple[Shard, ...]


def source_size(source: SourceRecipe, data_root: str | Path) -> SourceSize:
    """The size of a source at this site.

    Args:
        source: What its file says.
        data_root: Folder that its prefixes are relative to.

    Raises:
        DataError: It is neither built nor declared, damaged, or its shards were made by different tokenizers.
    """
    prefix = Path(data_root) / source.prefix
    shards = find_shards(prefix)
    if shards:
        refuse_two_tokenizers(shards)
        return SourceSize(sum(shard.manifest.tokens for shard in shards), shards)
    if source.declared_tokens is not None:
        return SourceSize(source.declared_tokens, ())
    build = f" ({source.build})" if source.build else ""
    raise DataError(
        f"{manifest_path(prefix)}: source {source.source!r} is not built yet; build it{build}, name its folder with "
        "--data-root, or write declared_tokens into its file"
    )


def find_shards(prefix: Path) -> tuple[Shard, ...]:
    """The finished datasets at a prefix, in order; empty where there is none.

    Raises:
        DataError: One whose files do not agree with its manifest.
    """
    prefixes = [str(prefix)] if manifest_path(prefix).is_file() else _numbered(prefix)
    return tuple(_open_shard(found) for found in prefixes)


def _numbered(prefix: Path) -> list[str]:
    names = (path.name.removesuffix(".manifest.json") for path in prefix.parent.glob(f"{prefix.name}-*.manifest.json"))
    return [str(prefix.parent / name) for name in sorted(names) if _SHARD.fullmatch(name.removeprefix(prefix.name))]


def _open_shard(prefix: str) -> Shard:
    manifest = read_manifest(prefix)
    check_files(prefix, manifest)
    return Shard(prefix, manifest)


def refuse_two_tokenizers(shards: tuple[Shard, ...]) -> None:
    """Ids of two tokenizers mean different things; one blend reads one tokenizer's.

    Raises:
        DataError: Naming one dataset of each.
    """
    first = shards[0] if shards else None
    for shard in shards:
        assert first is not None, "there is a first of some"
        one, other = first.manifest.tokenizer, shard.manifest.tokenizer
        if one.fingerprint != other.fingerprint:
            raise DataError(
                f"{shard.prefix}: made with tokenizer {other.name!r} ({other.fingerprint[:12]}…), {first.prefix} with "
                f"{one.name!r} ({one.fingerprint[:12]}…); tokenize one of them again"
            )
