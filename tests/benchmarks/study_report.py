"""How long the report of a large study takes, and how large its page is.

    python tests/benchmarks/study_report.py [--bases 12] [--items 1000] [--steps 100000]

With 12 bases a study of 26 stages and 25 evaluations of three tasks, 100,000 lines of metrics each, written to a
temporary folder (about 800 MB).
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

from megatron_ext.study.page.html import page_html
from megatron_ext.study.report.make import make_report
from tests.support.study_on_disk import TASKS, MadeUp, study_plan, write_evaluation, write_stage

LINE = {"skipped_steps": 0, "loss_by_source": {"web": 2.1, "traces": 1.9}, "validation": {}, "grad_norm": 0.5}


def write_metrics(folder: Path, steps: int, tokens: int) -> None:
    """A long metrics.jsonl, in place of the short one."""
    per_step = max(1, tokens // steps)
    with (folder / "metrics.jsonl").open("w") as file:
        for step in range(1, steps + 1):
            counters = {"step": step, "consumed_samples": step, "consumed_tokens": step * per_step}
            values = {"loss": 2.0 + 1.0 / step, "lr": 1e-3, "tokens_per_s": 1e5, "save_s": 0.0}
            file.write(json.dumps({**counters, "trained_tokens": step * per_step, **values, **LINE}) + "\n")


def main() -> None:
    """Writes the study, reports it, and prints what that took."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bases", type=int, default=12)
    parser.add_argument("--items", type=int, default=1_000)
    parser.add_argument("--steps", type=int, default=100_000)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        root = Path(name) / "runs"
        root.mkdir()
        plan = study_plan(root, seeds=1, bases=[f"base{number}" for number in range(arguments.bases)])
        for stage in plan.stages:
            write_stage(root, stage)
            write_metrics(root / "stages" / stage.stage_id, arguments.steps, arguments.steps * 100)
        for node in plan.evaluations:
            write_evaluation(root, plan.stage(node.stage_id), MadeUp(dict.fromkeys(TASKS, 0.5)), items=arguments.items)
        began, worked = time.perf_counter(), time.process_time()
        report = make_report(plan, command="benchmark")
        made, made_work = time.perf_counter(), time.process_time()
        size = len(page_html(report).encode())
        shown, shown_work = time.perf_counter(), time.process_time()
        tasks = f"{len(TASKS)} tasks x {arguments.items:,}"
        print(f"{len(plan.stages)} stages, {len(plan.evaluations)} evaluations of {tasks}")
        print(f"numbers {made - began:.1f} s ({made_work - worked:.1f} s of processor)")
        print(f"page    {shown - made:.1f} s ({shown_work - made_work:.1f} s of processor), {size / 1e3:,.0f} kB")


if __name__ == "__main__":
    main()
