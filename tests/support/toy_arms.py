"""Two arms that share a base and read the same two sources in other shares: trained once, 5 steps a stage."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from data_tools.tokenize import TokenizeJob, tokenize
from tests.support.toy_project import SITE, ToyProject

BASE = """\
extends: pretrain.yaml
data: {blend: [{source: sums.yaml, share: 0.75}, {source: words.yaml, share: 0.25}]}
budget: {tokens: 2_560}
schedule: {horizon_tokens: 5_120}
"""
SECOND = """\
extends: base.yaml
continue: base.yaml
data: {{blend: [{{source: sums.yaml, share: {sums}}}, {{source: words.yaml, share: {words}}}]}}
"""
RECIPES = ("base", "second-more-sums", "second-more-words")
STUDY = "study: toy\narms: [more-sums.yaml, more-words.yaml]\nvaries: [data.blend]\nbaseline: more-sums\n"


class _NoProgress:
    def advance(self, size: int) -> None:
        """Shows nothing."""


@dataclass(frozen=True)
class Arms:
    """The trained arms in a folder of their own, data too: a test may change everything in it."""

    root: Path
    base: Path
    sums: Path
    words: Path

    @property
    def study(self) -> Path:
        """The study file."""
        return self.root / "study.yaml"

    def retokenize(self, name: str) -> None:
        """Puts a source of 100 of its documents in the place of the one that was read."""
        lines = (self.root / f"{name}.jsonl").read_text().splitlines(keepends=True)
        (self.root / "few.jsonl").write_text("".join(lines[:100]))
        job = TokenizeJob(
            (self.root / "few.jsonl",), self.root / "data/tokenizer", self.root / "data" / name, append_eod=True
        )
        for file in (self.root / "data").glob(f"{name}.[bimo]*"):
            file.unlink()
        tokenize(job, _NoProgress())


def train_arms(project: ToyProject, root: Path) -> None:
    """Copies a project to `root` and trains base and arms there."""
    shutil.copytree(project.root, root)
    here = ToyProject(root)
    (root / "base.yaml").write_text(BASE)
    for name, share in {"more-sums": 0.75, "more-words": 0.25}.items():
        (root / f"second-{name}.yaml").write_text(SECOND.format(sums=share, words=1 - share))
        (root / f"{name}.yaml").write_text(f"arm: {name}\nstages: [base.yaml, second-{name}.yaml]\n")
    (root / "study.yaml").write_text(STUDY)
    _settle(root, project.root)
    for recipe in RECIPES:
        run = here.run(root / "runs", recipe=root / f"{recipe}.yaml")
        assert run.code == 0, run.output
        (root / f"{recipe}.id").write_text(run.stage_folder.name)


def copied_arms(trained: Path, root: Path) -> Arms:
    """A copy of what `train_arms` left; its stages are relative to it."""
    shutil.copytree(trained, root)
    _settle(root, trained)
    return Arms(root, *(Path("runs/stages") / (root / f"{recipe}.id").read_text() for recipe in RECIPES))


def _settle(root: Path, before: Path) -> None:
    """Paths that lead to where a folder was copied from lead into the copy."""
    (root / "site.yaml").write_text(SITE.format(root=root))
    for manifest in (root / "data").glob("*.manifest.json"):
        manifest.write_text(manifest.read_text().replace(f"{before}/", f"{root}/"))
