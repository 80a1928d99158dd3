"""`blend_plan.json`: a blend with a budget, decided to the sample.

JSON, UTF-8, these fields:

| field            | meaning |
|------------------|---------|
| format_version   | version of this table |
| blend, file      | name of the blend, and the file that was read |
| requested_tokens | the budget that was asked for; null where the entries say it |
| sequence_length  | tokens of a sample |
| samples, tokens  | of all sources; tokens = samples x sequence_length |
| provisional      | whether a size is declared instead of counted |
| sources          | one for each source, see below |
| domain_shares    | share of each domain in `tokens`, by the sources' domains |
| notes            | a sentence for everything that was rounded, joined or left out |
| command, versions, created | the command line, the software, UTC in ISO 8601 |

and of a source:

| field            | meaning |
|------------------|---------|
| source, file     | name and file |
| domains          | share of each domain in it |
| has_tokens       | tokens that it has |
| declared         | whether that is what its file says, not what was counted |
| share            | of all samples, exact to the float |
| samples, tokens  | that it gives; samples sum to the whole's |
| epochs, max_epochs | passes over it that this makes, and that are permitted |
| min_epochs       | passes that must be read |
| shards           | prefix, data_id, has_tokens and samples of each dataset; their samples sum to the source's, in proportion to has_tokens. Empty where declared |
| validation       | the same of its held-out dataset; its samples too sum to the source's. Empty where it is not built |

Worked size: 640 tokens at sequence_length 16 are 40 samples; of shares 0.75 and 0.25 they are 30 and 10;
shards of 300 and 100 tokens give 23 and 7 of the 30 (22.5 and 7.5: the first gets the odd one).
"""  # noqa: E501 (a table row is one line)

from __future__ import annotations

import datetime
import platform
from collections.abc import Mapping
from fractions import Fraction
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import orjson
from pydantic import BaseModel, ConfigDict, ValidationError

from data_tools.atomic_files import write_atomically
from data_tools.blend_budget import resolve
from data_tools.blend_files import SourceFile, as_blend, read_blend
from data_tools.blend_plan import Allotment, split_samples
from data_tools.dataset import Shard, find_dataset, refuse_two_tokenizers
from data_tools.errors import DataError
from data_tools.source_sizes import SourceSize, source_size

FORMAT_VERSION = 1
FILE_NAME = "blend_plan.json"


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ShardPlan(_Part):
    """One dataset of a source."""

    prefix: str
    data_id: str
    has_tokens: int
    samples: int


class BlendSource(_Part):
    """What one source gives; the fields are described at the top of this file."""

    source: str
    file: str
    domains: dict[str, float]
    has_tokens: int
    declared: bool
    share: float
    samples: int
    tokens: int
    epochs: float
    max_epochs: float
    min_epochs: float = 0.0
    shards: tuple[ShardPlan, ...]
    validation: tuple[ShardPlan, ...]


class ResolvedBlend(_Part):
    """A blend with a budget; the fields are described at the top of this file."""

    format_version: int = FORMAT_VERSION
    blend: str
    file: str
    requested_tokens: int | None
    sequence_length: int
    samples: int
    tokens: int
    provisional: bool
    sources: tuple[BlendSource, ...]
    domain_shares: dict[str, float]
    notes: tuple[str, ...]
    command: str
    versions: dict[str, str]
    created: str


def plan_blend(
    path: str | Path, *, tokens: int | None, sequence_length: int, data_root: str | Path, command: str = ""
) -> ResolvedBlend:
    """Decides what each source of a blend file gives.

    Args:
        path: A blend file.
        tokens: The budget in processed tokens; None where the entries say it.
        sequence_length: Tokens of a sample.
        data_root: Folder that the sources' prefixes are relative to.
        command: The command line, for the record.

    Raises:
        RecipeError: A wrong file, or a source that cannot supply its share.
        DataError: A source that is neither built nor declared, is damaged, or does not fit the others.
    """
    file = read_blend(path)
    files = {source.recipe.source: source for source in file.sources()}
    sizes = {name: source_size(source.recipe, data_root) for name, source in files.items()}
    refuse_two_tokenizers(tuple(shard for size in sizes.values() for shard in size.shards))
    _refuse_one_content_twice(sizes)
    resolved = resolve(
        as_blend(file, {name: size.tokens for name, size in sizes.items()}),
        tokens=tokens,
        sequence_length=sequence_length,
    )
    sources = tuple(
        _source(files[allotment.source], allotment, sizes[allotment.source], sequence_length, data_root)
        for allotment in resolved.allotments
    )
    unread = [
        f"shard {shard.prefix} is too small for a sample and gives none."
        for source in sources
        for shard in source.shards
        if not shard.samples
    ]
    return ResolvedBlend(
        blend=file.recipe.blend,
        file=file.path,
        requested_tokens=tokens,
        sequence_length=sequence_length,
        samples=resolved.total_samples,
        tokens=resolved.total_samples * sequence_length,
        provisional=any(source.declared for source in sources),
        sources=sources,
        domain_shares=domain_shares({source.source: source.domains for source in sources}, resolved.allotments),
        notes=(*resolved.notes, *unread),
        command=command,
        versions=_versions(),
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    )


def _source(
    file: SourceFile, allotment: Allotment, size: SourceSize, sequence_length: int, data_root: str | Path
) -> BlendSource:
    tokens = allotment.samples * sequence_length
    held_out = find_dataset(Path(data_root) / file.recipe.validation_prefix)
    return BlendSource(
        source=allotment.source,
        file=file.path,
        domains=file.recipe.domains(),
        has_tokens=size.tokens,
        declared=not size.shards,
        share=float(allotment.share),
        samples=allotment.samples,
        tokens=tokens,
        epochs=tokens / size.tokens,
        max_epochs=allotment.max_epochs,
        min_epochs=allotment.min_epochs,
        shards=_spread(size.shards, allotment.samples),
        validation=_spread(held_out.shards, allotment.samples) if held_out else (),
    )


def _spread(shards: tuple[Shard, ...], samples: int) -> tuple[ShardPlan, ...]:
    """A source's samples over its shards, in proportion to their tokens."""
    tokens = [Fraction(shard.manifest.tokens) for shard in shards]
    counts = split_samples(tokens, samples) if any(tokens) else [0] * len(tokens)
    return tuple(
        ShardPlan(prefix=shard.prefix, data_id=shard.manifest.data_id, has_tokens=shard.manifest.tokens, samples=count)
        for shard, count in zip(shards, counts, strict=True)
    )


def domain_shares(domains: Mapping[str, Mapping[str, float]], allotments: tuple[Allotment, ...]) -> dict[str, float]:
    """The share of each domain in all samples, largest first.

    Args:
        domains: By source, the share of each domain in it.
        allotments: What each source gives.
    """
    total = sum(allotment.samples for allotment in allotments)
    found: dict[str, float] = {}
    for allotment in allotments:
        for domain, share in domains[allotment.source].items():
            found[domain] = found.get(domain, 0.0) + share * allotment.samples / total
    return dict(sorted(found.items(), key=lambda item: (-item[1], item[0])))


def _refuse_one_content_twice(sizes: Mapping[str, SourceSize]) -> None:
    seen: dict[str, str] = {}
    for size in sizes.values():
        for shard in size.shards:
            first = seen.setdefault(shard.manifest.data_id, shard.prefix)
            if first != shard.prefix:
                raise DataError(
                    f"{shard.prefix}: holds the same tokens as {first}, which would be read twice; drop one"
                )


def _versions() -> dict[str, str]:
    try:
        ours = version("megatron-ext")
    except PackageNotFoundError:
        ours = "not installed"
    return {"megatron-ext": ours, "python": platform.python_version()}


def changes_of_plan(folder: Path, plan: ResolvedBlend) -> list[str]:
    """What the plan in a folder says otherwise than this one, a line each; none where there is no plan.

    Command, versions and time decide nothing and are passed over.

    Raises:
        DataError: If what stands there is no plan.
    """
    path = folder / FILE_NAME
    if not path.exists():
        return []
    try:
        there = ResolvedBlend.model_validate_json(path.read_bytes()).model_dump()
    except ValidationError:
        raise DataError(
            f"{path}: is no blend plan of format {FORMAT_VERSION}; give --overwrite, or another --out"
        ) from None
    made = plan.model_dump(exclude={"command", "versions", "created"})
    names = [name for name, value in made.items() if there[name] != value]
    nested = {"sources": "other sources, sizes or shares", "domain_shares": "other shares", "notes": "other notes"}
    return [
        f"{name}: {nested[name]}" if name in nested else f"{name}: it has {there[name]}, asked for {made[name]}"
        for name in names
    ]


def write_plan(folder: Path, plan: ResolvedBlend) -> Path:
    """Writes `blend_plan.json` into a folder, whole or not at all."""
    path = folder / FILE_NAME
    options = orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE
    write_atomically(path, orjson.dumps(plan.model_dump(mode="json"), option=options))
    return path
