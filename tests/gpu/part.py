"""One part of the GPU check: a command, how long it may take, what its output says, and a file that keeps it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parents[2]
SHARE = Path(__file__).parent / "triton_share"
GRACE_S = 5.0
"""For processes to end in order, once told so."""

Read = Callable[[str, Path | None], dict[str, Any]]


@dataclass
class Part:
    """What came of one part.

    Attributes:
        status: passed, "failed…", or "not run: why".
        facts: Numbers for the report.
    """

    name: str
    status: str
    seconds: float = 0.0
    facts: dict[str, Any] = field(default_factory=dict)
    output: str = ""


@dataclass(frozen=True)
class Wanted:
    """A part that can be run.

    Attributes:
        limit_s: After so long it is ended.
        words: Its command.
        file: That the command writes; None reads its output.
        read: Gives the facts of output and file.
        lacks: What it needs and this machine has not.
        gpus: That it uses; more than one run alone.
        alone: Whether nothing may run beside it, because it measures time.
        on_request: Whether it is run only by its name, because it takes long or needs more.
        smallest_only: Whether Triton takes the smallest configuration of each kernel.
    """

    name: str
    limit_s: float
    words: tuple[str, ...]
    read: Read
    file: Path | None = None
    lacks: tuple[str, ...] = ()
    gpus: int = 1
    alone: bool = True
    on_request: bool = False
    smallest_only: bool = False


def share(which: str) -> dict[str, str]:
    """The environment in which Triton tries the share of configurations that triton_share calls `which`."""
    path = os.pathsep.join(filter(None, [str(SHARE), os.environ.get("PYTHONPATH")]))
    return os.environ | {"PYTHONPATH": path, "TRITON_SHARE": which}


def run_part(wanted: Wanted, deadline: float) -> Part:
    """Runs one command within its own limit and the whole check's."""
    name = wanted.name
    if wanted.lacks:
        return said(Part(name, f"not run: needs {' and '.join(wanted.lacks)}"))
    left = min(wanted.limit_s, deadline - time.monotonic())
    if left <= 0:
        return said(Part(name, "not run: out of time"))
    began = time.monotonic()
    environment = (share("none") if wanted.smallest_only else dict(os.environ)) | {"TRITON_CACHE_AUTOTUNING": "1"}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(REPOSITORY), environment.get("PYTHONPATH")]))
    environment["GPU_CHECK_GPUS"] = str(wanted.gpus)
    if wanted.gpus > 1:
        environment.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "1")  # megatron_ext/runtime/device.py says why
    with subprocess.Popen(
        wanted.words, cwd=REPOSITORY, env=environment, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, start_new_session=True,
    ) as process:  # fmt: skip
        try:
            output, _ = process.communicate(timeout=left)
        except subprocess.TimeoutExpired:
            _end(process)
            output, _ = process.communicate()
            return said(Part(name, f"failed: still running after {left:.0f} s", left, output=output))
    status = "passed" if process.returncode == 0 else "failed"
    facts = wanted.read(output, wanted.file) if status == "passed" or wanted.file is not None else {}
    if facts and not facts.get("passed", 1) and status == "passed":
        status = "not run: every test was skipped"
    return said(Part(name, status, time.monotonic() - began, facts, "" if status == "passed" else output))


def _end(process: subprocess.Popen[str]) -> None:
    """Ends its process group, in order first: torchrun then ends its ranks, which no kill of the group reaches."""
    os.killpg(process.pid, signal.SIGTERM)
    until = time.monotonic() + GRACE_S
    while time.monotonic() < until:
        process.poll()  # one that has ended stays in its group until it is asked
        try:
            os.killpg(process.pid, 0)
        except ProcessLookupError:
            return
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)


def said(part: Part) -> Part:
    """Prints a line of it."""
    print(f"{part.name}: {part.status} ({part.seconds:.0f} s)", flush=True)
    return part


def keep(folder: Path, part: Part, stamp: Mapping[str, Any]) -> Part:
    """Writes what came of a part, so that a check that is cut short loses nothing."""
    folder.mkdir(parents=True, exist_ok=True)
    _file(folder, part.name).write_text(json.dumps({"stamp": stamp, **asdict(part)}, indent=1) + "\n")
    return part


def kept(folder: Path, name: str, stamp: Mapping[str, Any]) -> Part | None:
    """The part as it passed before, on the same machine, with the same code and packages; None otherwise."""
    file = _file(folder, name)
    if not file.is_file():
        return None
    found = json.loads(file.read_text())
    if found.pop("stamp") != stamp or found["status"] != "passed":
        return None
    return Part(**found)


def _file(folder: Path, name: str) -> Path:
    return folder / f"{re.sub(r'[^a-z0-9]+', '_', name.lower())}.json"


def read_junit(_output: str, file: Path | None) -> dict[str, Any]:
    """Counts of a pytest run, and the reasons of what was not run."""
    if file is None or not file.is_file():
        return {}
    suite = next(ElementTree.parse(file).getroot().iter("testsuite"))
    counts = {key: int(suite.get(key, "0")) for key in ("tests", "failures", "errors", "skipped")}
    passed = counts["tests"] - counts["failures"] - counts["errors"] - counts["skipped"]
    reasons = sorted({str(skip.get("message")) for skip in suite.iter("skipped")})
    return {"passed": passed, **counts, "not_run": reasons}


def read_json(output: str, _file: Path | None) -> dict[str, Any]:
    """The last line that is JSON."""
    lines = [line for line in output.splitlines() if line.startswith("{")]
    found: dict[str, Any] = json.loads(lines[-1]) if lines else {}
    return found


def pytest_words(name: str, junit: Path, *options: str) -> tuple[str, ...]:
    """A pytest command that writes `junit`."""
    words = (sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junit-xml={junit}")
    return (*words, *options, f"tests/gpu/{name}.py")


def module_words(name: str, *options: str, gpus: int = 1) -> tuple[str, ...]:
    """A command that prints a line of JSON; of several ranks the first one does."""
    launcher = (sys.executable,)
    if gpus > 1:
        launcher += ("-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={gpus}")
    return (*launcher, "-m", f"tests.gpu.{name}", *options)
