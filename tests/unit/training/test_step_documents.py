"""`trace` names what a step reads: the rows of training, with their documents, places and text."""

from __future__ import annotations

import ast
import json
import re
import shlex
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

from data_tools.errors import DataError, UsageError
from megatron_ext.__main__ import main
from megatron_ext.datasets.blended import BlendedCursor
from megatron_ext.plan.lineage import chain_behind
from megatron_ext.plan.meaning import stage_id
from megatron_ext.plan.stage_plan import StagePlan
from megatron_ext.training.step_documents import Piece, print_trace, trace_step
from tests.support.sources import plan_reading, write_source
from tests.support.toy_project import Run, ToyProject, environment

PHASES = [{"a": 6, "b": 2}, {"a": 4, "b": (8, "replay")}]


def _plan(folder: Path, number: int, **changes: object) -> StagePlan:
    """The plan of a stage whose meaning is a number."""
    if not (folder / "a.idx").is_file():
        write_source(folder / "a", [[1 + d % 7, 2, 0] for d in range(40)])
        write_source(folder / "b", [[11 + d % 7, 12, 0] for d in range(8)])
    sources = {"a": (folder / "a", 10), "b": (folder / "b", 10)}
    plan = plan_reading(sources, global_batch_size=4, phases=PHASES, **changes)
    meaning = {"stage": "pretrain", "number": number}
    return plan.model_copy(update={"meaning": meaning, "stage_id": stage_id(meaning)})


def _train(folder: Path, plan: StagePlan, *, checkpoints: set[int], parent: BlendedCursor | None) -> list[list[str]]:
    """The sample ids of every step as two ranks read them, rank after rank; leaves a stage's folder."""
    stage = folder / "stages" / plan.stage_id
    stage.mkdir(parents=True)
    (stage / "plan.json").write_text(plan.model_dump_json())
    ranks = [BlendedCursor(plan, data_parallel_rank=rank, data_parallel_size=2) for rank in range(2)]
    steps = []
    for rank in ranks:
        if parent is not None:
            rank.take_over(parent.state_dict(), ledger=[])
    for step in range(1, plan.batch.total_steps + 1):
        microbatches = [[list(batch.sample_ids) for batch in rank.next_step()] for rank in ranks]
        steps.append([name for pair in zip(*microbatches, strict=True) for names in pair for name in names])
        if step in checkpoints:
            path = stage / "checkpoints" / f"step_{step}"
            path.mkdir(parents=True)
            (path / "state.json").write_text(json.dumps({"cursor": ranks[0].state_dict()}))
    last = f"checkpoints/step_{plan.batch.total_steps}"
    facts = {"stage_id": plan.stage_id, "meaning": plan.meaning, "checkpoint": last}
    facts["tokenizer_fingerprint"] = plan.data.tokenizer_fingerprint
    (stage / "stage.json").write_text(json.dumps(facts))
    return steps


@pytest.mark.parametrize("checkpoints", [{5}, {2, 4, 5}])
def test_every_step_of_a_chain_of_phases_is_what_its_ranks_read(tmp_path: Path, checkpoints: set[int]) -> None:
    first = _plan(tmp_path, 1)
    read = {first.stage_id: _train(tmp_path, first, checkpoints=checkpoints, parent=None)}
    end = BlendedCursor(first, data_parallel_rank=0, data_parallel_size=1)
    for _ in range(5):
        end.next_sample_ids()
    second = _plan(tmp_path, 2, parent=chain_behind(first))
    read[second.stage_id] = _train(tmp_path, second, checkpoints=checkpoints, parent=end)
    assert read[first.stage_id] != read[second.stage_id]
    for name, steps in read.items():
        for step, sample_ids in enumerate(steps, 1):
            assert [row.sample_id for row in trace_step(tmp_path / "stages" / name, step)] == sample_ids


def test_a_stage_that_begins_with_weights_reads_from_the_first_row_on(tmp_path: Path) -> None:
    first = _plan(tmp_path, 1)
    steps = _train(tmp_path, first, checkpoints={5}, parent=None)
    second = _plan(tmp_path, 2, init_from=chain_behind(first, gives="weights"))
    assert _train(tmp_path, second, checkpoints=set(), parent=None) == steps
    for step, sample_ids in enumerate(steps, 1):
        assert [row.sample_id for row in trace_step(tmp_path / "stages" / second.stage_id, step)] == sample_ids


def test_pieces_are_the_documents_of_a_row_and_its_label_with_their_ids(tmp_path: Path) -> None:
    stage = _plan(tmp_path, 1)
    _train(tmp_path, stage, checkpoints=set(), parent=None)
    for row in trace_step(tmp_path / "stages" / stage.stage_id, 1):
        first, word = (11, 12) if row.sample_id[0] == "b" else (1, 2)
        ids = [
            [first + piece.document % 7, word, 0][at]
            for piece in row.pieces
            for at in range(piece.start, piece.start + piece.length)
        ]
        assert row.ids == tuple(ids)
        assert len(ids) == 5
        assert all(isinstance(piece, Piece) and piece.origin is None for piece in row.pieces)


def test_a_packed_row_lists_its_document_and_not_its_padding(tmp_path: Path) -> None:
    packed = {"packing": "best_fit", "store": str(tmp_path)}
    stage = _plan(tmp_path, 1, data=packed)
    _train(tmp_path, stage, checkpoints=set(), parent=None)
    for row in trace_step(tmp_path / "stages" / stage.stage_id, 1):
        ((document, start, length, _),) = ((p.document, p.start, p.length, p.origin) for p in row.pieces)
        first, word = (11, 12) if row.sample_id[0] == "b" else (1, 2)
        assert (start, length) == (0, 3)
        assert row.ids == (first + document % 7, word, 0, 0, 0)


@pytest.mark.parametrize(("packing", "announced"), [("none", " and a label"), ("best_fit", "")])
def test_a_row_is_announced_with_a_label_where_it_has_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], packing: str, announced: str
) -> None:
    stage = _plan(tmp_path, 1, data={"packing": packing, "store": str(tmp_path)})
    _train(tmp_path, stage, checkpoints=set(), parent=None)
    print_trace(tmp_path / "stages" / stage.stage_id, 1, tokenizer=None, with_text=False)
    assert capsys.readouterr().out.splitlines()[0] == f"{stage.stage_id}, step 1: 4 rows of 4 tokens{announced}"


def test_a_step_that_the_stage_does_not_have_and_what_is_no_stage_are_refused(tmp_path: Path) -> None:
    stage = _plan(tmp_path, 1)
    _train(tmp_path, stage, checkpoints=set(), parent=None)
    with pytest.raises(UsageError, match=f"--step 6: {stage.stage_id} has steps 1 to 5"):
        trace_step(tmp_path / "stages" / stage.stage_id, 6)
    with pytest.raises(DataError, match="plan.json: missing; name a stage's folder"):
        trace_step(tmp_path, 1)


def _warned(run: Run) -> dict[int, list[str]]:
    """The sample ids of each step that was not finite, as the run said them."""
    found = re.findall(r"step (\d+): loss is nan.*?samples read +([^(]*)  \(", run.output, re.DOTALL)
    return {int(step): samples.split() for step, samples in found}


@pytest.mark.slow
def test_data_that_lie_elsewhere_from_here_are_not_blamed_and_the_folder_of_the_run_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    _plan(tmp_path, 1)
    plan = plan_reading({name: (Path(name), 10) for name in "ab"}, global_batch_size=4, phases=PHASES)
    stage = tmp_path / "runs/stages/pretrain-1"
    stage.mkdir(parents=True)
    (stage / "plan.json").write_text(plan.model_dump_json())
    assert trace_step(stage, 1)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    with pytest.raises(DataError) as refusal:
        trace_step(Path("../runs/stages/pretrain-1"), 1)
    assert str(refusal.value) == (
        f"a: not found from {elsewhere}; the paths of ../runs/stages/pretrain-1/plan.json are relative to the working "
        f"directory of the run. It is there from {tmp_path}: cd {tmp_path}, and name the stage's folder as {stage}"
    )
    (tmp_path / "a.manifest.json").unlink()
    with pytest.raises(DataError, match="Change to the folder of the run, or restore the data, and name the stage's"):
        trace_step(Path("../runs/stages/pretrain-1"), 1)


def test_the_error_of_a_loss_that_is_not_finite_names_the_command_that_shows_its_documents(
    toy_project: ToyProject, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # The first update of this size makes every later loss NaN.
    overrides = ("optimizer.lr=1e30", "optimizer.min_lr=1e30", "schedule={style: constant, warmup_tokens: 0}")
    run = toy_project.run(tmp_path, *overrides, "training.max_skipped_steps=2", processes=2)
    monkeypatch.chdir(toy_project.root)  # the plan names its data as seen from there
    said = _warned(run)
    assert list(said) == [2, 3, 4]
    for step, samples in said.items():
        assert sorted(row.sample_id for row in trace_step(run.stage_folder, step)) == samples
    message = json.loads((run.stage_folder / "exit.json").read_text())["message"]
    rows = {row.sample_id: row for row in trace_step(run.stage_folder, 4)}
    listed = [line.strip().split(": ", 1) for line in message.splitlines() if re.match(r"    \w+:\d+:\d+: ", line)]
    assert [sample for sample, _ in listed] == said[4][:8]
    for sample, documents in listed:
        pieces = [
            f"{piece.source} document {piece.document:,}, tokens {piece.start:,} to {piece.start + piece.length:,}"
            for piece in rows[sample].pieces
        ]
        more = [f"and {len(pieces) - 4} more"] if pieces[4:] else []
        assert documents == "; ".join([*pieces[:4], *more])
    assert " ".join(said[4]) in message
    command = shlex.split(message.splitlines()[-1].removeprefix("  Their documents: "))
    assert command == ["megatron-ext", "trace", str(run.stage_folder), "--step", "4", "--text"]
    assert main(command[1:]) == 0
    lines = capsys.readouterr().out.splitlines()
    place = re.compile(r"  document (\d+), tokens (\d+) to (\d+)  (.*)\.jsonl row (\d+)")
    matches = [(place.fullmatch(line), text) for line, text in pairwise(lines)]
    shown = [(match, text) for match, text in matches if match is not None]
    assert shown
    for match, text in shown:
        document, _, _, file, row = match.groups()
        assert int(row) == int(document) + 1, "toy files have a document a row"
        whole = json.loads(Path(f"{file}.jsonl").read_text().splitlines()[int(document)])["text"]
        assert ast.literal_eval(text.strip()).removesuffix("<|endoftext|>") in whole


REFUSES_WITHOUT_TORCH = """\
import sys
from megatron_ext.__main__ import main
code = main(sys.argv[1:])
sys.exit(f"torch was loaded, exit code {code}" if "torch" in sys.modules else code)
"""


def test_a_step_behind_the_last_is_refused_before_torch_is_loaded(tmp_path: Path) -> None:
    stage = tmp_path / "stages" / "pretrain-1"
    stage.mkdir(parents=True)
    (stage / "plan.json").write_text(_plan(tmp_path, 1).model_dump_json())
    command = [sys.executable, "-c", REFUSES_WITHOUT_TORCH, "trace", str(stage), "--step", "6"]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.endswith("has steps 1 to 5\n")) == (2, True), done.stderr
