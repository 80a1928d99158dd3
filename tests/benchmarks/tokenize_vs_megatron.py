"""CPU time and memory of `data_tools tokenize` against Megatron's tools/preprocess_data.py, on the same bytes.

    python tests/benchmarks/corpus.py corpus.jsonl
    python tests/benchmarks/tekken.py …/tekken_240911.json tekken
    python tests/benchmarks/tokenize_vs_megatron.py corpus.jsonl tekken --megatron CHECKOUT [--repeat 3]

Both read the first quarter of the corpus and all of it: totals, and the slope between the two (marginal:
start-up removed). CPU is user + system of the whole process tree; memory is the peak of its summed PSS, looked at
every 50 ms; the outputs are compared byte by byte.
Ours runs with everything on: comparison of a sample by both libraries, hashes, origins, manifest. A third
row is our fallback, on the quarter; a fourth a second run of the finished job, which costs the same at any size,
and the size from which on that is under 2 % of the first. CHECKOUT is Megatron-LM at
core_v0.19.0; without it: not measured.
"""

from __future__ import annotations

import argparse
import filecmp
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
LOOK_S = 0.05
AGAIN_SHARE = 0.02
"""What a second run of a finished job may cost of the first."""


@dataclass(frozen=True)
class Cost:
    """What one run took.

    Attributes:
        cpu_s: User and system time of the process and its children.
        memory_mib: Largest proportional size (PSS) of the whole tree at one moment.
    """

    cpu_s: float
    memory_mib: float


def _run(command: list[str], *, cwd: Path) -> Cost:
    """Runs a command; its memory is looked at every `LOOK_S`."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(cwd)}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # what is installed has its bytecode beside it
    before = os.times()
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(command, cwd=cwd, env=environment, stdout=subprocess.DEVNULL, stderr=said)
        peak_kib = 0
        while process.poll() is None:
            peak_kib = max(peak_kib, sum(map(_pss_kib, _tree(process.pid))))
            time.sleep(LOOK_S)
        if process.returncode:
            said.seek(0)
            raise SystemExit(f"failed: {' '.join(command)}\n{said.read()[-2000:].decode()}")
    after = os.times()
    cpu_s = after.children_user + after.children_system - before.children_user - before.children_system
    return Cost(cpu_s, peak_kib / 1024)


def _tree(process: int) -> list[int]:
    """A process and all below it."""
    found = [process]
    for children in Path(f"/proc/{process}/task").glob("*/children"):
        try:
            found += [number for child in children.read_text().split() for number in _tree(int(child))]
        except OSError:  # it has just ended
            continue
    return found


def _pss_kib(process: int) -> int:
    """Memory of a process, what it shares divided by those who share it; 0 where it has ended. Source: proc(5)."""
    try:
        for line in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1])
    except OSError:
        pass
    return 0


def _ours(source: Path, tokenizer: Path, prefix: Path, *extra: str) -> Cost:
    command = [sys.executable, "-m", "data_tools", "tokenize", "--input", str(source), "--tokenizer", str(tokenizer)]
    command += ["--output", str(prefix), "--append-eod", "--compat", "megatron", *extra]
    return _run(command, cwd=REPOSITORY)


def _megatron(source: Path, tokenizer: Path, prefix: Path, checkout: Path) -> Cost:
    command = [sys.executable, "tools/preprocess_data.py", "--input", str(source), "--output-prefix", str(prefix)]
    command += ["--tokenizer-type", "HuggingFaceTokenizer", "--tokenizer-model", str(tokenizer)]
    return _run([*command, "--append-eod", "--workers", "1", "--log-interval", "1000000"], cwd=checkout)


def _first_quarter(corpus: Path, out: Path) -> None:
    room = corpus.stat().st_size // 4
    with corpus.open("rb") as source, out.open("wb") as quarter:
        while room > 0:
            room -= quarter.write(source.readline())


def _median(costs: list[Cost]) -> Cost:
    return Cost(
        cpu_s=statistics.median(cost.cpu_s for cost in costs),
        memory_mib=statistics.median(cost.memory_mib for cost in costs),
    )


def _same(ours: Path, theirs: Path) -> bool:
    return all(filecmp.cmp(f"{ours}{end}", f"{theirs}_text_document{end}", shallow=False) for end in (".bin", ".idx"))


def _slope(small: Cost, large: Cost, megabytes: tuple[float, float]) -> float:
    """Megabytes that one more CPU second takes."""
    return (megabytes[1] - megabytes[0]) / max(1e-9, large.cpu_s - small.cpu_s)


def _print(name: str, small: Cost, large: Cost, *, megabytes: tuple[float, float]) -> None:
    slope = _slope(small, large, megabytes)
    print(
        f"{name:<22} {large.cpu_s:8.2f} CPU s, {megabytes[1] / large.cpu_s:7.2f} MB/s, marginal {slope:7.2f} MB/s, "
        f"{small.memory_mib:6.0f} and {large.memory_mib:6.0f} MiB"
    )


def main() -> None:
    """Prints the table and the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", type=Path)
    parser.add_argument("tokenizer", type=Path)
    parser.add_argument("--megatron", type=Path, metavar="CHECKOUT")
    parser.add_argument("--repeat", type=int, default=1)
    options = parser.parse_args()
    corpus, tokenizer = options.corpus.resolve(), options.tokenizer.resolve()
    with tempfile.TemporaryDirectory(dir=corpus.parent) as folder:
        quarter = Path(folder) / "quarter.jsonl"
        _first_quarter(corpus, quarter)
        sizes = quarter.stat().st_size / 1e6, corpus.stat().st_size / 1e6
        _compare(options, (quarter, corpus), tokenizer, Path(folder), sizes)


def _compare(
    options: argparse.Namespace,
    sources: tuple[Path, Path],
    tokenizer: Path,
    folder: Path,
    megabytes: tuple[float, float],
) -> None:
    ours = [
        _median([_ours(source, tokenizer, folder / "ours", "--overwrite") for _ in range(options.repeat)])
        for source in sources
    ]
    _print("data_tools", *ours, megabytes=megabytes)
    fallback = _ours(sources[0], tokenizer, folder / "fallback", "--bpe", "tokenizers")
    print(f"{'data_tools, fallback':<22} {fallback.cpu_s:8.2f} CPU s of the quarter, {fallback.memory_mib:6.0f} MiB")
    again = _median([_ours(sources[1], tokenizer, folder / "ours") for _ in range(options.repeat)])
    share = 100 * again.cpu_s / ours[1].cpu_s
    enough = megabytes[1] + (again.cpu_s / AGAIN_SHARE - ours[1].cpu_s) * _slope(*ours, megabytes)
    print(
        f"{'data_tools, again':<22} {again.cpu_s:8.2f} CPU s, {share:.1f} % of the first run; "
        f"{100 * AGAIN_SHARE:.0f} % of that on {enough:,.0f} MB, less above"
    )
    if options.megatron is None:
        print("preprocess_data.py: not measured; give --megatron CHECKOUT")
        return
    theirs = [
        _median(
            [_megatron(source, tokenizer, folder / "theirs", options.megatron.resolve()) for _ in range(options.repeat)]
        )
        for source in sources
    ]
    _print("preprocess_data.py", *theirs, megabytes=megabytes)
    total = theirs[1].cpu_s / ours[1].cpu_s
    marginal = (theirs[1].cpu_s - theirs[0].cpu_s) / (ours[1].cpu_s - ours[0].cpu_s)
    print(f"CPU: {total:.1f} times less in total, {marginal:.1f} times marginal")
    print(f"fallback: {theirs[0].cpu_s / fallback.cpu_s:.2f} times less CPU on the quarter")
    print(f"memory: 1/{theirs[1].memory_mib / ours[1].memory_mib:.1f} of the whole process tree")
    print(f"same bytes: {_same(folder / 'ours', folder / 'theirs')}")


if __name__ == "__main__":
    main()
