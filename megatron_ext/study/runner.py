"""Brings a study forward on this machine: begins what can begin, waits, and says what became of it.

Nothing that the next run would need is kept in memory: what is finished, running or failed is asked of
`state.node_states` at every look. A run begins a node once: what fails waits for the next run.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from data_tools.errors import SetupError
from megatron_ext.study.launcher import Launched, Task, node_folder, read_launched, say_asked_to_stop
from megatron_ext.study.launchers import finders
from megatron_ext.study.local import LocalLauncher
from megatron_ext.study.state import States, node_states
from megatron_ext.study.stop_request import StopRequest
from megatron_ext.study.study_plan import StudyPlan
from megatron_ext.study.tasks import is_finished

_BEGINS = ("waiting", "stopped", "failed")
"""States of a node that a run begins."""


@dataclass
class Runner:
    """One run of a study on this machine.

    Args:
        plan: The study.
        run_root: Folder that holds `stages/` and `studies/`.
        tasks: What is to be run, by name, parents first.
        launcher: Begins it.
        say: Writes a line for people.
        show: Is given the states at every look.
        look_s: Between two looks.
    """

    plan: StudyPlan
    run_root: Path
    tasks: Mapping[str, Task]
    launcher: LocalLauncher
    say: Callable[[str], None]
    show: Callable[[States], None]
    look_s: float = 1.0
    _begun: set[str] = field(default_factory=set)
    _full: str = ""

    def run(self, asked: StopRequest) -> States:
        """Goes on until nothing runs and nothing can begin.

        Args:
            asked: Entered; says when to stop.

        Returns:
            The states at the end.

        Raises:
            SetupError: A node could not be begun; those that ran have ended.
        """
        others = [one for one in finders(self.run_root) if one.kind != self.launcher.kind]
        before: States = {}
        has_stopped = has_killed = False
        while True:
            states = node_states(self.plan, self.run_root, [self.launcher, *others], with_progress=True)
            self._tell(before, states)
            self.show(states)
            before = states
            self._begun |= {name for name, state in states.items() if state.state == "running" and state.is_ours}
            if asked.to_stop and not has_stopped:
                has_stopped = True
                self._stop(states, f"the study got {asked.to_stop}", now=False)
            if asked.at_once and not has_killed:
                has_killed = True
                self._stop(states, "the study got a second Ctrl-C", now=True)
            if not asked.to_stop and not self._full and self._begin(states):
                continue
            if not self._is_to_wait(states, is_asked=bool(asked.to_stop)):
                break
            time.sleep(self.look_s)
        if self._full:
            raise SetupError(self._full)
        return states

    def _begin(self, states: States) -> bool:
        """Begins the first node that can; whether there was one."""
        running = self._launched(states)
        for name, task in self.tasks.items():
            if name in self._begun or states[name].state not in _BEGINS or not self._is_ready(task):
                continue
            if not self.launcher.has_room(task, running):
                continue
            self._begun.add(name)
            try:
                self.launcher.launch([task], running=running)
            except (OSError, SetupError) as error:
                reason = f"{error.filename or task.folder}: {error.strerror}" if isinstance(error, OSError) else error
                self._full = (
                    f"{name} could not be begun: {reason}\n"
                    "  Nothing more was begun, and what ran has ended or goes on. Mend that, and run the study again."
                )
                self.say(f"{name} could not be begun: {reason}")
                return False
            return True
        return False

    def _is_ready(self, task: Task) -> bool:
        return all(is_finished(self.run_root, self.plan.stage(parent)) for parent in task.after)

    def _is_to_wait(self, states: States, *, is_asked: bool) -> bool:
        """Whether something runs that this run has to see the end of: its own, or what others do of its tasks."""
        needed = {*self.tasks, *(parent for task in self.tasks.values() for parent in task.after)}
        is_others = any(states[name].state in ("running", "queued") for name in needed)
        return bool(self._launched(states)) or (is_others and not is_asked)

    def _launched(self, states: States) -> dict[str, Launched]:
        """The starts on this machine that run now, of earlier runs too."""
        running = [name for name, state in states.items() if state.state == "running" and state.is_ours]
        found = {name: read_launched(node_folder(self.run_root, self.plan.name, name)) for name in running}
        kind = self.launcher.kind
        return {name: one for name, one in found.items() if one is not None and one.kind == kind}

    def _stop(self, states: States, how: str, *, now: bool) -> None:
        launched = self._launched(states)
        if not launched:
            return
        what = "ended at once" if now else "asked to save and end; Ctrl-C again ends them at once"
        self.say(f"{how}: {len(launched)} running {'node is' if len(launched) == 1 else 'nodes are'} {what}")
        say_asked_to_stop(launched.values(), how, now=now)
        self.launcher.cancel(launched, now=now)

    def _tell(self, before: States, states: States) -> None:
        """A line for each node that began, ended, or was found running."""
        for name, state in states.items():
            was = before[name].state if name in before else None
            if state.state == was or name not in self.tasks:
                continue
            if state.state == "running":
                found = "" if was is not None or not state.is_ours else ", begun by an earlier run: waited for"
                self.say(f"running   {name}{found or (f', {state.reason}' if state.reason else '')}")
            elif was is not None and state.state in ("finished", "failed", "stopped"):
                log = f" ({state.log})" if state.log is not None and state.state != "finished" else ""
                self.say(f"{state.state:9} {name}{f': {state.reason}' if state.reason else ''}{log}")
