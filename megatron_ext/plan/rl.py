"""What an rl stage reads, samples and learns from, counted before it runs."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from data_tools.chat_template_files import SHIPPED_TEMPLATE, template_source
from data_tools.errors import DataError
from data_tools.quantities import format_exact
from data_tools.tokenizer import TokenizerFacts
from megatron_ext.plan.datasets import read_tokenizer, tokenizer_folder
from megatron_ext.plan.stage_plan import DataPlan, RlPlan, RlSource, SourcePlan, StagePlan
from megatron_ext.recipe.load import LoadedRecipe
from megatron_ext.recipe.locate import shown
from megatron_ext.recipe.problems import Problems
from megatron_ext.recipe.schema import PromptSource, RlRecipe

if TYPE_CHECKING:  # what reads prompts is heavy, and a plan of declared ones needs none of it
    from megatron_ext.plan.rl_prompts import PromptSet, SourcePrompts


class PromptStage(NamedTuple):
    """What an rl stage reads, decided before its steps are."""

    size: int  # prompts of the set
    data: DataPlan
    rl: RlPlan


def plan_rl(
    loaded: LoadedRecipe, giver: StagePlan | None, roundings: list[str], *, may_be_provisional: bool
) -> PromptStage:
    """Reads the prompts of a stage, or takes what is declared of them.

    Args:
        loaded: What was asked, of stage rl.
        giver: The stage that gives the weights, whose chat template is taken; None while nobody has named it.
        roundings: Takes a sentence for everything that is left out.
        may_be_provisional: Whether declared numbers may stand for files that are not there yet.

    Raises:
        DataError: Prompts that are missing, damaged, too long, too few, or cannot be judged.
    """
    options = _options(loaded)
    missing = [source for source in options.prompts if not _path(loaded, source.file).is_file()]
    declared = bool(missing) and may_be_provisional and all(source.declared_prompts for source in missing)
    problems = Problems()
    tokenizer = read_tokenizer(loaded, problems, may_be_missing=declared)
    for absent in [] if declared else missing:
        _refuse_missing(loaded, absent, problems)
    problems.raise_data_error()
    if declared:
        return _declared_stage(loaded, options, tokenizer, roundings)
    from megatron_ext.plan.rl_prompts import read_prompt_set

    template, template_file = _chat_template(loaded, giver, roundings)
    found = read_prompt_set(
        options,
        data_root=str(loaded.site.data_root),
        tokenizer=tokenizer_folder(loaded),
        template=template,
        seed=loaded.recipe.seed,
    )
    for index, source in enumerate(found.sources):
        _check_source(loaded, index, source, options, problems, roundings)
    problems.raise_data_error()
    rl = RlPlan(
        options=options,
        data_root=str(loaded.site.data_root),
        max_sampled_tokens=loaded.recipe.budget.tokens,
        sources=tuple(_rl_source(asked, got) for asked, got in zip(options.prompts, found.sources, strict=True)),
        chat_template=str(template_file),
        chat_template_sha256=hashlib.sha256(template.encode()).hexdigest(),
    )
    return PromptStage(found.size, _data_plan(loaded, tokenizer, options, found), rl)


def has_prompts(loaded: LoadedRecipe) -> bool:
    """Whether every source's file is there or declared, so that the stage can be planned."""
    return all(source.declared_prompts or _path(loaded, source.file).is_file() for source in _options(loaded).prompts)


def _options(loaded: LoadedRecipe) -> RlRecipe:
    assert loaded.recipe.rl is not None, "a recipe of stage rl has its section"
    return loaded.recipe.rl


def _path(loaded: LoadedRecipe, file: str) -> Path:
    return Path(loaded.site.data_root) / file


def _key(loaded: LoadedRecipe, source: PromptSource, name: str) -> tuple[str, str, int, str]:
    return ("rl", "prompts", _options(loaded).prompts.index(source), name)


def _refuse_missing(loaded: LoadedRecipe, source: PromptSource, problems: Problems) -> None:
    path = _path(loaded, source.file)
    remedy = source.build or "python -m data_tools sample --only rl --out FOLDER gives prompts to begin with"
    if source.available_at:
        remedy = f"{source.available_at}; or {remedy}" if source.build else source.available_at
    key = _key(loaded, source, "file")
    problems.add(loaded.origin(key), key, f"{path}: no such file of prompts; get it: {remedy}")


def _chat_template(loaded: LoadedRecipe, giver: StagePlan | None, roundings: list[str]) -> tuple[str, Path]:
    """Text and file of the template in which the weights learned to answer; else the tokenizer's, else ours.

    Raises:
        DataError: The file is not the one that the weights were trained with.
    """
    taught = giver.sft or giver.rl if giver is not None else None
    if taught is not None and taught.chat_template:
        path = Path(taught.chat_template)
        text, file = template_source(path.parent, None if path.name == "tokenizer_config.json" else path)
        if hashlib.sha256(text.encode()).hexdigest() != taught.chat_template_sha256:
            raise DataError(
                f"{path}: is not the chat template that {giver.stage_id if giver else ''} was trained with "
                f"({taught.chat_template_sha256[:12]}…); put that one back"
            )
        return text, file
    try:
        text, file = template_source(Path(tokenizer_folder(loaded)), None)
    except DataError:
        text, file = SHIPPED_TEMPLATE.read_text(encoding="utf-8"), SHIPPED_TEMPLATE
    if giver is not None:
        roundings.append(
            f"the weights of {giver.stage_id} were trained with no chat template: prompts stand in {file}."
        )
    return text, file


def _check_source(
    loaded: LoadedRecipe,
    index: int,
    source: SourcePrompts,
    options: RlRecipe,
    problems: Problems,
    roundings: list[str],
) -> None:
    """Refuses what the recipe does not permit to leave out, and sources that give nothing."""
    asked = options.prompts[index]
    unusable = sum(source.unusable.values())
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in sorted(source.unusable.items()))
    too_long = f"have more than max_prompt_tokens {options.max_prompt_tokens:,}"
    left_out = {
        "overlong_prompts": (source.overlong, too_long, source.first_overlong),
        "unusable_prompts": (unusable, f"cannot be used ({reasons})", source.first_unusable),
    }
    if source.other_domains:
        names = ", ".join(repr(name) for name in sorted(source.other_domains)[:5])
        roundings.append(
            f"source {asked.source}: {format_exact(sum(source.other_domains.values()))} prompts name a domain that is "
            f"none of code, general, math, science ({names}); they count as {asked.domain}."
        )
    for name, (count, what, first) in left_out.items():
        if not count:
            continue
        if getattr(options, name) == "drop":
            roundings.append(f"source {asked.source}: {format_exact(count)} prompts {what} and are left out.")
            continue
        key = ("rl", name)
        message = (
            f"error, and {count:,} prompts of source {asked.source!r} {what}; first: {first}; "
            "write drop to leave them out" + (", or raise max_prompt_tokens" if name == "overlong_prompts" else "")
        )
        problems.add(loaded.origin(key), key, message)
    if problems.found:
        return
    place = ("rl", "prompts", index)
    if not source.rows:
        file = _path(loaded, asked.file)
        families = f" of families {', '.join(asked.families)}" if asked.families else ""
        message = (
            f"{file}: no prompt{families} is left to practise on: of {source.usable:,} that can be judged, "
            f"{source.overlong:,} are longer than max_prompt_tokens {options.max_prompt_tokens:,} and "
            f"{len(source.held_out):,} are held out; raise max_prompt_tokens, or lower validation_prompts"
        )
        problems.add(loaded.origin((*place, "file")), (*place, "file"), message)
    elif not source.held_out:
        message = f"{_path(loaded, asked.validation_file or asked.file)}: no prompt to validate with; hold out some"
        problems.add(loaded.origin((*place, "validation_file")), (*place, "validation_file"), message)
    if source.shared:
        message = f"{source.shared:,} of its prompts stand in {asked.file} too; hold out others"
        problems.add(loaded.origin((*place, "validation_file")), (*place, "validation_file"), message)
    if asked.prompts is not None and len(source.rows) < asked.prompts:
        message = f"{asked.prompts:,}, and {len(source.rows):,} are there; lower it"
        problems.add(loaded.origin((*place, "prompts")), (*place, "prompts"), message)


def _rl_source(asked: PromptSource, source: SourcePrompts) -> RlSource:
    lengths = [len(row.ids) for row in source.rows]
    domains = sorted({row.domain for row in source.rows})
    return RlSource(
        source=asked.source,
        file_sha256=source.file_sha256,
        prompts=len(source.rows),
        usable=source.usable,
        held_out=len(source.held_out),
        overlong=source.overlong,
        unusable=sum(source.unusable.values()),
        prompt_tokens=sum(lengths),
        longest_prompt=max(lengths),
        domains=tuple((domain, sum(row.domain == domain for row in source.rows)) for domain in domains),
    )


def _data_plan(
    loaded: LoadedRecipe, tokenizer: TokenizerFacts | None, options: RlRecipe, found: PromptSet | None
) -> DataPlan:
    sizes = [source.declared_prompts or 0 for source in options.prompts]
    if found is not None:
        sizes = [len(source.rows) for source in found.sources]
    sources = []
    for index, (asked, size) in enumerate(zip(options.prompts, sizes, strict=True)):
        got = found.sources[index] if found is not None else None
        declared_id = f"declared-{asked.source}-{size}"
        sources.append(
            SourcePlan(
                source=asked.source,
                domain=asked.domain,
                prefix=shown(_path(loaded, asked.file)),
                validation_prefix=shown(_path(loaded, asked.validation_file or asked.file)),
                data_id=got.data_id if got else declared_id,
                validation_data_id=got.validation_data_id if got else declared_id,
                documents=size,
                tokens=sum(len(row.ids) for row in got.rows) if got else size * options.max_prompt_tokens,
                share=size / sum(sizes),
                samples=0,  # known with the steps: `with_budget`
                epochs=0.0,
                max_epochs=options.max_epochs,
                is_declared=got is None,
                licence=asked.licence,
                revision=asked.revision,
                available_at=asked.available_at,
            )
        )
    return DataPlan(
        tokenizer=tokenizer_folder(loaded),
        tokenizer_fingerprint=tokenizer.fingerprint if tokenizer is not None else "",
        tokenizer_vocab_size=tokenizer.vocab_size if tokenizer is not None else loaded.recipe.model.vocab_size,
        eod_id=tokenizer.eod_id if tokenizer is not None else -1,
        sources=tuple(sources),
        document_isolation="full",
    )


def with_budget(data: DataPlan, *, prompts: int) -> DataPlan:
    """The data with what the whole stage draws of each source: about its part of every pass.

    Args:
        data: Of an rl stage.
        prompts: That its steps sample.
    """
    size = sum(source.documents for source in data.sources)
    updated = [
        source.model_copy(update={"samples": math.floor(prompts * source.documents / size), "epochs": prompts / size})
        for source in data.sources
    ]
    return data.model_copy(update={"sources": tuple(updated)})


def _declared_stage(
    loaded: LoadedRecipe, options: RlRecipe, tokenizer: TokenizerFacts | None, roundings: list[str]
) -> PromptStage:
    data = _data_plan(loaded, tokenizer, options, None)
    roundings.append("sizes are declared: which prompts are too long or cannot be judged is not known.")
    sources = tuple(
        RlSource(source=source.source, prompts=source.declared_prompts or 0, held_out=source.validation_prompts)
        for source in options.prompts
    )
    rl = RlPlan(
        options=options,
        data_root=str(loaded.site.data_root),
        max_sampled_tokens=loaded.recipe.budget.tokens,
        sources=sources,
        chat_template="",
        chat_template_sha256="",
    )
    return PromptStage(sum(source.documents for source in data.sources), data, rl)
