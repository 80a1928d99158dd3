"""From which checkpoints a run goes on, and what is said of it. The folders hold what is read of them: no weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from data_tools.errors import RecipeError
from megatron_ext.plan.stage_plan import StagePlan
from megatron_ext.training.checkpoint_facts import describe_resume, layout_of, require_fit
from tests.support.plans import make_plan

SHARDED = {"data_parallel_size": 2, "use_distributed_optimizer": True}


def write(folder: Path, step: int, optimizer_format: str, **layout: Any) -> Path:
    """What the local backend says of a checkpoint that a plan of this layout wrote."""
    plan = make_plan(layout=SHARDED | layout)
    path = folder / f"step_{step}"
    path.mkdir()
    (path / "plan.json").write_text(plan.model_dump_json())
    facts = {
        "state": {"step": step},
        "layout": layout_of(plan),
        "backend": "local",
        "optimizer": {"format": optimizer_format, "updates": step},
    }
    (path / "state.json").write_text(json.dumps(facts))
    return path


def te_plan(monkeypatch: pytest.MonkeyPatch) -> StagePlan:
    monkeypatch.setattr("megatron_ext.models.backends.missing_for_te", tuple)  # as where everything is there
    return make_plan(layout=SHARDED | {"backend": "te"})


def cut(pattern: str) -> dict[str, Any]:
    return {"pipeline_model_parallel_size": 2, "hybrid_layer_pattern": pattern}


def refusal(path: Path, plan: StagePlan, **look: Any) -> str:
    with pytest.raises(RecipeError) as caught:
        require_fit(path, plan, **look)
    return str(caught.value)


def test_slices_of_one_backend_are_not_given_to_the_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, 5, "dp_reshardable")
    require_fit(path, make_plan(layout=SHARDED))
    message = refusal(path, te_plan(monkeypatch))
    assert "step_5: its optimizer state is dp_reshardable, which loads only in the layout that wrote it" in message
    assert "\n  backend local -> te\n" in message
    assert "Go on there: 2 processes with " in message
    assert "--set 'training.backend=\"local\"'" in message


def test_slices_of_other_pipeline_cuts_are_refused_with_the_cuts_that_fit(tmp_path: Path) -> None:
    path = write(tmp_path, 5, "dp_reshardable", **cut("M-|*M"))
    require_fit(path, make_plan(layout=SHARDED | cut("M-|*M")))
    message = refusal(path, make_plan(layout=SHARDED | cut("M-*|M")))
    assert "\n  hybrid_layer_pattern M-|*M -> M-*|M\n" in message
    assert "Go on there: 4 processes with " in message
    assert "--set 'model.hybrid_layer_pattern=\"M-|*M\"'" in message


def test_whole_state_loads_into_both_and_the_log_says_that_sums_differ(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path, 5, "fully_reshardable")
    assert describe_resume(path, make_plan(layout=SHARDED)) == f"goes on at step 5 from {path}"
    te = te_plan(monkeypatch)
    require_fit(path, te)
    sums = "sums are taken in another order"
    assert describe_resume(path, te) == f"goes on at step 5 from {path}, not bit for bit (backend local -> te): {sums}"
    cuts = write(tmp_path, 6, "fully_reshardable", **cut("M-|*M"))
    assert f"(hybrid_layer_pattern M-|*M -> M-*|M): {sums}" in describe_resume(
        cuts, make_plan(layout=SHARDED | cut("M-*|M"))
    )


def test_the_newest_older_checkpoint_that_loads_and_is_whole_is_named(tmp_path: Path) -> None:
    for step in (1, 2, 4):
        write(tmp_path, step, "fully_reshardable")
    for step in (3, 5, 6):
        write(tmp_path, step, "dp_reshardable")
    looked_at: list[str] = []

    def look(path: Path) -> list[str]:
        looked_at.append(path.name)
        return ["__0_0.distcp: missing"] if path.name == "step_4" else []

    message = refusal(tmp_path / "step_5", make_plan(layout={"use_distributed_optimizer": True}), look=look)
    assert looked_at == ["step_4", "step_2"], "newest first, and no byte of those that cannot help"
    assert "Or go back to step_2, which is fully reshardable and whole:" in message
    moves = [line.split()[1:] for line in message.splitlines() if line.startswith("    mv ")]
    assert moves == [[f"{tmp_path}/step_{n}", f"{tmp_path}/bound_step_{n}"] for n in (3, 4, 5, 6)]


def test_an_older_checkpoint_without_facts_is_passed_over(tmp_path: Path) -> None:
    (write(tmp_path, 1, "fully_reshardable") / "state.json").unlink()
    path = write(tmp_path, 5, "dp_reshardable")
    assert "Or go back" not in refusal(path, make_plan(layout={"use_distributed_optimizer": True}), look=lambda _: [])
