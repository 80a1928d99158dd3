"""Whether the data that a recipe asks for is there, fits, and suffices.

Reads manifests, file sizes and the tokenizer's JSON; no token is read here.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from data_tools.blend_plan import available_samples
from data_tools.errors import DataError
from data_tools.manifest import Manifest, check_files, manifest_path, read_manifest
from data_tools.strict_yaml import KeyPath
from data_tools.tokenizer import TokenizerFacts, describe
from megatron_ext.plan.blends import plan_blends
from megatron_ext.plan.stage_plan import BatchPlan, CadencePlan, DataPlan, ParentPlan, PhasePlan, SourcePlan
from megatron_ext.recipe.load import LoadedRecipe
from megatron_ext.recipe.locate import shown
from megatron_ext.recipe.problems import Problems

PREFIX_KEYS = ("prefix", "validation_prefix")


def tokenizer_folder(loaded: LoadedRecipe) -> str:
    """The tokenizer's folder at this site."""
    return shown(Path(loaded.site.data_root) / loaded.recipe.data.tokenizer)


def dataset_prefix(loaded: LoadedRecipe, index: int, key: str) -> str:
    """A source's dataset at this site; `key` is one of `PREFIX_KEYS`."""
    return shown(Path(loaded.site.data_root) / getattr(loaded.sources[index], key))


def is_source_built(loaded: LoadedRecipe, index: int) -> bool:
    """Whether a source's dataset and its held-out dataset are there, sound or not."""
    return all(manifest_path(dataset_prefix(loaded, index, key)).is_file() for key in PREFIX_KEYS)


def is_declared(loaded: LoadedRecipe, index: int) -> bool:
    """Whether a plan takes a source's size from its file, because the data is not built yet."""
    return loaded.sources[index].declared_tokens is not None and not is_source_built(loaded, index)


def has_sizes(loaded: LoadedRecipe) -> bool:
    """Whether every source is built or declared, so that the stage can be planned."""
    indices = range(len(loaded.sources))
    declared = [is_declared(loaded, index) for index in indices]
    is_known = all(declared[index] or is_source_built(loaded, index) for index in indices)
    return is_known and (any(declared) or Path(tokenizer_folder(loaded)).is_dir())


def plan_data(
    loaded: LoadedRecipe,
    batch: BatchPlan,
    cadence: CadencePlan,
    roundings: list[str],
    *,
    phase_samples: Sequence[int],
    parent: ParentPlan | None = None,
    may_be_provisional: bool = False,
) -> DataPlan:
    """Decides what each source gives to the stage.

    Args:
        loaded: What was asked.
        batch: How many samples the stage reads.
        cadence: How many held-out samples a validation reads.
        roundings: Takes a sentence for each source that gives fewer than was asked.
        phase_samples: Samples of each phase.
        parent: What the stages before have read.
        may_be_provisional: Whether `declared_tokens` may stand for data that is not built yet. Then a missing
            tokenizer is no problem either: nothing can be made with it before there is one.

    Raises:
        DataError: Everything that is missing, damaged, or does not fit the recipe.
        RecipeError: A share that needs more passes than `max_epochs` allows.
    """
    problems = Problems()
    declared = [may_be_provisional and is_declared(loaded, index) for index in range(len(loaded.sources))]
    tokenizer = _read_tokenizer(loaded, problems, may_be_missing=any(declared))
    manifests = [
        dict.fromkeys(PREFIX_KEYS)
        if declared[index]
        else {key: _read_dataset(loaded, index, key, tokenizer, problems) for key in PREFIX_KEYS}
        for index in range(len(loaded.sources))
    ]
    _refuse_one_content_twice(loaded, [pair["prefix"] for pair in manifests], problems)
    _refuse_training_data_as_held_out(loaded, manifests, problems)
    problems.raise_data_error()
    sizes = [_size(loaded, index, pair["prefix"]) for index, pair in enumerate(manifests)]
    read = _read_before(loaded, [data_id for _, data_id in sizes], parent)
    names = [source.source for source in loaded.sources]
    phases = plan_blends(
        loaded,
        batch,
        roundings,
        phase_samples=phase_samples,
        tokens={name: tokens for name, (tokens, _) in zip(names, sizes, strict=True)},
        read=read,
    )
    sources = tuple(
        _plan_source(loaded, index, pair, phases, batch, samples_before=read[names[index]])
        for index, pair in enumerate(manifests)
    )
    for source, pair in zip(sources, manifests, strict=True):
        if (held_out := pair["validation_prefix"]) is not None:
            _note_short_held_out(source, held_out, batch, cadence, roundings)
    return DataPlan(
        tokenizer=tokenizer_folder(loaded),
        tokenizer_fingerprint=tokenizer.fingerprint if tokenizer is not None else "",
        tokenizer_vocab_size=tokenizer.vocab_size if tokenizer is not None else loaded.recipe.model.vocab_size,
        eod_id=tokenizer.eod_id if tokenizer is not None else -1,
        sources=sources,
        phases=phases,
        document_isolation=loaded.recipe.data.document_isolation,
    )


def _read_tokenizer(loaded: LoadedRecipe, problems: Problems, *, may_be_missing: bool) -> TokenizerFacts | None:
    key: KeyPath = ("data", "tokenizer")
    folder = tokenizer_folder(loaded)
    if not Path(folder).is_dir():
        if may_be_missing:
            return None
        builds = sorted({source.build for source in loaded.sources if source.build})
        command = f"python -m data_tools train-tokenizer --input FILE.jsonl --vocab-size N --out {folder}"
        problems.add(
            loaded.origin(key),
            key,
            f"{folder}: {_not_built(loaded)}; build it with: {' or '.join([*builds, command])}",
        )
        return None
    try:
        facts = describe(folder)
    except DataError as error:
        problems.add(loaded.origin(key), key, str(error))
        return None
    vocab_size = loaded.recipe.model.vocab_size
    if facts.vocab_size > vocab_size:
        message = (
            f"{folder} has {facts.vocab_size:,} ids, model.vocab_size is {vocab_size:,} "
            f"({loaded.origin(('model', 'vocab_size'))}); raise that to at least {facts.vocab_size:,}, "
            "or take a smaller tokenizer"
        )
        problems.add(loaded.origin(key), key, message)
    return facts


def _read_dataset(
    loaded: LoadedRecipe, index: int, key: str, tokenizer: TokenizerFacts | None, problems: Problems
) -> Manifest | None:
    """One dataset's manifest, when its files agree with it and the recipe can read it."""
    origin = loaded.origin(("sources", index, key))
    prefix = dataset_prefix(loaded, index, key)
    if not manifest_path(prefix).is_file():
        message = f"{manifest_path(prefix)}: {_not_built(loaded)}; {_build_remedy(loaded, index, prefix)}"
        problems.add(origin, (key,), message)
        return None
    try:
        manifest = read_manifest(prefix)
        check_files(prefix, manifest)
    except DataError as error:
        problems.add(origin, (key,), str(error))
        return None
    for message in _misfits(loaded, manifest, tokenizer, is_training=key == "prefix"):
        problems.add(origin, (key,), f"{prefix}: {message}")
    return manifest


def _not_built(loaded: LoadedRecipe) -> str:
    root = loaded.site.data_root
    if Path(root).is_absolute():
        return "not built yet"
    return f"not built yet (data_root {root!r} is relative to the working directory)"


def _build_remedy(loaded: LoadedRecipe, index: int, prefix: str) -> str:
    command = (
        f"python -m data_tools tokenize --input FILE.jsonl --tokenizer {tokenizer_folder(loaded)} "
        f"--output {prefix} --append-eod"
    )
    given = loaded.sources[index].build
    return f"build it with: {f'{given} or ' if given else ''}{command}"


def _misfits(
    loaded: LoadedRecipe, manifest: Manifest, tokenizer: TokenizerFacts | None, *, is_training: bool
) -> list[str]:
    """Why a sound dataset cannot be read by this recipe."""
    found: list[str] = []
    vocab_size, length = loaded.recipe.model.vocab_size, loaded.recipe.training.sequence_length
    if tokenizer is not None and manifest.tokenizer.fingerprint != tokenizer.fingerprint:
        found.append(
            f"made with tokenizer {manifest.tokenizer.name!r} ({manifest.tokenizer.fingerprint[:12]}…), the recipe "
            f"reads with {tokenizer_folder(loaded)} ({tokenizer.fingerprint[:12]}…); tokenize it again with that one, "
            "or set data.tokenizer to the other"
        )
    if manifest.max_token_id >= vocab_size:
        found.append(
            f"holds token id {manifest.max_token_id:,}, model.vocab_size {vocab_size:,} allows ids below it "
            f"({loaded.origin(('model', 'vocab_size'))}); raise that to at least {manifest.max_token_id + 1:,}, "
            "or tokenize again"
        )
    if not manifest.append_eod:
        found.append(
            "was tokenized without --append-eod, so its documents run into each other unmarked; "
            "tokenize it again with that option"
        )
    if available_samples(manifest.tokens, 1, length) == 0 and not is_training:
        found.append(
            f"{manifest.tokens:,} tokens give no validation sample of sequence_length {length:,}, which reads "
            f"{length + 1:,}; hold out more documents, or lower training.sequence_length"
        )
    if manifest.tokens == 0 and is_training:
        found.append("holds no tokens; tokenize it again from files with text")
    return found


def _refuse_one_content_twice(loaded: LoadedRecipe, manifests: Sequence[Manifest | None], problems: Problems) -> None:
    """Two entries with one content would read it twice without being allowed to repeat it."""
    seen: dict[str, int] = {}
    for index, manifest in enumerate(manifests):
        if manifest is None:
            continue
        first = seen.setdefault(manifest.data_id, index)
        if first != index:
            key: KeyPath = ("sources", index, "prefix")
            name = loaded.sources[first].source
            problems.add(
                loaded.origin(key), ("prefix",), f"holds the same tokens as source {name!r}; name one of them only"
            )


def _refuse_training_data_as_held_out(
    loaded: LoadedRecipe, manifests: Sequence[dict[str, Manifest | None]], problems: Problems
) -> None:
    """A held-out set that is trained on measures nothing."""
    trained = {manifest.data_id for pair in manifests if (manifest := pair["prefix"])}
    for index, pair in enumerate(manifests):
        held_out = pair["validation_prefix"]
        if held_out is not None and held_out.data_id in trained:
            message = "holds the same tokens as a source that is trained on; tokenize the held-out documents into it"
            problems.add(loaded.origin(("sources", index, "validation_prefix")), ("validation_prefix",), message)


def _size(loaded: LoadedRecipe, index: int, manifest: Manifest | None) -> tuple[int, str]:
    """Tokens of a source and their identity."""
    if manifest is not None:
        return manifest.tokens, manifest.data_id
    source = loaded.sources[index]
    assert source.declared_tokens is not None, "a missing dataset without a declared size is a problem"
    return source.declared_tokens, f"declared-{source.source}-{source.declared_tokens}"


def _read_before(loaded: LoadedRecipe, data_ids: Sequence[str], parent: ParentPlan | None) -> dict[str, int]:
    """Samples of each source that the stages before have read; the content counts, not the name.

    Raises:
        DataError: A source of theirs holds other tokens now.
    """
    there = parent.sources if parent is not None else ()
    samples = {read.data_id: read.samples for read in there}
    data_id_then = {read.source: read.data_id for read in there}
    problems = Problems()
    for index, (source, data_id) in enumerate(zip(loaded.sources, data_ids, strict=True)):
        then = data_id_then.get(source.source, data_id)
        if then != data_id:
            message = (
                f"source {source.source!r} was read as {then[:16]}… in the stages before and holds {data_id[:16]}… "
                "now; restore the data, or give the new data a name of its own"
            )
            problems.add(loaded.origin(("sources", index, "prefix")), ("prefix",), message)
    problems.raise_data_error()
    return {source.source: samples.get(data_id, 0) for source, data_id in zip(loaded.sources, data_ids, strict=True)}


def _plan_source(
    loaded: LoadedRecipe,
    index: int,
    pair: dict[str, Manifest | None],
    phases: Sequence[PhasePlan],
    batch: BatchPlan,
    *,
    samples_before: int,
) -> SourcePlan:
    source = loaded.sources[index]
    manifest, held_out = pair["prefix"], pair["validation_prefix"]
    tokens, data_id = _size(loaded, index, manifest)
    given = [part for phase in phases for part in phase.sources if part.source == source.source]
    samples = sum(part.samples for part in given)
    return SourcePlan(
        source=source.source,
        domain=source.domain,
        prefix=dataset_prefix(loaded, index, "prefix"),
        validation_prefix=dataset_prefix(loaded, index, "validation_prefix"),
        data_id=data_id,
        validation_data_id=held_out.data_id if held_out is not None else data_id,
        documents=manifest.documents if manifest is not None else 0,
        tokens=tokens,
        share=given[0].share if len(phases) == 1 else samples / batch.total_samples,
        samples=samples,
        epochs=samples * batch.sequence_length / tokens,
        max_epochs=given[-1].max_epochs,
        samples_before=samples_before,
        is_declared=manifest is None,
    )


def _note_short_held_out(
    source: SourcePlan, held_out: Manifest, batch: BatchPlan, cadence: CadencePlan, roundings: list[str]
) -> None:
    there = available_samples(held_out.tokens, 1, batch.sequence_length)
    if there < cadence.validation_samples:
        roundings.append(
            f"source {source.source}: validation reads {there:,} samples, all of its held-out set, "
            f"of the {cadence.validation_samples:,} of training.validation_tokens."
        )
