"""`megatron-ext study status`: what is true of a study now, whoever runs it or has run it."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from rich.live import Live

from data_tools.errors import UserError
from megatron_ext.plan.render import terminal
from megatron_ext.study.as_run import RECORD, recorded, what_changed
from megatron_ext.study.launcher import Launcher, study_folder
from megatron_ext.study.launchers import finders
from megatron_ext.study.named import study_named
from megatron_ext.study.state import NodeState, States, node_states
from megatron_ext.study.status_view import status_json, status_view
from megatron_ext.study.study_lock import runner_of
from megatron_ext.study.study_plan import StudyPlan, read_study_plan

_LOOK_S = 2.0


@dataclass(frozen=True)
class StudyStatus:
    """A study that is looked at.

    Attributes:
        plan: Of all its arms, as its file says now, with the replicates of its runs; of a `study.json` that.
        run_root: Folder that holds `stages/` and `studies/`.
    """

    plan: StudyPlan
    run_root: Path

    @classmethod
    def open(cls, study: Path, name: str, run_root: Path, *, site: Path | None) -> StudyStatus:
        """Makes or reads the plan; what the file has no more of that of the last run is said.

        Args:
            study: Its file, or the `study.json` of a run.
            name: Its name.
            run_root: Folder that holds `studies/`.
            site: A site file; None takes the default.

        Raises:
            UserError: It cannot be planned, and was never run.
        """
        record = recorded(run_root, name)
        if study.suffix == ".json":
            return cls(read_study_plan(study), run_root)
        try:
            plan = study_named(study, site=site, run_root=run_root)
        except UserError as error:
            if record is None:
                raise
            _warn(f"{study} cannot be planned now, and is shown as it was when it was run last: {error}")
            return cls(record, run_root)
        if record is not None and plan.is_provisional and not record.is_provisional:
            _warn(f"{study}: its data are not here, and it is shown as it was when it was run last")
            return cls(record, run_root)
        if record is not None and (change := what_changed(plan, record)):
            file = study_folder(run_root, name) / RECORD
            _warn(f"{study}: {change}; as it was run: megatron-ext study status {file}")
        return cls(plan, run_root)

    @property
    def folder(self) -> Path:
        """Of the study."""
        return study_folder(self.run_root, self.plan.name)

    def states(self) -> States:
        """Of every node, now."""
        return node_states(self.plan, self.run_root, self._launchers, with_progress=True)

    @cached_property
    def _launchers(self) -> list[Launcher]:
        """Kept while it is study: they remember what they asked a moment ago."""
        return finders(self.run_root)

    def remark(self, states: States) -> str:
        """Who brings it forward, and of how many nodes the end that is told is from before that."""
        runner = runner_of(self.folder)
        if runner is None:
            return "no run is at work, so nothing more begins"
        earlier = sum(_ended_before(state, self.folder / ".lock") for state in states.values())
        again = f"; {earlier} failed or stopped before it, and what is in this run begins again" if earlier else ""
        return f"run by process {runner['pid']}{again}"


def _ended_before(state: NodeState, lock: Path) -> bool:
    """Whether a node ended before the run at work began, which then wrote itself into its lock."""
    try:
        is_earlier = state.log is not None and state.log.stat().st_mtime_ns < lock.stat().st_mtime_ns
    except FileNotFoundError:
        return False
    return state.state in ("failed", "stopped") and is_earlier


def _warn(text: str) -> None:
    print(f"WARNING: {text}", file=sys.stderr)


def print_status(study: StudyStatus, *, as_json: bool) -> None:
    """Prints it once."""
    if as_json:
        print(status_json(study.plan, study.states(), runner=runner_of(study.folder)))
        return
    states = study.states()
    terminal().print(status_view(study.plan, states, remark=study.remark(states)))


def watch_status(study: StudyStatus) -> None:
    """Shows it until Ctrl-C, or until nothing is left to wait for."""
    with Live(console=terminal(), auto_refresh=False, vertical_overflow="visible") as live:
        while True:
            states = study.states()
            live.update(status_view(study.plan, states, remark=study.remark(states)), refresh=True)
            is_moving = any(state.state in ("running", "queued") for state in states.values())
            if not is_moving and runner_of(study.folder) is None:
                return
            time.sleep(_LOOK_S)
