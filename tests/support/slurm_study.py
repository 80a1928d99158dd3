"""A study on a private Slurm: what tests submit, hold still while they look, and look at."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from tests.support.slurm import PrivateSlurm
from tests.support.toy_study import ToyStudy

LAUNCHERS = {b"torch.distributed.run", b"nvidia_resiliency_ext.fault_tolerance.launcher", b"-"}
LONG = """\
extends: common.yaml
budget: {tokens: 20_480}                  # 40 steps of 8 x 64 tokens
schedule: {horizon_tokens: 20_480}
checkpoint: {interval_tokens: 10_240}
training: {validation_interval_tokens: 20_480, micro_batch_size: 1}
"""
LONG_STUDY = """\
study: long
arms: [arms/long.yaml, arms/other.yaml]
varies: [data.blend]
evaluate: {pretrain: [evaluate/held.yaml]}
"""
OTHER_BLEND = "data: {blend: [{source: sums.yaml, share: 1}]}\n"
WILD = """\
extends: common.yaml
optimizer: {lr: 1e+30, clip_grad: 0}      # diverges in its second step
"""
BEHIND_WILD = "continue: wild.yaml\n" + OTHER_BLEND
TWO_ARMS = """\
study: two
arms: [arms/steady.yaml, arms/wild.yaml]
varies: [optimizer]
evaluate: {pretrain: [evaluate/held.yaml]}
seeds: {pretrain: 2, sft: 2, rl: 2}
"""
SITE = """\
data_root: {root}/data
run_root: {root}/runs
slurm: {{time: "60", environment: [OMP_NUM_THREADS=1]{more}}}
"""


def add_slurm_studies(study: ToyStudy) -> None:
    """Writes `long.yaml` and `two.yaml`.

    long: an arm of one stage of 40 steps, and its evaluation; another arm stands beside it, which nobody runs.
    two: two seeds of common -> sums_base -> held, and of wild -> behind_wild -> held, of which wild diverges.
    """
    files = {
        "long_stage": LONG,
        "other_stage": LONG + OTHER_BLEND,
        "arms/long": "arm: long\nstages: [../long_stage.yaml]\n",
        "arms/other": "arm: other\nstages: [../other_stage.yaml]\n",
        "long": LONG_STUDY,
        "wild": WILD,
        "behind_wild": WILD + BEHIND_WILD,
        "arms/steady": "arm: steady\nstages: [../common.yaml, ../sums_base.yaml]\n",
        "arms/wild": "arm: wild\nstages: [../wild.yaml, ../behind_wild.yaml]\n",
        "two": TWO_ARMS,
    }
    for name, text in files.items():
        (study.root / f"{name}.yaml").write_text(text)


@dataclass(frozen=True)
class SlurmStudy:
    """One study in one run root.

    Attributes:
        slurm: Runs it.
        root: Of the project.
        file: The study.
        run_root: Where it goes.
        site: Its site.
    """

    slurm: PrivateSlurm
    root: Path
    file: str
    run_root: Path
    site: Path

    @classmethod
    def make(cls, slurm: PrivateSlurm, root: Path, file: str, run_root: Path, *, more: str = "") -> SlurmStudy:
        """Writes the site; `more` is what its slurm section says besides, such as `, nodes: 2`."""
        run_root.mkdir(parents=True)
        site = run_root / "site.yaml"
        site.write_text(SITE.format(root=root, more=more))
        return cls(slurm, root, file, run_root, site)

    def study(self, verb: str, *options: str, code: int = 0) -> str:
        """Runs `megatron-ext study VERB` and gives what it prints."""
        place = ["--site", str(self.site), "--run-root", str(self.run_root)]
        done = subprocess.run(
            [sys.executable, "-m", "megatron_ext", "study", verb, self.file, *place, *options],
            cwd=self.root,
            env=self.slurm.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=180,
        )
        assert done.returncode == code, done.stdout
        return done.stdout

    def submit(self, *options: str) -> dict[str, str]:
        """Runs the study; the jobs that were submitted, by node."""
        said = self.study("run", "--launcher", "slurm", *options)
        rows = [line.split() for line in said.splitlines() if line.startswith("submitted ")]
        return {row[2]: row[1] for row in rows}

    def states(self, *names: str) -> dict[str, str]:
        """State of each node, or of these, as `study status` has it."""
        return {name: str(node["state"]) for name, node in self.status().items() if not names or name in names}

    def status(self) -> Mapping[str, Mapping[str, object]]:
        """What `study status --json` says of each node."""
        nodes = json.loads(self.study("status", "--json"))["nodes"]
        return {node["name"]: node for node in nodes}

    def stage(self, node: str) -> Path:
        """The folder of a stage."""
        return self.run_root / "stages" / node

    def attempt(self, node: str, number: int) -> str:
        """What an attempt has printed; "" before it began."""
        log = self.run_root / "studies" / self.file.removesuffix(".yaml") / "nodes" / node / f"attempt_{number}.log"
        return log.read_text() if log.exists() else ""

    def wait_until_over(self, job: str | None = None) -> None:
        """Waits until a job, or everything, has left the queue."""
        is_over = lambda: not (self.slurm.queue() if job is None else job in dict(self.slurm.queue()))  # noqa: E731
        self.slurm.wait_for(f"{job or 'everything'} is over", is_over, timeout_s=400)

    def steps(self, node: str) -> int:
        """Steps that a stage has done."""
        file = self.stage(node) / "metrics.jsonl"
        return file.read_text().count("\n") if file.exists() else 0

    def trainers(self) -> list[int]:
        """The processes that train in this run root, without srun and the launchers, which only start them."""
        found = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                words = path.read_bytes().split(b"\0")
            except OSError:  # it has just ended
                continue
            starts_others = LAUNCHERS & {*words} or words[0].endswith(b"srun")
            if {b"megatron_ext.run", str(self.run_root).encode()} <= {*words} and not starts_others:
                found.append(int(path.parent.name))
        return sorted(found)

    @contextmanager
    def held(self, node: str, *, after_step: int) -> Iterator[list[int]]:
        """Stops the processes of a stage behind a step, so that there is time to look; gives them."""
        end = time.monotonic() + 600
        while self.steps(node) < after_step:
            assert time.monotonic() < end, f"{node} is not at step {after_step}"
            time.sleep(0.003)  # a step takes some hundredths of a second
        processes = self.trainers()
        assert processes, f"{node} is not running"
        for process in processes:
            os.kill(process, signal.SIGSTOP)
        try:
            yield processes
        finally:
            for process in processes:
                with suppress(ProcessLookupError):  # killed meanwhile
                    os.kill(process, signal.SIGCONT)
