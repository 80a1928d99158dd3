"""README.md of an exported model: what it is, where it comes from, what it has read, and under which terms."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from megatron_ext.convert.giver import Giver
from megatron_ext.convert.hf_config import ARCHITECTURES, require_architecture
from megatron_ext.convert.tokenizer_files import chat_template
from megatron_ext.datasets.ledger import PADDING, LedgerRow, read_ledger, sum_by_source
from megatron_ext.plan.stage_plan import StagePlan
from megatron_ext.recipe.schema import ModelRecipe

_OLDER = "not recorded: the stage's plan is older than this field"


def model_card(giver: Giver, *, dtype: str) -> str:
    """The card's text.

    Args:
        giver: What is exported.
        dtype: Of the exported weights.
    """
    stage = f", stage `{giver.plan.stage_id}`" if giver.plan is not None else ""
    parts = [_front_matter(), f"# {giver.model.name}{stage}", _what(giver, dtype), _use(giver)]
    if giver.plan is None:
        parts.append(
            "## Where it comes from\n\nA checkpoint of Megatron-LM, which records no lineage that can be read."
        )
    else:
        plans = plans_of_chain(giver.plan, giver.path)
        known = read_ledger(giver.path)
        rows = sum_by_source([row for row in known if row.data_id != PADDING])
        padding = sum(row.read for row in known if row.data_id == PADDING)
        parts += [_lineage(giver, plans), _ledger(rows, padding), _licences(rows, plans)]
    return "\n\n".join(parts) + "\n"


def plans_of_chain(plan: StagePlan, checkpoint: Path) -> dict[str, StagePlan]:
    """The plans of a stage and of those behind it that lie in the same run root, by id; others are left out.

    Of a stage that was planned again behind its last checkpoint, the plan in its folder is the newer one.
    """
    found = {plan.stage_id: plan}
    for stage in (*(plan.behind.chain if plan.behind is not None else ()), plan):
        file = checkpoint.resolve().parents[2] / stage.stage_id / "plan.json"
        try:
            found[stage.stage_id] = StagePlan.model_validate_json(file.read_bytes())
        except (OSError, ValidationError):
            continue
    return found


def _front_matter() -> str:
    """What the hub reads. It names no licence: `_licences` lists what is known, and nobody here can decide."""
    return "---\nlibrary_name: transformers\npipeline_tag: text-generation\n---"


def _what(giver: Giver, dtype: str) -> str:
    model = giver.model
    rows = giver.padded_vocab_size
    return (
        f"{ARCHITECTURES[require_architecture(model)]} in {dtype}: {_layers(model)}, hidden size "
        f"{model.hidden_size:,}, {'tied' if model.share_embeddings_and_output_weights else 'untied'} output layer. "
        f"The tokenizer has {giver.facts.vocab_size:,} ids and the embedding {rows:,} rows: the "
        f"{rows - giver.facts.vocab_size:,} rows of padding were part of every softmax in training and are kept."
    )


def _layers(model: ModelRecipe) -> str:
    kinds = {"M": "Mamba-2", "*": "attention", "-": "MLP"}
    counts = ((kind, model.hybrid_layer_pattern.count(symbol)) for symbol, kind in kinds.items())
    return ", ".join(f"{count} {kind}" for kind, count in counts if count) + " layers"


def _use(giver: Giver) -> str:
    call = 'tokenizer("Once", return_tensors="pt")'
    if chat_template(giver.tokenizer) is not None:
        call = (
            'tokenizer.apply_chat_template(\n    [{"role": "user", "content": "What is 12 + 30?"}], '
            'add_generation_prompt=True, return_tensors="pt", return_dict=True\n)'
        )
    return (
        "```python\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        'tokenizer = AutoTokenizer.from_pretrained(".")\nmodel = AutoModelForCausalLM.from_pretrained(".")\n'
        f"inputs = {call}\nprint(tokenizer.decode(model.generate(**inputs, max_new_tokens=100)[0]))\n```"
    )


def _lineage(giver: Giver, plans: dict[str, StagePlan]) -> str:
    plan = giver.plan
    assert plan is not None, "a checkpoint of Megatron-LM has no lineage"
    lines = ["## Where it comes from", "", "| stage | recipe | tokens | gave the next one |", "|---|---|---|---|"]
    for stage in plan.behind.chain if plan.behind is not None else ():
        gave = "its weights" if stage.gives == "weights" else "weights, optimizer, place in the data"
        lines.append(f"| `{stage.stage_id}` | {_shown(stage.recipe)} | {stage.total_tokens:,} | {gave} |")
    lines.append(f"| `{plan.stage_id}` | {_shown(plan.recipe)} | {plan.batch.total_tokens:,} | |")
    lines += [
        "",
        f"Exported from `{giver.path.name}` of the last stage, seed {plan.seed}, trained in {plan.precision}.",
    ]
    return "\n".join(lines)


def _shown(recipe: str) -> str:
    """A path without the folders of the machine that it was on."""
    return Path(recipe).name if Path(recipe).is_absolute() else recipe


def _ledger(rows: Sequence[LedgerRow], padding: int) -> str:
    lines = ["## What it has read", "", "| source | domain | tokens | trained on | passes |", "|---|---|---|---|---|"]
    lines += [f"| {r.source} | {r.domain} | {r.read:,} | {r.trained:,} | {r.epochs:.3g} |" for r in rows]
    total, trained = sum(row.read for row in rows), sum(row.trained for row in rows)
    sampled = sum(row.sampled for row in rows)
    lines.append(f"| all | | {total:,} | {trained:,} | |")
    lines += ["", "Over all stages above; tokens that were trained on carried loss."]
    if sampled:
        lines[-1] += f" {sampled:,} tokens were sampled from the model itself."
    if padding:
        lines[-1] += f" {padding:,} more positions of the stages' tokens held padding, which is of no source."
    return "\n".join(lines)


def _licences(rows: Sequence[LedgerRow], plans: dict[str, StagePlan]) -> str:
    known: dict[str, str] = {}
    for source in (source for plan in plans.values() for source in plan.data.sources):
        terms = source.licence if "licence" in source.model_fields_set else _OLDER
        if known.get(source.data_id) in (None, "", _OLDER):
            known[source.data_id] = terms
    lines = ["## Licences", "", "| source | terms of its data, as its source file states them |", "|---|---|"]
    lines += [f"| {row.source} | {known.get(row.data_id) or 'not stated'} |" for row in rows]
    lines += ["", "Nobody has checked what these terms mean for the weights. Do that before you share them."]
    return "\n".join(lines)
