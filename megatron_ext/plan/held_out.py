"""Whether what is held out is held out: a set that the chain trains on measures nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from data_tools.dataset import StoredDataset
from megatron_ext.plan.stage_plan import SourceRead
from megatron_ext.recipe.load import LoadedRecipe
from megatron_ext.recipe.problems import Problems


def refuse_training_data_as_held_out(
    loaded: LoadedRecipe,
    datasets: Sequence[Mapping[str, StoredDataset | None]],
    trained_on: Sequence[SourceRead],
    problems: Problems,
) -> None:
    """Refuses held-out sets that this stage, or one before it, trains on.

    Args:
        loaded: What was asked.
        datasets: Of each source the dataset and its held-out one, by `prefix` and `validation_prefix`.
        trained_on: What the stages before have trained on.
        problems: Takes what is wrong.
    """
    trained = [(source.source, pair["prefix"]) for source, pair in zip(loaded.sources, datasets, strict=True)]
    here = {dataset.data_id for _, dataset in trained if dataset is not None}
    earlier = {read.data_id: read.source for read in trained_on}
    for index, pair in enumerate(datasets):
        if (held_out := pair["validation_prefix"]) is None:
            continue
        messages = [_too_little_held_out(held_out, name, dataset) for name, dataset in trained if dataset is not None]
        if held_out.data_id in here:
            messages = ["holds the same tokens as a source that is trained on; tokenize the held-out documents into it"]
        elif held_out.data_id in earlier:
            messages = [
                f"holds the same tokens as source {earlier[held_out.data_id]!r}, which the stages before have trained "
                "on; tokenize documents into it that the chain has not read"
            ]
        for message in filter(None, messages):
            problems.add(loaded.origin(("sources", index, "validation_prefix")), ("validation_prefix",), message)


def _too_little_held_out(held_out: StoredDataset, name: str, training: StoredDataset) -> str:
    """Why a held-out set holds documents that a source trains on, as their manifests tell; empty if they do not.

    The documents of an input are ordered by the hash of their id: the lowest are held out, the others trained on.
    """
    ours, theirs = held_out.shards[0].manifest, training.shards[0].manifest
    is_split = (ours.split, theirs.split) == ("validation", "train")
    if not is_split or theirs.hold_out_percent >= ours.hold_out_percent or theirs.where not in ("", ours.where):
        return ""
    inputs = [
        {source.sha256 for shard in dataset.shards for source in shard.manifest.sources}
        for dataset in (held_out, training)
    ]
    if inputs[0].isdisjoint(inputs[1]):
        return ""
    return (
        f"holds {ours.hold_out_percent:g} % of the documents of {ours.sources[0].path}, and source {name!r} holds out "
        f"{theirs.hold_out_percent:g} % of them and trains on the others; tokenize one of the two again with the "
        "--hold-out of the other"
    )
