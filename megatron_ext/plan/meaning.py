"""What a stage *is*, apart from where and how it runs; its hash is the stage's id.

Two runs with equal meaning train the same model on the same tokens in the same order, so the second
one resumes or reuses the first. Not part of it: layout, micro-batch, backend, logging, cadence of
checkpoints and validation, `max_steps`, paths, the names of model and sources, validation data,
`max_epochs`, `sft.untrained`, `rl.mismatch_threshold` and `rl.rewards.on_error` (permissions: the samples say what is
read, and no number of a stage that goes on hangs on where another would stop), and whatever the model or
schedule does not read.

The chat template of an sft stage is left out too: it has been applied, and the ids and masks that it made are in the
content of the sources. An rl stage applies its own while it runs, so there it is in.

Names of sources are left out because the order of reading is drawn from the seed and the source's
content: renaming a corpus changes a label in the ledger and no sample. The order of the blend is
in: where two sources are equally due, the first one is read first.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

from data_tools.pack_rows import ROWS_VERSION
from megatron_ext.plan.packed_rows import DOCUMENT_ROWS_VERSION
from megatron_ext.plan.sizes import padded_vocab_size
from megatron_ext.plan.stage_plan import SEMANTICS_VERSION, BatchPlan, DataPlan, ParentPlan, RlPlan, SchedulePlan
from megatron_ext.recipe.layer_pattern import parse_pattern
from megatron_ext.recipe.schema import PLACEMENT_KEYS, UNRESOLVED, ModelRecipe, Recipe, RlRecipe, SftRecipe

ID_DIGITS = 16
"""Hex digits of an id: 64 bits, so a billion stages collide with a chance of 3 %."""


def stage_meaning(
    recipe: Recipe,
    *,
    data: DataPlan,
    batch: BatchPlan,
    schedule: SchedulePlan,
    parent: ParentPlan | None = None,
    init_from: ParentPlan | None = None,
    rl: RlPlan | None = None,
) -> dict[str, Any]:
    """Everything that decides a stage's numbers; plain values only."""
    meaning: dict[str, Any] = {
        "stage": recipe.stage,
        "semantics_version": SEMANTICS_VERSION,
        "model": model_meaning(recipe.model),
        "data": {
            "tokenizer_fingerprint": data.tokenizer_fingerprint,
            "document_isolation": data.document_isolation,
            **_packing_meaning(data),
            **_blend_meaning(data),
        },
        "batch": {
            "sequence_length": batch.sequence_length,
            "global_batch_size": batch.global_batch_size,
            "total_steps": batch.total_steps,
            "total_tokens": batch.total_tokens,
        }
        | ({"ramp": [list(segment) for segment in batch.ramp]} if batch.ramp else {}),
        "schedule": _schedule_meaning(schedule, batch),
        "optimizer": recipe.optimizer.model_dump(exclude={"min_lr"} if schedule.style == "constant" else None),
        "precision": recipe.precision,
        "seed": recipe.seed,
    }
    if recipe.fp8 is not None:
        meaning["fp8"] = recipe.fp8.model_dump()
    if recipe.rl is not None and rl is not None:
        meaning["rl"] = _rl_meaning(recipe.rl, rl)
    if recipe.stage == "sft":
        meaning["sft"] = (recipe.sft or SftRecipe()).model_dump(exclude={"untrained"}) | {"rows_version": ROWS_VERSION}
    if parent is not None:
        meaning["parent"] = parent.stage_id
    if init_from is not None or recipe.awaits_weights:
        meaning["init_from"] = init_from.stage_id if init_from is not None else UNRESOLVED
    if recipe.resize_vocabulary:
        meaning["resize_vocabulary"] = "mean of tokens"  # the tokenizers, both in here, say which rows
    return meaning


def _rl_meaning(options: RlRecipe, rl: RlPlan) -> dict[str, Any]:
    """How is sampled and learned, and from which prompts: their files' hashes beside what was chosen of them."""
    exclude: dict[str, Any] = {"prompts": True}  # what they give is in the data
    for key in PLACEMENT_KEYS:
        match key.split("."):
            case ["rl", name]:
                exclude[name] = True
            case ["rl", name, below] if name != "prompts":
                exclude.setdefault(name, {})[below] = True
    if options.engine == "in-process":  # stages of this engine had their ids before there was another
        exclude["engine"] = True
    meaning = options.model_dump(exclude=exclude)
    meaning["files"] = [source.file_sha256 for source in rl.sources]
    meaning["chat_template"] = rl.chat_template_sha256
    if rl.max_sampled_tokens:
        meaning["max_sampled_tokens"] = rl.max_sampled_tokens
    return meaning


def stage_id(meaning: dict[str, Any]) -> str:
    """The id of a meaning: its stage and the first digits of the sha256 of its canonical JSON."""
    digest = hashlib.sha256(canonical_json(meaning).encode()).hexdigest()
    return f"{meaning['stage']}-{digest[:ID_DIGITS]}"


def canonical_json(value: Any) -> str:
    """One text for one value: sorted keys, no spaces, ASCII, floats as `repr` writes them.

    >>> canonical_json({"b": 1e-4, "a": [1, 1.0]})
    '{"a":[1,1.0],"b":0.0001}'
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def model_meaning(model: ModelRecipe) -> dict[str, Any]:
    """What a model is: its shapes, without a name."""
    meaning = model.model_dump(exclude={"name", "vocab_size"})
    meaning["hybrid_layer_pattern"] = parse_pattern(model.hybrid_layer_pattern).symbols
    meaning["padded_vocab_size"] = padded_vocab_size(model.vocab_size)
    for key in _unread(model):
        del meaning[key]
    return meaning


def _unread(model: ModelRecipe) -> list[str]:
    """Keys that no layer of this pattern looks at."""
    unread = [] if model.position_embedding_type == "rope" else ["rotary_base"]
    if "M" not in model.hybrid_layer_pattern:
        unread += ["mamba_num_heads", "mamba_head_dim", "mamba_state_dim", "mamba_num_groups"]
    if "-" not in model.hybrid_layer_pattern:
        unread += ["ffn_hidden_size", "activation"]
    return unread


def _packing_meaning(data: DataPlan) -> dict[str, Any]:
    if data.packing == "none":
        return {}
    return {"packing": data.packing, "long_documents": data.long_documents, "rows_version": DOCUMENT_ROWS_VERSION}


def _blend_meaning(data: DataPlan) -> dict[str, Any]:
    """What each source gives; the phases where there is more than one."""
    data_ids = {source.source: source.data_id for source in data.sources}
    phases = [
        [
            {"data_id": data_ids[source.source], "samples": source.samples}
            | ({"cursor": source.cursor} if source.cursor != "continue" else {})
            for source in phase.sources
        ]
        for phase in data.all_phases()
    ]
    return {"sources": phases[0]} if len(phases) == 1 else {"phases": phases}


def _schedule_meaning(schedule: SchedulePlan, batch: BatchPlan) -> dict[str, Any]:
    meaning = schedule.model_dump(exclude={"horizon_tokens"})  # horizon_samples says it
    if schedule.sample_tokens == batch.sequence_length:
        del meaning["sample_tokens"]  # the batch says it
    if schedule.style != "wsd":
        del meaning["decay_style"]  # not read
    return meaning
