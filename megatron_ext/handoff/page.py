"""HANDOFF.md: how to run a handed-off stage, where each value comes from, and what is not carried over."""

from __future__ import annotations

from collections.abc import Sequence

from megatron_ext.handoff import nemo_rl, verl
from megatron_ext.handoff.facts import StageFacts
from megatron_ext.handoff.settings import Lost, Setting, shown

_STEPS = {
    "verl": (
        f"Install {verl.CHECKED_VERSION} with vLLM and Megatron-Bridge, in Python 3.12 or newer.",
        "Put the folder of megatron-ext on PYTHONPATH of every machine. Its rewards need nothing else but the "
        "libraries of the scorers that the prompts name: `pip install math-verify`, `reasoning-gym`.",
        "Look at the configuration as verl composes it: `./run.sh --cfg job`.",
        "Begin: `./run.sh`. What stands behind it overrides: `./run.sh trainer.nnodes=2`.",
    ),
    "nemo-rl": (
        f"Clone {nemo_rl.CHECKED_VERSION}, with its submodules.",
        "Put the folder of megatron-ext on PYTHONPATH of every machine. Its rewards need nothing else but the "
        "libraries of the scorers that the prompts name: `uv pip install math-verify`, `reasoning-gym`.",
        "Begin, in the clone: `{folder}/run.sh`. What stands behind it overrides: `… cluster.num_nodes=2`.",
    ),
}


def handoff_page(facts: StageFacts, engine: str, settings: Sequence[Setting], lost: Sequence[Lost]) -> str:
    """The page as Markdown.

    Args:
        facts: The stage.
        engine: Who will run it.
        settings: Everything that was written for it.
        lost: Everything that was not.
    """
    plan = facts.plan
    assert plan.init_from is not None, "an rl stage begins with weights"
    giver = plan.init_from.chain[-1]
    version = (verl if engine == "verl" else nemo_rl).CHECKED_VERSION
    steps = [step.replace("{folder}", str(facts.folder)) for step in _STEPS[engine]]
    return "\n".join(
        [
            f"# {plan.stage_id} for {version}",
            "",
            f"The rl stage of `{plan.recipe}`, which begins with the weights of `{giver.stage_id}` ({giver.recipe}).",
            f"The names of all values below were compared with the configuration that {version} ships. "
            "Nothing here was run there.",
            "",
            "## Run it",
            "",
            *(f"{number}. {step}" for number, step in enumerate(steps, 1)),
            "",
            f"Paths are absolute. After moving the folder: `grep -rl {facts.folder} NEW | "
            f"xargs sed -i 's|{facts.folder}|NEW|g'`.",
            "",
            "## What is not carried over",
            "",
            "| key | |",
            "|---|---|",
            *(f"| `{one.recipe_key}` | {one.what} |" for one in lost),
            "",
            "## Values",
            "",
            f"| {version} | value | from |",
            "|---|---|---|",
            *(f"| `{one.key}` | `{shown(one.value)}` | {_from(one)} |" for one in settings),
            "",
        ]
    )


def _from(setting: Setting) -> str:
    key = f"`{setting.recipe_key}`" if setting.recipe_key else ""
    return ": ".join(part for part in (key, setting.note) if part)
