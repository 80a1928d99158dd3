"""The commands `plan`, `blend` and `overlap` as people type them."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest

from data_tools.__main__ import main
from tests.support.pencil_project import make_pencil_project

REPOSITORY = Path(__file__).parents[2]
WORDS = " ".join(f"w{number}" for number in range(20))


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Sources a and b of 1,000 and 400 tokens, and a blend of both."""
    monkeypatch.chdir(tmp_path)
    make_pencil_project(Path())
    Path("blend.yaml").write_text(
        "blend: pencil\nentries:\n  - {source: a.yaml, share: 0.75}\n  - {source: b.yaml, share: 0.25}\n"
    )
    return tmp_path


def run(command: str) -> int:
    return main(shlex.split(command))


def report_lines(kind: str) -> list[dict[str, Any]]:
    """The lines of report.jsonl that hold `kind`: `pair` of what was compared, `side` of a document with a hit."""
    lines = [json.loads(line) for line in Path("report.jsonl").read_text().splitlines()]
    return [line for line in lines if kind in line]


def help_of(verb: str, capsys: pytest.CaptureFixture[str]) -> list[str]:
    with pytest.raises(SystemExit):
        main([verb, "--help"])
    text = capsys.readouterr().out
    assert text.startswith("Example:\n  python -m data_tools ")
    return shlex.split(text.split("\n\n")[0].removeprefix("Example:\n").replace("\\\n", " "))[3:]


def test_the_example_of_plan_runs_on_the_shipped_blend(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(REPOSITORY)
    assert main(help_of("plan", capsys)) == 0
    shown = capsys.readouterr().out
    assert "sizes declared: provisional" in " ".join(shown.split())
    assert "domains: math 57.2 %, general 25.1 %, code 17.5 %, science 0.3 %" in shown


def test_plan_shows_samples_and_epochs(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("plan blend.yaml --tokens 640 --sequence-length 16") == 0
    assert [line.split() for line in capsys.readouterr().out.splitlines()[-2:]] == [
        ["a", "75.00", "480", "30", "0.48", "1", "1K", "math"],
        ["b", "25.00", "160", "10", "0.4", "1", "400", "math"],
    ]


def test_a_source_that_falls_short_is_an_error_with_remedies(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("plan blend.yaml --tokens 3200 --sequence-length 16") == 2
    assert capsys.readouterr().err.splitlines() == [
        "error: 2 problems",
        'blend.yaml:3: entries[0].share: source "a" cannot supply its share.',
        "  needed   2,400 processed tokens (75.0 % of budget 3,200)",
        "  has      1,000 tokens x max_epochs 1 = 1,000",
        "  all      2 sources may give 1,376 together: no shares suffice",
        "  Lower --tokens to 1,328, or raise max_epochs to 3.",
        'blend.yaml:4: entries[1].share: source "b" cannot supply its share.',
        "  needed   800 processed tokens (25.0 % of budget 3,200)",
        "  has      400 tokens x max_epochs 1 = 400",
        "  Lower --tokens to 1,328, or raise max_epochs to 3.",
    ]


def test_blend_writes_the_plan_and_exports_and_warns(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = "blend blend.yaml --tokens 640 --sequence-length 16 --out out --export megatron-args --export bridge"
    assert run(command) == 0
    assert sorted(path.name for path in Path("out").iterdir()) == [
        "blend_plan.json",
        "bridge.json",
        "megatron_args.txt",
    ]
    assert json.loads(Path("out/blend_plan.json").read_bytes())["command"] == f"data-tools {command}"
    assert "WARNING: stock Megatron does not enforce max_epochs" in capsys.readouterr().err


def test_another_blend_plan_is_refused_and_its_exports_go_with_it(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    blend = "blend blend.yaml --sequence-length 16 --out out --tokens"
    assert run(f"{blend} 640 --export megatron-args --export bridge") == 0
    assert run(f"{blend} 640 --export per-split-json") == 0
    capsys.readouterr()
    assert run(f"{blend} 320 --export megatron-args") == 3
    assert capsys.readouterr().err.splitlines()[:4] == [
        "error: out: holds another blend plan; give --overwrite, or another --out",
        "  requested_tokens: it has 640, asked for 320",
        "  samples: it has 40, asked for 20",
        "  tokens: it has 640, asked for 320",
    ]
    assert "--train-samples 40" in Path("out/megatron_args.txt").read_text()
    assert run(f"{blend} 320 --export megatron-args --overwrite") == 0
    assert sorted(path.name for path in Path("out").iterdir()) == ["blend_plan.json", "megatron_args.txt"]
    assert "--train-samples 20" in Path("out/megatron_args.txt").read_text()


def test_an_export_of_a_source_that_is_not_built_leaves_no_folder(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(REPOSITORY)
    out = tmp_path / "out"
    assert run(f"blend recipes/blends/lmq.yaml --tokens 80B --data-root {tmp_path} --out {out} --export bridge") == 3
    assert "openthoughts3: declared, not built, so there is no dataset to name" in capsys.readouterr().err
    assert not out.exists()


def test_a_bad_budget_is_a_usage_error(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("plan blend.yaml --tokens many") == 2
    assert "error: --tokens: 'many' is not a count" in capsys.readouterr().err


def test_overlap_reports_what_a_corpus_shares_with_another_and_with_an_evaluation_set(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, texts in {"one": [WORDS, "short"], "two": ["no", WORDS.upper()], "test": [f"x {WORDS} y"]}.items():
        Path(f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    assert run("overlap one.jsonl two.jsonl --against test.jsonl --out report.jsonl") == 0
    pairs = [[side["name"] for side in line["pair"]] for line in report_lines("pair")]
    assert pairs == [["one.jsonl", "two.jsonl"], ["one.jsonl", "test.jsonl"], ["two.jsonl", "test.jsonl"]]
    lines = report_lines("side")
    assert [(line["side"], line["against"], line["row"], line["hits"], line["duplicate"]) for line in lines] == [
        ("one.jsonl", "two.jsonl", 1, 8, True),
        ("two.jsonl", "one.jsonl", 2, 8, True),
        ("one.jsonl", "test.jsonl", 1, 8, False),
        ("test.jsonl", "one.jsonl", 1, 8, False),
        ("two.jsonl", "test.jsonl", 2, 8, False),
        ("test.jsonl", "two.jsonl", 1, 8, False),
    ]
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["one.jsonl", "two.jsonl", "2", "1", "1", "0", "1", "1"] in rows  # one duplicate, one short, not found


def test_overlap_of_a_source_reads_the_text_that_its_manifest_names(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("text.jsonl").write_text(json.dumps({"text": WORDS}) + "\n")
    path = Path("data/a.manifest.json")
    manifest = json.loads(path.read_text())
    manifest["sources"] = [{"path": "text.jsonl", "bytes": 1, "sha256": ""}]
    path.write_text(json.dumps(manifest))
    assert run("overlap a.yaml text.jsonl --out report.jsonl") == 0
    sides = [line["side"] for line in report_lines("side")]
    assert sides == ["a.yaml", "text.jsonl"]


def test_a_report_never_replaces_what_is_compared(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("text.jsonl").write_text(json.dumps({"text": WORDS}) + "\n")
    Path("more.jsonl").write_text(json.dumps({"text": WORDS}) + "\n")
    before = Path("more.jsonl").read_bytes()
    assert run("overlap text.jsonl --against more.jsonl --out ./more.jsonl") == 2
    assert "--out: more.jsonl: is one of the files that are compared; name another" in capsys.readouterr().err
    assert Path("more.jsonl").read_bytes() == before


def test_overlap_with_nothing_to_compare_is_a_usage_error(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("overlap a.jsonl") == 2
    assert "nothing to compare with; give B, or --against EVAL" in capsys.readouterr().err


def test_a_blend_that_is_not_there_names_those_that_are(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("plan blended.yaml --tokens 640") == 2
    err = capsys.readouterr().err
    assert err.startswith("error: blended.yaml: no such file; there are: a.yaml, b.yaml, blend.yaml, ")


def test_a_report_is_written_whole_into_a_folder_that_is_made(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("one", "two"):
        Path(f"{name}.jsonl").write_text(json.dumps({"text": WORDS}) + "\n")
    assert run("overlap one.jsonl two.jsonl --out new/report.jsonl") == 0
    before = Path("new/report.jsonl").read_bytes()
    assert before.count(b"\n") == 3
    Path("two.jsonl").write_text(json.dumps({"text": WORDS}) + "\n{\n")
    assert run("overlap one.jsonl one.jsonl --against two.jsonl --out new/report.jsonl") == 3
    assert [path.name for path in Path("new").iterdir()] == ["report.jsonl"]
    assert Path("new/report.jsonl").read_bytes() == before


def test_overlap_says_that_a_filtered_source_is_compared_whole(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("text.jsonl").write_text(json.dumps({"text": WORDS}) + "\n")
    path = Path("data/a.manifest.json")
    manifest = json.loads(path.read_text())
    manifest |= {
        "sources": [{"path": "text.jsonl", "bytes": 1, "sha256": ""}],
        "where": "answer_tokens > 4096",
        "left_out": 3,
    }
    path.write_text(json.dumps(manifest))
    assert run("overlap a.yaml text.jsonl") == 0
    assert (
        "WARNING: a.yaml: the text of a is compared whole, with 3 documents that --where 'answer_tokens > 4096' leaves "
        "out of its dataset\n"
    ) in capsys.readouterr().err


def test_overlap_of_a_source_passes_over_what_its_dataset_rejects(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("text.jsonl").write_text("{\n" + json.dumps({"text": WORDS}) + "\n")
    Path("other.jsonl").write_text(json.dumps({"text": WORDS}) + "\n")
    path = Path("data/a.manifest.json")
    manifest = json.loads(path.read_text()) | {"sources": [{"path": "text.jsonl", "bytes": 1, "sha256": ""}]}
    path.write_text(json.dumps(manifest))
    assert run("overlap a.yaml other.jsonl") == 3
    assert "text.jsonl:1: malformed" in capsys.readouterr().err
    path.write_text(json.dumps(manifest | {"rejected": 1, "rejected_by_reason": {"malformed": 1}}))
    assert run("overlap a.yaml other.jsonl --out report.jsonl") == 0
    assert "WARNING: a.yaml: 1 records of a that its dataset rejects are not compared\n" in capsys.readouterr().err
    assert [line["row"] for line in report_lines("side")] == [2, 1]


def test_overlap_of_a_source_reads_its_text_as_its_dataset_did(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("text.jsonl").write_text(json.dumps({"prompt": WORDS, "completion": "yes"}) + "\n")
    Path("other.jsonl").write_text(json.dumps({"text": WORDS}) + "\n")
    path = Path("data/a.manifest.json")
    manifest = json.loads(path.read_text()) | {"sources": [{"path": "text.jsonl", "bytes": 1, "sha256": ""}]}
    path.write_text(json.dumps(manifest | {"adapter": "prompt-completion", "text_key": "", "hold_out_percent": 2.0}))
    assert run("overlap a.yaml other.jsonl --out report.jsonl") == 0
    assert [line["hits"] for line in report_lines("side")] == [8, 8]
    assert "WARNING: a.yaml: the 2% of a that its dataset holds out are compared too\n" in capsys.readouterr().err
