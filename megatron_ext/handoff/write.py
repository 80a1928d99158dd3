"""`megatron-ext rl-handoff`: a folder with which verl or NeMo-RL runs an rl stage of ours.

    DIR/model/                             the weights that the stage begins with, as a Hugging Face checkpoint
    DIR/verl.yaml, or nemo_rl.yaml         the engine's configuration, every value with our recipe's key behind it
    DIR/train.parquet, or train.jsonl      prompts, in the order in which our stage draws them
    DIR/validation.parquet, or .jsonl      held-out prompts
    DIR/rewards.py, or run_nemo_rl.py      our rewards, for the engine
    DIR/run.sh                             starts it
    DIR/HANDOFF.md                         how to run it, the values, and what is not carried over

The folder is written under another name and renamed when it is whole.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from data_tools.errors import RecipeError
from megatron_ext.convert.export import export_checkpoint
from megatron_ext.convert.hf_folder import folder_in_writing
from megatron_ext.handoff import nemo_rl, verl
from megatron_ext.handoff.facts import StageFacts
from megatron_ext.handoff.lost import lost_in_both
from megatron_ext.handoff.page import handoff_page
from megatron_ext.handoff.prompt_files import HandedPrompts
from megatron_ext.handoff.settings import Lost, Setting, yaml_of
from megatron_ext.plan.stage_plan import StagePlan
from megatron_ext.training.parent_stage import parent_checkpoint

Engine = Literal["verl", "nemo-rl"]

_VERL_SCRIPT = """\
#!/usr/bin/env bash
# On the first machine of a Ray cluster, in verl's environment, where megatron-ext is on PYTHONPATH.
set -euo pipefail
export PYTHONPATH="${{PYTHONPATH:?name the folder of megatron-ext}}"
exec python3 -m verl.trainer.main_ppo --config-path {folder} --config-name verl "$@"
"""

_VERL_REWARDS = '''\
"""The rewards of {stage_id}: reward.custom_reward_function of verl.yaml names this file."""

from megatron_ext.handoff.scoring import make_compute_score

compute_score = make_compute_score({arguments})
'''

_NEMO_SCRIPT = """\
#!/usr/bin/env bash
# In a clone of NeMo-RL, on the first machine of a Ray cluster, where megatron-ext is on PYTHONPATH.
set -euo pipefail
export PYTHONPATH="${{PYTHONPATH:?name the folder of megatron-ext}}"
cp {folder}/nemo_rl.yaml examples/configs/megatron_ext.yaml  # beside the file that it extends
exec uv run python {folder}/run_nemo_rl.py --config examples/configs/megatron_ext.yaml "$@"
"""

_NEMO_LAUNCHER = '''\
"""NeMo-RL's own examples/run_grpo.py, with our rewards among its environments. Runs in a clone of NeMo-RL."""

import runpy

from nemo_rl.distributed.ray_actor_environment_registry import ACTOR_ENVIRONMENT_REGISTRY
from nemo_rl.distributed.virtual_cluster import PY_EXECUTABLES
from nemo_rl.environments.utils import register_env

ENVIRONMENT = "megatron_ext.handoff.nemo_rl_environment.RewardEnvironment"

if __name__ == "__main__":
    ACTOR_ENVIRONMENT_REGISTRY[ENVIRONMENT] = PY_EXECUTABLES.SYSTEM
    register_env("megatron_ext", ENVIRONMENT)
    runpy.run_path("examples/run_grpo.py", run_name="__main__")
'''


def hand_off(plan: StagePlan, to: Path, *, run_root: Path, engine: Engine) -> tuple[Lost, ...]:
    """Writes everything that an engine needs.

    Args:
        plan: Of the stage, whose data is there and whose weights are named.
        to: Folder to be made.
        run_root: Folder whose stages hold the weights.
        engine: Who will run it.

    Returns:
        What is not carried over.

    Raises:
        RecipeError: It is no rl stage, its weights are not trained yet, or get new tokens in it.
        DataError: Weights or prompts are not what was planned.
        UsageError: `to` is there already.
    """
    _require_rl(plan)
    weights = parent_checkpoint(run_root, plan)
    assert weights is not None, "an rl stage begins with weights"
    facts = StageFacts(plan, to.resolve())
    prompts = HandedPrompts(facts)
    with folder_in_writing(facts.folder) as folder:
        export_checkpoint(weights, folder / "model")
        _finish_model(folder / "model", plan, prompts)
        if engine == "verl":
            settings, lost = _write_verl(facts, folder, prompts)
        else:
            settings, lost = _write_nemo_rl(facts, folder, prompts)
        (folder / "HANDOFF.md").write_text(handoff_page(facts, engine, settings, lost), encoding="utf-8")
    return lost


def _require_rl(plan: StagePlan) -> None:
    if plan.rl is None:
        raise RecipeError(f"{plan.recipe}: stage: {plan.stage}: rl-handoff hands off rl stages; name one.")
    if plan.new_tokens is not None:
        raise RecipeError(
            f"{plan.recipe}: resize_vocabulary: true: the handed-off weights would have no rows for the new tokens; "
            "add them in a fine-tuning stage, and hand off the stage that begins with its weights."
        )


def _finish_model(model: Path, plan: StagePlan, prompts: HandedPrompts) -> None:
    """Gives the exported model the stage's chat template, and the ids at which its answers end."""
    (model / "chat_template.jinja").write_text(prompts.template, encoding="utf-8")
    file = model / "generation_config.json"
    config = json.loads(file.read_text(encoding="utf-8")) | {"eos_token_id": sorted(prompts.stop_ids)}
    file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _write_verl(facts: StageFacts, folder: Path, prompts: HandedPrompts) -> tuple[Sequence[Setting], tuple[Lost, ...]]:
    settings = verl.verl_settings(facts)
    rewards = facts.rl.rewards.model_dump()
    arguments = ", ".join(f"{name}={value!r}" for name, value in rewards.items())
    prompts.write_parquet(folder / verl.TRAIN, folder / verl.VALIDATION)
    files = {
        verl.CONFIG: yaml_of(settings, head=[_first_line(facts, verl.CHECKED_VERSION), *verl.HEAD]),
        verl.REWARDS: _VERL_REWARDS.format(stage_id=facts.plan.stage_id, arguments=arguments),
        verl.SCRIPT: _VERL_SCRIPT.format(folder=shlex.quote(str(facts.folder))),
    }
    _write(folder, files)
    return settings, (*verl.lost_in_verl(facts), *lost_in_both(facts))


def _write_nemo_rl(
    facts: StageFacts, folder: Path, prompts: HandedPrompts
) -> tuple[Sequence[Setting], tuple[Lost, ...]]:
    samples = facts.rl.validation_samples
    held_out = len(prompts.held_out) * samples
    settings = nemo_rl.nemo_rl_settings(facts, stop_ids=prompts.stop_ids, held_out=held_out)
    prompts.write_jsonl(folder / nemo_rl.TRAIN, folder / nemo_rl.VALIDATION, samples_of_held_out=samples)
    files = {
        nemo_rl.CONFIG: yaml_of(settings, head=[_first_line(facts, nemo_rl.CHECKED_VERSION), *nemo_rl.HEAD]),
        nemo_rl.LAUNCHER: _NEMO_LAUNCHER,
        nemo_rl.SCRIPT: _NEMO_SCRIPT.format(folder=shlex.quote(str(facts.folder))),
    }
    _write(folder, files)
    return settings, (*nemo_rl.lost_in_nemo_rl(facts), *lost_in_both(facts))


def _first_line(facts: StageFacts, version: str) -> str:
    return f"# {facts.plan.stage_id} of {facts.plan.recipe}, for {version}. Behind each value: the recipe's key."


def _write(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = folder / name
        path.write_text(text, encoding="utf-8")
        if name.endswith(".sh"):
            path.chmod(0o755)
