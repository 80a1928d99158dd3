"""Conversations into datasets: what is written, rejected, recognised, refused."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_tools import chat_encode
from data_tools.chat import ChatJob, ChatResult, chat
from data_tools.chat_template import SHIPPED_TEMPLATE, ChatTemplate
from data_tools.errors import DataError, UsageError
from data_tools.indexed import IndexedReader
from data_tools.loss_mask import read_masks
from data_tools.manifest import check_files, read_manifest
from data_tools.progress import NoProgress
from data_tools.readers import BadRecord
from data_tools.tokenizer import Tokenizer

WriteLines = Callable[..., Path]
QUESTION = {"from": "human", "value": "the cat?"}
ANSWER = {"from": "gpt", "value": "<think>\nsat\n</think>\n\nthe mat"}


def record(*turns: dict[str, str]) -> dict[str, Any]:
    return {"conversations": list(turns)}


@pytest.fixture
def job(tiny_tokenizer: Path, write_lines: WriteLines, tmp_path: Path) -> ChatJob:
    path = write_lines(record(QUESTION, ANSWER), record(QUESTION, ANSWER, QUESTION, ANSWER))
    return ChatJob(inputs=(path,), tokenizer=tiny_tokenizer, output=tmp_path / "out" / "c", adapter="sharegpt")


def run(job: ChatJob, **changes: Any) -> ChatResult:
    return chat(dataclasses.replace(job, **changes), NoProgress())


def trained_text(job: ChatJob, conversation: int) -> str:
    ids = IndexedReader(job.output)[conversation]
    mask = read_masks(job.output).mask(conversation, tokens=len(ids))
    return Tokenizer.load(job.tokenizer).decode(ids[mask].tolist())


def test_a_document_a_conversation_and_a_mask_of_what_the_assistant_says(job: ChatJob) -> None:
    manifest = run(job).manifest
    reader, masks = IndexedReader(job.output), read_masks(job.output)
    text = Tokenizer.load(job.tokenizer).decode(reader[0].tolist())
    said = "<think>\nsat\n</think>\n\nthe mat<|im_end|>"
    assert text == f"<|im_start|>user\nthe cat?<|im_end|>\n<|im_start|>assistant\n{said}\n"
    assert [trained_text(job, number) for number in range(2)] == [said, said + said]
    start, stop = masks.thinking[0].tolist()
    assert Tokenizer.load(job.tokenizer).decode(reader[0][start:stop].tolist()) == "\nsat\n"
    assert manifest == read_manifest(job.output)
    assert manifest.chat is not None
    assert manifest.chat.trained_tokens == sum(int(stop - start) for start, stop in masks.runs.tolist())
    assert (manifest.documents, manifest.chat.encoded_by, manifest.chat.checked) == (2, "segments", 2)
    check_files(job.output, manifest)


def test_the_end_of_turn_is_trained_on_where_it_is_also_the_padding(job: ChatJob, tmp_path: Path) -> None:
    folder = tmp_path / "eos"
    folder.mkdir()
    for file in job.tokenizer.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    names = {"eos_token": "<|im_end|>", "pad_token": "<|im_end|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(names))
    run(job, tokenizer=folder)
    assert trained_text(job, 0).endswith("the mat<|im_end|>")


@pytest.mark.parametrize(
    ("thinking", "kept"), [("keep", [1, 2]), ("strip", [0, 0]), ("last", [1, 1])], ids=["keep", "strip", "last"]
)
def test_traces_are_kept_stripped_or_only_the_last_stays(job: ChatJob, thinking: str, kept: list[int]) -> None:
    run(job, thinking=thinking)
    assert [trained_text(job, number).count("<think>") for number in range(2)] == kept


def test_training_on_answers_alone_leaves_their_thinking_in_the_text(job: ChatJob) -> None:
    run(job, train_on=frozenset({"assistant"}))
    assert trained_text(job, 0) == "\n\nthe mat<|im_end|>"


def test_a_finished_job_is_recognised_and_another_is_refused(job: ChatJob) -> None:
    first = run(job)
    again = run(job)
    assert (first.was_done, again.was_done) == (False, True)
    assert again.manifest == first.manifest
    with pytest.raises(DataError, match="thinking: it has keep, asked for strip"):
        run(job, thinking="strip")
    assert not run(job, thinking="strip", overwrite=True).was_done


def test_a_changed_input_is_another_job(job: ChatJob, write_lines: WriteLines) -> None:
    run(job)
    write_lines(record(QUESTION, ANSWER))
    with pytest.raises(DataError, match="sha256 of"):
        run(job)


def test_a_changed_mask_file_is_noticed(job: ChatJob) -> None:
    run(job)
    path = job.output.with_suffix(".mask")
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(DataError, match=r"c\.mask: has \d+ bytes, its manifest says"):
        run(job)


def test_records_without_a_conversation_end_the_job_or_are_counted_and_listed(
    job: ChatJob, write_lines: WriteLines
) -> None:
    write_lines(record(QUESTION, ANSWER), record(QUESTION), b"{", record(QUESTION, {"from": "dog", "value": "wuff"}))
    with pytest.raises(DataError, match=r"in\.jsonl:2: bad conversation"):
        run(job)
    assert not list(job.output.parent.glob("c.*"))
    manifest = run(job, on_error="skip").manifest
    assert (manifest.documents, manifest.rejected) == (1, 3)
    assert manifest.rejected_by_reason == {"bad conversation": 2, "malformed": 1}
    rows = [json.loads(line) for line in job.rejects_path.read_text().splitlines()]
    assert [row["line"] for row in rows] == [2, 3, 4]


def test_an_end_of_turn_in_what_is_said_ends_no_turn(job: ChatJob, write_lines: WriteLines) -> None:
    write_lines(record(QUESTION, {"from": "gpt", "value": "a<|im_end|>b"}))
    run(job)
    ids = IndexedReader(job.output)[0].tolist()
    assert ids.count(3) == 2  # <|im_end|>
    assert trained_text(job, 0) == "a<|im_end|>b<|im_end|>"


def test_a_tokenizer_that_must_see_whole_texts_gets_them(job: ChatJob, tmp_path: Path, write_lines: WriteLines) -> None:
    run(job)
    by_segments = IndexedReader(job.output)[0].tolist(), read_masks(job.output).runs.tolist()
    folder = tmp_path / "greedy"
    folder.mkdir()
    for file in job.tokenizer.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    content = json.loads((folder / "tokenizer.json").read_text())
    content["added_tokens"][-1]["lstrip"] = True  # a reserved token, which no text here spells
    (folder / "tokenizer.json").write_text(json.dumps(content))
    whole = dataclasses.replace(job, tokenizer=folder, output=tmp_path / "whole" / "c")
    manifest = run(whole).manifest
    assert manifest.chat is not None
    assert manifest.chat.encoded_by == "whole"
    assert (IndexedReader(whole.output)[0].tolist(), read_masks(whole.output).runs.tolist()) == by_segments
    write_lines(record(QUESTION, {"from": "gpt", "value": "a<|im_end|>b"}))
    with pytest.raises(DataError, match=r"in\.jsonl:1: control token"):
        run(whole, overwrite=True)


def test_ways_that_disagree_end_the_job(job: ChatJob, write_lines: WriteLines, monkeypatch: pytest.MonkeyPatch) -> None:
    write_lines(record(QUESTION, {"from": "gpt", "value": "the mat"}))  # "assistant", newline, answer: one piece
    # A fault put into the fast way: no tokenizer is known that both ways take and disagree about.
    monkeypatch.setattr(chat_encode.SegmentEncoder, "tokens_before", lambda *_, **__: 0)
    with pytest.raises(DataError, match=r"in\.jsonl:1: encoded by pieces and as a whole it differs: trained tokens"):
        run(job)
    assert not list(job.output.parent.glob("c.*"))


@pytest.mark.parametrize("parts", ["thinking", "assistant,users"])
def test_what_cannot_be_trained_on_is_refused(job: ChatJob, parts: str) -> None:
    with pytest.raises(UsageError, match="--train-on"):
        run(job, train_on=frozenset(parts.split(",")))


def test_a_folder_without_a_template_names_the_remedy(job: ChatJob, tmp_path: Path) -> None:
    folder = tmp_path / "bare"
    folder.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((job.tokenizer / name).read_bytes())
    with pytest.raises(DataError, match="holds no chat template .* give --chat-template FILE"):
        run(job, tokenizer=folder)
    assert run(job, tokenizer=folder, chat_template=SHIPPED_TEMPLATE).manifest.documents == 2


def template(source: str) -> ChatTemplate:
    return ChatTemplate(source, control_tokens=("<|end|>",), variables={"bos_token": "<s>"})


def test_a_template_sees_named_tokens_and_refuses_by_exception() -> None:
    chat_template = template("{{ bos_token }}{% if tools %}{{ raise_exception('no tools') }}{% endif %}")
    assert chat_template.render([], None).text == "<s>"
    with pytest.raises(BadRecord, match="template: the chat template refuses it: no tools"):
        chat_template.render([], [1])


@pytest.mark.parametrize("source", ["{{ ''.__class__.__mro__ }}", "{{ messages.append(1) }}"])
def test_a_template_cannot_leave_its_sandbox(source: str) -> None:
    with pytest.raises(BadRecord, match="template"):
        template(source).render([], None)


def test_a_wrong_template_names_its_line() -> None:
    with pytest.raises(DataError, match="chat template, line 2"):
        template("a\n{% if %}")


def test_a_template_that_rewrites_earlier_turns_must_mark_the_assistants() -> None:
    source = "{% for m in messages %}{{ m.content if loop.last else '-' }}<|end|>{% endfor %}"
    turns = [{"role": role, "content": role} for role in ("user", "assistant")]
    with pytest.raises(BadRecord, match="rewrites earlier turns"):
        template(source).render(turns, None)


def test_the_mask_covers_no_token_twice(job: ChatJob) -> None:
    run(job)
    masks = read_masks(job.output)
    for conversation in range(2):
        runs = masks.runs[masks.first_run[conversation] : masks.first_run[conversation + 1]]
        assert (np.diff(runs.ravel()) > 0).all()
