"""Pretraining on conversations and plain text whose long documents lose thinking or are split, and what is counted."""

from __future__ import annotations

import json
from typing import Any

import pytest

from data_tools.chat import ChatJob, chat
from data_tools.chat_template_files import SHIPPED_TEMPLATE
from data_tools.indexed import IndexedReader
from data_tools.progress import NoProgress
from megatron_ext.__main__ import main
from tests.support.toy_project import Run, ToyProject

pytestmark = pytest.mark.slow

LENGTH = 64
RECIPE = """\
extends: pretrain.yaml
data:
  packing: best_fit
  long_documents: trim-thinking
  document_isolation: full
  blend:
    - {source: thoughts.yaml, share: 0.5}
    - {source: words.yaml, share: 0.5}
"""


@pytest.fixture(scope="module")
def trained(toy_project: ToyProject, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """40 rows of each source: 40 conversations think for longer than a row, 3 answer for longer than one."""
    root = toy_project.root
    for name, numbers in {"thoughts": range(43), "thoughts.validation": range(20, 40)}.items():
        raw = root / f"{name}.jsonl"
        raw.write_text("".join(json.dumps({"id": f"thought-{n}", "messages": _thought(n)}) + "\n" for n in numbers))
        job = ChatJob((raw,), root / "data/tokenizer", root / "data" / name, chat_template=SHIPPED_TEMPLATE)
        chat(job, NoProgress())
    (root / "thoughts.yaml").write_text("source: thoughts\nprefix: thoughts\nvalidation_prefix: thoughts.validation\n")
    recipe = root / "trim.yaml"
    recipe.write_text(RECIPE)
    run = toy_project.run(tmp_path_factory.mktemp("trimmed"), recipe=recipe)
    assert run.code == 0, run.output
    return run


def _thought(n: int) -> list[dict[str, str]]:
    sums = " ".join(f"{n} plus {k} is {n + k}." for k in range(12))
    answer = f"<think>{sums}</think>It is {n}." if n < 40 else f"<think>No.</think>{sums}"
    return [{"role": "user", "content": f"What is {n}?"}, {"role": "assistant", "content": answer}]


def _ledger(run: Run) -> dict[str, dict[str, Any]]:
    return {row["source"]: row for row in json.loads((run.stage_folder / "stage.json").read_text())["ledger"]}


def test_a_pass_over_long_conversations_trims_all_that_does_not_fit_a_row(
    toy_project: ToyProject, trained: Run
) -> None:
    prefix = str(toy_project.root / "data/thoughts")
    lengths = IndexedReader(prefix).lengths_between(0, 43).tolist()
    assert min(lengths) > LENGTH, "each of the 40 fills a row of its own"
    row = _ledger(trained)["thoughts"]
    counted = {name: row[name] for name in ("samples", "padding", "documents_cut", "trimmed", "truncated")}
    assert counted == {
        "samples": 40,
        "padding": 0,
        "documents_cut": 40,
        "trimmed": sum(lengths[:40]) - 40 * LENGTH,
        "truncated": 0,
    }
    assert (row["documents_dropped"], row["dropped"]) == (3, sum(lengths[40:]))


def test_long_texts_beside_them_are_split_and_plan_and_ledger_say_so(
    toy_project: ToyProject, trained: Run, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    row = _ledger(trained)["words"]
    assert (row["samples"], row["documents_cut"], row["trimmed"], row["documents_dropped"]) == (40, 0, 0, 0)
    assert row["long_documents"] == "split"
    monkeypatch.chdir(toy_project.root)
    assert main(["plan", "trim.yaml", "--site", "site.yaml"]) == 0
    assert "no thinking recorded: split" in capsys.readouterr().out
    assert main(["ledger", str(trained.stage_folder)]) == 0
    assert "long documents of words: split, since no thinking is recorded of them" in capsys.readouterr().out
