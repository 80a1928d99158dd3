"""The state of a study as a table for people, and as JSON."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from data_tools.quantities import format_count
from megatron_ext.plan.render_table import align_numbers, frame
from megatron_ext.study.page.wording import duration
from megatron_ext.study.state import NodeState, States
from megatron_ext.study.study_plan import ArmPlan, EvaluationNode, StudyPlan
from megatron_ext.study.tasks import Node, node_name, nodes_of

_STYLES = {
    "finished": "green",
    "running": "bold cyan",
    "queued": "cyan",
    "stopped": "yellow",
    "failed": "bold red",
    "blocked": "red",
    "waiting": "dim",
}
_MARKS = {"finished": "done", "failed": "FAILED", "waiting": "-"}
"""Of the states that chains of arms show in another word."""


def status_view(plan: StudyPlan, states: States, *, remark: str = "") -> Group:
    """A table of nodes, one of arms, what has failed with its log, and a line of counts.

    Args:
        plan: The study.
        states: Of every node.
        remark: Stands beside the counts: who runs the study.
    """
    failures = [
        Text.assemble((f"{state.state} ", _STYLES[state.state]), f"{state.name}: {state.reason}", log_of(state))
        for state in states.values()
        if state.state in ("failed", "stopped")
    ]
    line = Text(f"{plan.name}: {counts(states)}{f'; {remark}' if remark else ''}")
    return Group(_nodes_table(plan, states, list(nodes_of(plan))), "", _arms_table(plan, states), "", *failures, line)


def at_work(plan: StudyPlan, states: States) -> Group:
    """The nodes that run or have failed, and the counts: what fits a screen while a study runs."""
    shown = [node for node in nodes_of(plan) if states[node_name(node)].state in ("running", "queued", "failed")]
    return Group(_nodes_table(plan, states, shown), Text(f"{plan.name}: {counts(states)}"))


def counts(states: States) -> str:
    """How many nodes are in which state.

    >>> counts({"a": NodeState("a", "finished"), "b": NodeState("b", "waiting"), "c": NodeState("c", "finished")})
    '2 of 3 finished, 1 waiting'
    """
    found = Counter[str](state.state for state in states.values())
    others = [f"{found[state]} {state}" for state in _STYLES if state != "finished" and found[state]]
    return ", ".join([f"{found['finished']} of {len(states)} finished", *others])


def log_of(state: NodeState) -> str:
    """Where to read more of a node's end."""
    return f"\n    {state.log}" if state.log is not None else ""


def status_json(plan: StudyPlan, states: States, *, runner: Mapping[str, Any] | None) -> str:
    """The same as JSON.

    Args:
        plan: The study.
        states: Of every node.
        runner: The process that runs the study; None where there is none.
    """
    nodes = [
        asdict(states[node_name(node)])
        | {"log": str(states[node_name(node)].log) if states[node_name(node)].log is not None else None}
        | {"kind": _kind(node), "arms": list(plan.stage(node.stage_id).arms)}
        for node in nodes_of(plan)
    ]
    arms = [{"arm": arm.id, "chains": _chain_states(arm, states)} for arm in plan.arms]
    said = {"study": plan.name, "runner": runner, "nodes": nodes, "arms": arms}
    return json.dumps(said, indent=1, allow_nan=False)


def _chain_states(arm: ArmPlan, states: States) -> list[list[dict[str, str]]]:
    return [[{"stage_id": stage, "state": states[stage].state} for stage in chain] for chain in arm.chains]


def _kind(node: Node) -> str:
    return "evaluation" if isinstance(node, EvaluationNode) else node.stage


def _nodes_table(plan: StudyPlan, states: States, nodes: Sequence[Node]) -> Table:
    numbers = ("step", "of", "tokens/s", "loss", "left")
    table = frame("node", "recipe", "arms", "state", *numbers, "")
    align_numbers(table, numbers)
    for node in nodes:
        state = states[node_name(node)]
        reason = "" if state.state in ("failed", "stopped") else state.reason
        said: list[str | Text] = [Text(state.state, _STYLES[state.state]), *_numbers(node, state), Text(reason, "dim")]
        if isinstance(node, EvaluationNode):
            table.add_row(f"  {node.folder}", "", "", *said)
        else:
            seed = f" (seed {node.seed})" if node.replicate else ""
            table.add_row(node.stage_id, f"{Path(node.recipe).stem}{seed}", _some(node.arms), *said)
    return table


def _numbers(node: Node, state: NodeState) -> Sequence[str]:
    if isinstance(node, EvaluationNode):
        return ("", "", "", "", "")
    one = state.progress
    if one is None:
        return ("", f"{node.total_steps:,}", "", "", "")
    is_running = state.state == "running"
    speed = format_count(round(one.tokens_per_s)) if is_running and one.tokens_per_s else ""
    loss = f"{one.loss:.3f}" if one.loss is not None and one.reward is None else ""
    if one.reward is not None:
        loss = f"reward {one.reward:.2f}"
    left = duration(one.seconds_left) if is_running and one.seconds_left is not None else ""
    return (f"{one.step:,}", f"{one.total:,}", speed, loss, left)


def _arms_table(plan: StudyPlan, states: States) -> Table:
    table = frame("arm", "stages")
    for arm in plan.arms:
        chains = Text("\n").join(_chain(plan, chain, states) for chain in arm.chains)
        table.add_row(arm.id, chains)
    return table


def _chain(plan: StudyPlan, chain: Sequence[str], states: States) -> Text:
    parts = []
    for stage_id in chain:
        state = states[stage_id].state
        evaluations = [states[node_name(one)].state for one in plan.evaluations_of(stage_id)]
        done = evaluations.count("finished")
        judged = f", judged {done}/{len(evaluations)}" if evaluations else ""
        recipe = Path(plan.stage(stage_id).recipe).stem
        parts.append(Text.assemble(f"{recipe} ", (f"{_MARKS.get(state, state)}{judged}", _STYLES[state])))
    return Text("  >  ").join(parts)


def _some(arms: Sequence[str], most: int = 2) -> str:
    return ", ".join(arms[:most]) + (f" +{len(arms) - most}" if len(arms) > most else "")
