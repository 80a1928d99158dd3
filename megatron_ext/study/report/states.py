"""The state of every stage and evaluation of a study, under the names that plans give them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from megatron_ext.study.launcher import Launcher
from megatron_ext.study.state import States, node_states
from megatron_ext.study.study_plan import StudyPlan
from megatron_ext.study.tasks import node_name, nodes_of


def states_of(plan: StudyPlan, launchers: Iterable[Launcher]) -> States:
    """The states, by stage id or by `STAGE_ID/FOLDER` of an evaluation. Reads only."""
    found = node_states(plan, Path(plan.run_root), launchers)
    return {getattr(node, "node_id", node.stage_id): found[node_name(node)] for node in nodes_of(plan)}
