"""The prompt set of an rl stage: which prompts of each source are practised on, and which are held out.

A source's prompts are those of its file that a scorer can judge and that fit `max_prompt_tokens`, less the held-out
ones. Held out are the first `validation_prompts` in the order of their ids, of `validation_file` or else of the file
itself: the same ones whatever the seed. How many of the rest are in the set is written (`prompts`, `share`) or all;
which ones, the seed decides. A prompt that several sources have is the first one's, and what one holds out is in the
set of none; both are counted as unusable, with permission. One pass over all sources' prompts is an epoch.
"""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from data_tools.permutation import keyed_permutation
from data_tools.prompts import PromptEncoder, PromptFile, PromptRow, content_id, read_prompts
from megatron_ext.recipe.schema import PromptSource, RlRecipe


@dataclass(frozen=True)
class SourcePrompts:
    """What one source gives.

    Attributes:
        rows: In the set, in the order of the file.
        held_out: For validation.
        usable: Prompts of the file, the held-out ones among them where they are its own.
        overlong: Prompts left out because they are too long, held-out ones included.
        unusable: Lines left out, by reason.
        first_overlong: Place and length of the first of the former; "" where there is none.
        first_unusable: Place and reason of the first of the latter; "" where there is none.
        other_domains: Prompts by the domain that they name, where it is none of ours.
        shared: Held-out prompts that the file has too.
        file_sha256: Of the file.
        data_id: Identity of `rows`.
        validation_data_id: Identity of `held_out`.
    """

    rows: tuple[PromptRow, ...]
    held_out: tuple[PromptRow, ...]
    usable: int
    overlong: int
    unusable: Mapping[str, int]
    first_overlong: str
    first_unusable: str
    other_domains: Mapping[str, int]
    shared: int
    file_sha256: str
    data_id: str
    validation_data_id: str


@dataclass(frozen=True)
class PromptSet:
    """The prompts of a stage.

    Attributes:
        sources: In the order of the recipe.
        stop_ids: Ids at which an answer ends.
    """

    sources: tuple[SourcePrompts, ...]
    stop_ids: frozenset[int]

    @property
    def size(self) -> int:
        """Prompts of one epoch."""
        return sum(len(source.rows) for source in self.sources)


def read_prompt_set(options: RlRecipe, *, data_root: str, tokenizer: str, template: str, seed: int) -> PromptSet:
    """Reads, counts, and chooses.

    Args:
        options: Of the stage.
        data_root: Folder that the files are relative to.
        tokenizer: Folder of the tokenizer.
        template: Text of the chat template.
        seed: Of the choice.

    Raises:
        DataError: A file is missing or of another schema.
    """
    files = [Path(data_root) / file for one in options.prompts for file in (one.file, one.validation_file) if file]
    states = tuple((file.stat().st_size, file.stat().st_mtime_ns) if file.exists() else () for file in files)
    return _read(options, data_root, tokenizer, template, seed, states)


@functools.lru_cache(maxsize=2)  # a run plans and then reads
def _read(
    options: RlRecipe, data_root: str, tokenizer: str, template: str, seed: int, states: tuple[tuple[int, ...], ...]
) -> PromptSet:
    candidates, stop_ids = _readable(options, data_root, tokenizer, template, states)
    sizes = _set_sizes(options.prompts, [len(found.rows) for found in candidates])
    chosen = tuple(_chosen(found, size, seed) for found, size in zip(candidates, sizes, strict=True))
    return PromptSet(chosen, stop_ids)


@functools.lru_cache(maxsize=2)  # the replicates of a study differ in the seed alone, and encoding takes longest
def _readable(
    options: RlRecipe, data_root: str, tokenizer: str, template: str, states: tuple[tuple[int, ...], ...]
) -> tuple[list[SourcePrompts], frozenset[int]]:
    encoder = PromptEncoder(tokenizer, template)
    sources = [_candidates(source, options, Path(data_root), encoder) for source in options.prompts]
    return _apart(sources), encoder.stop_ids


def _candidates(source: PromptSource, options: RlRecipe, root: Path, encoder: PromptEncoder) -> SourcePrompts:
    """All prompts that may be chosen, and the held-out ones."""

    def read(file: str) -> PromptFile:
        path, families = root / file, source.families
        return read_prompts(path, encoder, domain=source.domain, scorer=source.scorer, families=families)

    file = read(source.file)
    other = read(source.validation_file) if source.validation_file is not None else file
    fitting, held_out_fitting = (_fitting(one.rows, options) for one in (file, other))
    held_out = tuple(sorted(held_out_fitting, key=lambda row: row.id)[: source.validation_prompts])
    ids = {row.id for row in held_out}
    rows = tuple(row for row in fitting if row.id not in ids)
    files = [file] if other is file else [file, other]
    paths = [root / name for name in (source.file, source.validation_file) if name]
    too_long = [
        f"{path}:{row.line}: {len(row.ids):,} tokens"
        for path, one in zip(paths, files, strict=False)
        for row in one.rows
        if len(row.ids) > options.max_prompt_tokens
    ]
    unusable = {reason: sum(one.unusable.get(reason, 0) for one in files) for one in files for reason in one.unusable}
    others = {name: sum(one.other_domains.get(name, 0) for one in files) for one in files for name in one.other_domains}
    return SourcePrompts(
        rows=rows,
        held_out=held_out,
        usable=len(file.rows),
        overlong=len(too_long),
        unusable=unusable,
        first_overlong=next(iter(too_long), ""),
        first_unusable=next((one.first_unusable for one in files if one.first_unusable), ""),
        other_domains=others,
        shared=0 if other is file else len(fitting) - len(rows),
        file_sha256=file.sha256,
        data_id="",
        validation_data_id=content_id(held_out),
    )


def _apart(sources: Sequence[SourcePrompts]) -> list[SourcePrompts]:
    """Leaves a prompt of several sources to the first, and one that any of them holds out to none."""
    held_out = {row.id for source in sources for row in source.held_out}
    taken: set[str] = set()
    apart = []
    for source in sources:
        reasons = {
            row.id: "held out by another source" if row.id in held_out else "in another source already"
            for row in source.rows
            if row.id in held_out | taken
        }
        rows = tuple(row for row in source.rows if row.id not in reasons)
        taken |= {row.id for row in rows}
        first = next((row for row in source.rows if row.id in reasons), None)
        place = f"line {first.line} of its file is {reasons[first.id]}" if first is not None else ""
        apart.append(
            replace(
                source,
                rows=rows,
                unusable={**source.unusable, **Counter(reasons.values())},
                first_unusable=source.first_unusable or place,
            )
        )
    return apart


def _fitting(rows: Sequence[PromptRow], options: RlRecipe) -> list[PromptRow]:
    return [row for row in rows if len(row.ids) <= options.max_prompt_tokens]


def _set_sizes(sources: Sequence[PromptSource], have: Sequence[int]) -> list[int]:
    """Prompts of each source in the set; a source that has fewer than is written gives what it has.

    >>> a, b = (PromptSource(source=name, file="f", share=share) for name, share in (("a", 0.75), ("b", 0.25)))
    >>> _set_sizes([a, b], [300, 1000]), _set_sizes([a, b], [900, 20])
    ([300, 100], [60, 20])
    """
    if sources[0].share is None:
        return [min(source.prompts or count, count) for source, count in zip(sources, have, strict=True)]
    shares = [source.share or 0.0 for source in sources]
    whole = min(count / share for count, share in zip(have, shares, strict=True))
    return [min(count, math.floor(whole * share + 1e-9)) for count, share in zip(have, shares, strict=True)]


def _chosen(found: SourcePrompts, size: int, seed: int) -> SourcePrompts:
    order = keyed_permutation(len(found.rows), key=f"prompts {seed} {content_id(found.rows)}")
    rows = tuple(found.rows[place] for place in sorted(order[:size].tolist()))
    return replace(found, rows=rows, data_id=content_id(rows))
