"""Whether the data that a recipe asks for is there and fits; a dataset is one pair or a folder of shards.

Reads manifests, file sizes and the tokenizer's JSON; no token is read here.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from data_tools.blend_plan import available_samples
from data_tools.dataset import StoredDataset, is_built, read_dataset
from data_tools.errors import DataError
from data_tools.manifest import manifest_path
from data_tools.strict_yaml import KeyPath
from data_tools.tokenizer import TokenizerFacts, describe
from megatron_ext.plan.held_out import refuse_training_data_as_held_out
from megatron_ext.plan.stage_plan import SourceRead
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
    return all(is_built(dataset_prefix(loaded, index, key)) for key in PREFIX_KEYS)


def is_declared(loaded: LoadedRecipe, index: int) -> bool:
    """Whether a plan takes a source's size from its file, because the data is not built yet."""
    return loaded.sources[index].declared_tokens is not None and not is_source_built(loaded, index)


def has_sizes(loaded: LoadedRecipe) -> bool:
    """Whether every source is built or declared, so that the stage can be planned."""
    indices = range(len(loaded.sources))
    declared = [is_declared(loaded, index) for index in indices]
    is_known = all(declared[index] or is_source_built(loaded, index) for index in indices)
    return is_known and (any(declared) or Path(tokenizer_folder(loaded)).is_dir())


Pair = dict[str, StoredDataset | None]
"""A source's dataset and its held-out one, by `PREFIX_KEYS`; None where their size is declared."""


def read_data(
    loaded: LoadedRecipe, *, may_be_provisional: bool, trained_on: Sequence[SourceRead] = ()
) -> tuple[TokenizerFacts | None, list[Pair]]:
    """Opens the tokenizer and the datasets of all sources.

    Args:
        loaded: What was asked.
        may_be_provisional: Whether `declared_tokens` may stand for data that is not built yet.
        trained_on: What the stages behind the weights have read.

    Returns:
        The tokenizer, None where it is not built and need not be, and a pair for each source.

    Raises:
        DataError: Everything that is missing, damaged, or does not fit the recipe.
    """
    problems = Problems()
    declared = [may_be_provisional and is_declared(loaded, index) for index in range(len(loaded.sources))]
    tokenizer = read_tokenizer(loaded, problems, may_be_missing=any(declared))
    pairs: list[Pair] = [
        dict.fromkeys(PREFIX_KEYS)
        if declared[index]
        else {key: _read_dataset(loaded, index, key, tokenizer, problems) for key in PREFIX_KEYS}
        for index in range(len(loaded.sources))
    ]
    _refuse_one_content_twice(loaded, [pair["prefix"] for pair in pairs], problems)
    refuse_training_data_as_held_out(loaded, pairs, trained_on, problems)
    problems.raise_data_error()
    return tokenizer, pairs


def read_tokenizer(loaded: LoadedRecipe, problems: Problems, *, may_be_missing: bool) -> TokenizerFacts | None:
    """The tokenizer of a recipe; None where it is not there or does not fit, which is a problem unless it may be."""
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
        begins = loaded.recipe.init_from is not None and not loaded.recipe.resize_vocabulary
        resize = " and add --set resize_vocabulary=true, which gives added tokens rows" if begins else ""
        message = (
            f"{folder} has {facts.vocab_size:,} ids, model.vocab_size is {vocab_size:,} "
            f"({loaded.origin(('model', 'vocab_size'))}); raise that to at least {facts.vocab_size:,}{resize}, "
            "or take a smaller tokenizer"
        )
        problems.add(loaded.origin(key), key, message)
    return facts


def _read_dataset(
    loaded: LoadedRecipe, index: int, key: str, tokenizer: TokenizerFacts | None, problems: Problems
) -> StoredDataset | None:
    """One dataset, when its files agree with their manifests and the recipe can read it."""
    origin = loaded.origin(("sources", index, key))
    prefix = dataset_prefix(loaded, index, key)
    if not is_built(prefix):
        message = f"{manifest_path(prefix)}: {_not_built(loaded)}; {_build_remedy(loaded, index, prefix)}"
        problems.add(origin, (key,), message)
        return None
    try:
        dataset = read_dataset(prefix)
    except DataError as error:
        problems.add(origin, (key,), str(error))
        return None
    for message in _misfits(loaded, dataset, tokenizer, is_training=key == "prefix"):
        problems.add(origin, (key,), f"{prefix}: {message}")
    return dataset


def _not_built(loaded: LoadedRecipe) -> str:
    root = loaded.site.data_root
    if Path(root).is_absolute():
        return "not built yet"
    return f"not built yet (data_root {root!r} is relative to the working directory)"


def _build_remedy(loaded: LoadedRecipe, index: int, prefix: str) -> str:
    source = loaded.sources[index]
    adapter = f" --adapter {source.adapter}" if source.adapter else ""
    makes_chats = loaded.recipe.stage == "sft"
    texts = " (texts without turns: tokenize … --append-eod)"
    verb, end = ("chat", f"--hold-out 1%{texts}") if makes_chats else ("tokenize", "--append-eod")
    command = (
        f"python -m data_tools {verb} --input FILE.jsonl{adapter} --tokenizer {tokenizer_folder(loaded)} "
        f"--output {dataset_prefix(loaded, index, 'prefix') if makes_chats else prefix} {end}"
    )
    given = source.build
    return f"build it with: {f'{given} or ' if given else ''}{command}"


def _misfits(
    loaded: LoadedRecipe, dataset: StoredDataset, tokenizer: TokenizerFacts | None, *, is_training: bool
) -> list[str]:
    """Why a sound dataset cannot be read by this recipe."""
    found: list[str] = []
    vocab_size, length = loaded.recipe.model.vocab_size, loaded.recipe.training.sequence_length
    if tokenizer is not None and dataset.tokenizer.fingerprint != tokenizer.fingerprint:
        found.append(
            f"made with tokenizer {dataset.tokenizer.name!r} ({dataset.tokenizer.fingerprint[:12]}…), the recipe "
            f"reads with {tokenizer_folder(loaded)} ({tokenizer.fingerprint[:12]}…); tokenize it again with that one, "
            "or set data.tokenizer to the other"
        )
    if dataset.max_token_id >= vocab_size:
        found.append(
            f"holds token id {dataset.max_token_id:,}, model.vocab_size {vocab_size:,} allows ids below it "
            f"({loaded.origin(('model', 'vocab_size'))}); raise that to at least {dataset.max_token_id + 1:,}, "
            "or tokenize again"
        )
    is_sft = loaded.recipe.stage == "sft"  # what is held out is packed too: a conversation makes a row
    are_rows_packed = is_sft or loaded.recipe.data.packing == "best_fit"
    if not dataset.append_eod and dataset.chat is None:
        found.append(
            "was tokenized without --append-eod, so its documents run into each other unmarked; "
            "tokenize it again with that option"
        )
    elif not dataset.append_eod and not are_rows_packed:
        found.append(
            "holds conversations, which their chat template ends and no end-of-document id, and data.packing none "
            f"lays documents end to end ({loaded.origin(('data', 'packing'))}); write data.packing: best_fit, or name "
            "the same text as tokenized with --append-eod"
        )
    if available_samples(dataset.tokens, 1, length) == 0 and not is_training and not is_sft:
        found.append(
            f"{dataset.tokens:,} tokens give no validation sample of sequence_length {length:,}, which reads "
            f"{length + 1:,}; hold out more documents, or lower training.sequence_length"
        )
    if dataset.tokens == 0 and is_training:
        found.append("holds no tokens; tokenize it again from files with text")
    return found


def _refuse_one_content_twice(
    loaded: LoadedRecipe, datasets: Sequence[StoredDataset | None], problems: Problems
) -> None:
    """Two entries with one content would read it twice without being allowed to repeat it."""
    seen: dict[str, int] = {}
    for index, dataset in enumerate(datasets):
        if dataset is None:
            continue
        first = seen.setdefault(dataset.data_id, index)
        if first != index:
            key: KeyPath = ("sources", index, "prefix")
            name = loaded.sources[first].source
            problems.add(
                loaded.origin(key), ("prefix",), f"holds the same tokens as source {name!r}; name one of them only"
            )
