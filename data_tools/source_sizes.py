"""What a source has: counted from the manifests of its dataset, or declared until that is built."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from data_tools.dataset import Shard, find_dataset
from data_tools.errors import DataError
from data_tools.manifest import manifest_path
from data_tools.schema import SourceRecipe


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
    if dataset := find_dataset(prefix):
        return SourceSize(dataset.tokens, dataset.shards)
    if source.declared_tokens is not None:
        return SourceSize(source.declared_tokens, ())
    build = f" ({source.build})" if source.build else ""
    raise DataError(
        f"{manifest_path(prefix)}: source {source.source!r} is not built yet; build it{build}, name its folder with "
        "--data-root, or write declared_tokens into its file"
    )
