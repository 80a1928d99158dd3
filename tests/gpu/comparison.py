"""A report beside the last one that was recorded on the same GPUs: what is faster, what is slower.

Recorded reports lie in `tests/gpu/reports/`, one for each kind and number of GPUs. A number that is more than 10 %
worse is flagged. Nothing fails for it: single runs on shared hosts differ by that much.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REPORTS = Path(__file__).parent / "reports"
ALLOWED = 0.10

BETTER = {"tokens_per_s": "more", "mfu": "more", "step_ms": "less", "peak_memory": "less", "gb_per_s": "more"}
"""Numbers of a benchmark that are compared, and which way is better; those below `sampled_tokens_per_s` too."""


@dataclass(frozen=True)
class Compared:
    """One number, then and now; `ratio` is now / then."""

    part: str
    what: str
    then: float
    now: float
    is_worse: bool

    @property
    def ratio(self) -> float:
        """Now over then."""
        return self.now / self.then


def recorded_file(gpus: list[str]) -> Path:
    """Where the report of such GPUs is recorded.

    >>> recorded_file(["NVIDIA H200, 139 GiB, sm 9.0"]).name
    'nvidia_h200_x1.json'
    """
    name = re.sub(r"[^a-z0-9]+", "_", gpus[0].split(",")[0].lower()).strip("_")
    return REPORTS / f"{name}_x{len(gpus)}.json"


def compare(report: Mapping[str, Any], recorded: Mapping[str, Any]) -> list[Compared]:
    """Every number that both reports have, in the order of the new one."""
    then = {part["name"]: dict(_numbers(part["facts"])) for part in recorded["parts"]}
    found = []
    for part in report["parts"]:
        for what, (now, better) in _numbers(part["facts"]):
            before, _ = then.get(part["name"], {}).get(what, (0.0, ""))
            if before:
                worse = now < before * (1 - ALLOWED) if better == "more" else now > before * (1 + ALLOWED)
                found.append(Compared(part["name"], what, before, now, worse))
    return found


def _numbers(facts: Mapping[str, Any]) -> Iterator[tuple[str, tuple[float, str]]]:
    for what, better in BETTER.items():
        if isinstance(value := facts.get(what), (int, float)):
            yield what, (float(value), better)
    for texts, speed in facts.get("sampled_tokens_per_s", {}).items():
        yield f"sampled tokens/s, {texts} at once", (float(speed), "more")
    for name, speed in facts.get("collectives_gb_per_s", {}).items():
        yield f"{name}, GB/s", (float(speed), "more")


def comparison_lines(report: Mapping[str, Any]) -> list[str]:
    """The part of the report that compares, as Markdown."""
    file = recorded_file(report["gpus"])
    if not file.is_file():
        return ["", f"No report of such GPUs is recorded; `check.py --record` writes {file.name}."]
    recorded = json.loads(file.read_text())
    rows = compare(report, recorded)
    lines = ["", f"## Beside {file.name}, {recorded['date']}", ""]
    differing = [
        f"- {package} {recorded['versions'].get(package)} then, {version} now"
        for package, version in report["versions"].items()
        if recorded["versions"].get(package) != version
    ]
    lines += [*differing, "", "| part | number | then | now | now / then | |", "|---|---|---|---|---|---|"]
    lines += [
        f"| {row.part} | {row.what} | {row.then:,.4g} | {row.now:,.4g} | {row.ratio:.3f} | "
        f"{f'**worse by more than {ALLOWED:.0%}**' if row.is_worse else ''} |"
        for row in rows
    ]
    return lines
