"""A project small enough to train in seconds: a tokenizer, two sources and one recipe.

Everything is made by the product itself: `data_tools` trains the tokenizer and tokenises the sources,
`megatron_ext.run` runs the recipe.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_tools.tokenize import TokenizeJob, tokenize
from data_tools.tokenizer_training import train_tokenizer
from tests.support.distributed import run_recipe

REPOSITORY = Path(__file__).parents[2]
SITE = "data_root: {root}/data\nrun_root: {root}/runs\n"
MODEL = """\
name: toy
hybrid_layer_pattern: "M-M*M-"
hidden_size: 64
vocab_size: 512
ffn_hidden_size: 128
num_attention_heads: 4
num_query_groups: 2
kv_channels: 16
mamba_num_heads: 8
mamba_head_dim: 16
mamba_state_dim: 16
mamba_num_groups: 2
"""
SOURCE = "source: {name}\nprefix: {name}\nvalidation_prefix: {name}.validation\n"
RECIPE = """\
stage: pretrain
model: model.yaml
data:
  tokenizer: tokenizer
  blend:
    - {source: sums.yaml, share: 0.75}
    - {source: words.yaml, share: 0.25}
budget: {tokens: 5_120}                 # 10 steps of 8 x 64 tokens
training:
  sequence_length: 64
  global_batch_size: 8
  micro_batch_size: 4
  validation_interval_tokens: 2_560
  validation_tokens: 320                # 5 rows: no whole number of microbatches on two ranks
optimizer: {lr: 3e-3, min_lr: 3e-4}
schedule: {style: cosine, warmup_tokens: 1_024}
precision: fp32
checkpoint: {interval_tokens: 2_560, keep_last: 2}
logging: {tensorboard: false}
"""


@dataclass(frozen=True)
class Run:
    """One finished execution.

    Attributes:
        code: Exit code of the process that was started.
        output: Standard output and error together.
        run_root: Where the stages are.
    """

    code: int
    output: str
    run_root: Path

    @property
    def stage_folder(self) -> Path:
        """The folder of the stage that was run."""
        found = re.search(r"^((?:pretrain|sft|rl)-\w+): ", self.output, re.MULTILINE)
        assert found is not None, self.output
        return self.run_root / "stages" / found[1]

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl."""
        return [json.loads(line) for line in (self.stage_folder / "metrics.jsonl").read_text().splitlines()]

    @property
    def losses(self) -> list[float]:
        """The training loss of each step."""
        return [line["loss"] for line in self.metrics]

    def copied(self, run_root: Path) -> Run:
        """The same run in another run root, for a test that changes it or goes on from it."""
        shutil.copytree(self.run_root, run_root)
        return Run(code=self.code, output=self.output, run_root=run_root)


@dataclass(frozen=True)
class ToyProject:
    """A folder with data, recipe and site."""

    root: Path

    @property
    def recipe(self) -> Path:
        """The recipe of the only stage."""
        return self.root / "pretrain.yaml"

    def command(
        self,
        run_root: Path,
        *overrides: str,
        processes: int | None = None,
        flags: tuple[str, ...] = (),
        recipe: Path | None = None,
    ) -> list[str]:
        """The command line of a run; plain Python when `processes` is None, torchrun otherwise."""
        launcher = [sys.executable]
        if processes is not None:
            launcher += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
        sets = [part for override in overrides for part in ("--set", override)]
        paths = ["--site", str(self.root / "site.yaml"), "--run-root", str(run_root)]
        return [*launcher, "-m", "megatron_ext.run", str(recipe or self.recipe), *paths, *flags, *sets]

    def run(
        self,
        run_root: Path,
        *overrides: str,
        processes: int | None = None,
        flags: tuple[str, ...] = (),
        recipe: Path | None = None,
        timeout_s: int = 180,
        is_launched: bool = False,
    ) -> Run:
        """Runs the recipe to its end, in forked ranks; with `is_launched` through Python or torchrun itself."""
        command = self.command(run_root, *overrides, processes=processes, flags=flags, recipe=recipe)
        if not is_launched:
            arguments = command[command.index("megatron_ext.run") + 1 :]
            code, output = run_recipe(arguments, cwd=self.root, processes=processes, timeout_s=timeout_s)
            return Run(code=code, output=output, run_root=run_root)
        done = subprocess.run(
            command,
            cwd=self.root,
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        return Run(code=done.returncode, output=done.stdout, run_root=run_root)


def environment() -> dict[str, str]:
    """The environment of every process that a test starts: the repository first, one thread."""
    path = os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH")]))
    return os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}


def report_of(module: str, file: Path, *arguments: str, timeout_s: float) -> dict[str, Any]:
    """What a program of tests/support, in a process of its own, writes to `file` as JSON."""
    done = subprocess.run(
        [sys.executable, "-m", module, str(file), *arguments],
        cwd=REPOSITORY,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    found: dict[str, Any] = json.loads(file.read_text())
    return found


def make_toy_project(root: Path) -> ToyProject:
    """Writes the project below `root`."""
    data = root / "data"
    data.mkdir(parents=True)
    for name, line in {"sums": _sum_line, "words": _word_line}.items():
        _write_jsonl(root / f"{name}.jsonl", [line(n) for n in range(400)])
        _write_jsonl(root / f"{name}.validation.jsonl", [line(n) for n in range(400, 440)])
        (root / f"{name}.yaml").write_text(SOURCE.format(name=name))
    raw = [root / "sums.jsonl", root / "words.jsonl"]
    train_tokenizer(raw, key="text", vocab_size=400, out=data / "tokenizer")
    for name in ("sums", "sums.validation", "words", "words.validation"):
        job = TokenizeJob((root / f"{name}.jsonl",), data / "tokenizer", data / name, append_eod=True)
        tokenize(job, _NoProgress())
    (root / "model.yaml").write_text(MODEL)
    (root / "site.yaml").write_text(SITE.format(root=root))
    (root / "pretrain.yaml").write_text(RECIPE)
    return ToyProject(root)


class _NoProgress:
    def advance(self, size: int) -> None:
        """Shows nothing."""


def _sum_line(n: int) -> str:
    return " ".join(f"{n} plus {k} is {n + k}." for k in range(8))


def _word_line(n: int) -> str:
    return " ".join(f"word {n * 7919 % 1000 + k} follows word {n * 104729 % 1000 + k}." for k in range(8))


def _write_jsonl(path: Path, texts: list[str]) -> None:
    path.write_text(
        "".join(json.dumps({"id": f"{path.stem}-{n}", "text": text}) + "\n" for n, text in enumerate(texts))
    )
