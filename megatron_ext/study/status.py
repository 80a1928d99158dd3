"""`megatron-ext study status`: what is true of a study now, whoever runs it or has run it."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from rich.live import Live

from data_tools.errors import DataError, UserError
from megatron_ext.plan.render import terminal
from megatron_ext.recipe.study_load import load_study
from megatron_ext.study.as_run import RECORD
from megatron_ext.study.launcher import Launcher, study_folder
from megatron_ext.study.launchers import finders
from megatron_ext.study.named import study_named
from megatron_ext.study.state import node_states
from megatron_ext.study.status_view import States, status_json, status_view
from megatron_ext.study.study_lock import runner_of
from megatron_ext.study.study_plan import StudyPlan, read_study_plan

_LOOK_S = 2.0


@dataclass(frozen=True)
class Watched:
    """A study that is looked at.

    Attributes:
        plan: Of all its arms, as it was run last; as its file says where it never was.
        run_root: Folder that holds `stages/` and `studies/`.
    """

    plan: StudyPlan
    run_root: Path

    @classmethod
    def open(cls, study: Path, name: str, run_root: Path, *, site: Path | None) -> Watched:
        """Reads or makes the plan: that of the last run if it had all arms, else of all arms, with its replicates.

        Args:
            study: Its file.
            name: Its name.
            run_root: Folder that holds `studies/`.
            site: A site file; None takes the default.
        """
        recorded = _recorded(study_folder(run_root, name) / RECORD)
        all_arms = {arm.id for arm in load_study(study).arms}
        if recorded is not None and all_arms <= {arm.id for arm in recorded.arms}:
            return cls(recorded, run_root)
        try:
            return cls(study_named(study, site=site, run_root=run_root), run_root)
        except UserError as error:
            if recorded is None:
                raise
            shown = f"{len(recorded.arms)} of {len(all_arms)} arms are shown, those of the last run"
            print(f"WARNING: {study} cannot be planned now: {error}\n  {shown}", file=sys.stderr)
            return cls(recorded, run_root)

    @property
    def folder(self) -> Path:
        """Of the study."""
        return study_folder(self.run_root, self.plan.name)

    def states(self) -> States:
        """Of every node, now."""
        return node_states(self.plan, self.run_root, self._launchers, with_progress=True)

    @cached_property
    def _launchers(self) -> list[Launcher]:
        """Kept while it is watched: they remember what they asked a moment ago."""
        return finders(self.run_root)

    def remark(self) -> str:
        """Who brings it forward."""
        runner = runner_of(self.folder)
        return f"run by process {runner['pid']}" if runner is not None else "no run is at work, so nothing more begins"


def _recorded(file: Path) -> StudyPlan | None:
    """The plan of the last run; None where there is none, or none that can be read."""
    try:
        return read_study_plan(file) if file.is_file() else None
    except DataError:
        return None  # `study_named` says so


def print_status(watched: Watched, *, as_json: bool) -> None:
    """Prints it once."""
    if as_json:
        print(status_json(watched.plan, watched.states(), runner=runner_of(watched.folder)))
        return
    terminal().print(status_view(watched.plan, watched.states(), remark=watched.remark()))


def watch_status(watched: Watched) -> None:
    """Shows it until Ctrl-C, or until nothing is left to wait for."""
    with Live(console=terminal(), auto_refresh=False, vertical_overflow="visible") as live:
        while True:
            states = watched.states()
            live.update(status_view(watched.plan, states, remark=watched.remark()), refresh=True)
            is_moving = any(state.state in ("running", "queued") for state in states.values())
            if not is_moving and runner_of(watched.folder) is None:
                return
            time.sleep(_LOOK_S)
