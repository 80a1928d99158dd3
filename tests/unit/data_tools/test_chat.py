"""Conversations into datasets: what is written, rejected, recognised, refused."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_tools import chat_encode
from data_tools.chat import ChatJob, chat
from data_tools.chat_shapes import Shape
from data_tools.chat_template import ChatTemplate
from data_tools.chat_template_files import SHIPPED_TEMPLATE
from data_tools.chat_write import LONGEST_CHECKED
from data_tools.errors import DataError, UsageError
from data_tools.indexed import IndexedReader
from data_tools.loss_mask import read_masks
from data_tools.manifest import check_files, read_manifest
from data_tools.merge import merge
from data_tools.origin import ORIGIN
from data_tools.progress import NoProgress
from data_tools.readers import BadRecord
from data_tools.selection import Where
from data_tools.shards import Task, freeze_plan, make_plan, tokenize_shards
from data_tools.split import id_hash
from data_tools.tokenize import TokenizeJob, TokenizeResult, tokenize
from data_tools.tokenizer import Tokenizer
from data_tools.verify import prefixes_of, verify

WriteLines = Callable[..., Path]
QUESTION = {"from": "human", "value": "the cat?"}
ANSWER = {"from": "gpt", "value": "<think>\nsat\n</think>\n\nthe mat"}


def record(*turns: dict[str, str]) -> dict[str, Any]:
    return {"conversations": list(turns)}


@pytest.fixture
def job(tiny_tokenizer: Path, write_lines: WriteLines, tmp_path: Path) -> ChatJob:
    path = write_lines(record(QUESTION, ANSWER), record(QUESTION, ANSWER, QUESTION, ANSWER))
    return ChatJob(inputs=(path,), tokenizer=tiny_tokenizer, output=tmp_path / "out" / "c", adapter="sharegpt")


def run(job: ChatJob, **changes: Any) -> TokenizeResult:
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
    assert Tokenizer.load(job.tokenizer).decode(reader[0][start:stop].tolist()) == "\nsat"
    assert manifest == read_manifest(job.output)
    assert manifest.chat is not None
    assert manifest.chat.trained_tokens == sum(int(stop - start) for start, stop in masks.runs.tolist())
    assert manifest.engine is not None
    assert (manifest.documents, manifest.engine.name, manifest.engine.compared) == (2, "gigatoken", 2)
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


def test_another_template_or_other_parts_to_train_on_are_another_job(job: ChatJob, tmp_path: Path) -> None:
    run(job)
    with pytest.raises(DataError, match=r"--train-on: it has \['assistant', .*\], asked for \['assistant'\]"):
        run(job, train_on=frozenset({"assistant"}))
    (template := tmp_path / "other.jinja").write_text(SHIPPED_TEMPLATE.read_text() + "{# other #}")
    with pytest.raises(DataError, match="--chat-template: it has [0-9a-f]{64}, asked for [0-9a-f]{64}"):
        run(job, chat_template=template)
    with pytest.raises(DataError, match="--special-tokens: it has literal, asked for reject"):
        run(job, special_tokens="reject")
    with pytest.raises(DataError, match="--where: it has all, asked for answer_tokens > 1"):
        run(job, where=Where.parse("answer_tokens > 1"))


def test_equal_ids_with_another_mask_are_other_data_and_do_not_merge(job: ChatJob) -> None:
    all_of_it = run(job).manifest
    other = dataclasses.replace(job, output=job.output.parent / "answers", train_on=frozenset({"assistant"}))
    answers = chat(other, NoProgress()).manifest
    assert answers.bin_sha256 == all_of_it.bin_sha256
    assert answers.data_id != all_of_it.data_id
    with pytest.raises(DataError, match=r"answers: chat\.train_on: \['assistant'\], but "):
        merge([job.output, other.output], job.output.parent / "merged", NoProgress())


def test_a_changed_input_is_another_job(job: ChatJob, write_lines: WriteLines) -> None:
    run(job)
    write_lines(record(QUESTION, ANSWER))
    with pytest.raises(DataError, match="bytes of"):
        run(job)


def test_another_token_that_the_template_asks_for_by_name_is_another_job(job: ChatJob, tmp_path: Path) -> None:
    shutil.copytree(job.tokenizer, folder := tmp_path / "named")
    job = dataclasses.replace(job, tokenizer=folder)
    template = folder / "chat_template.jinja"
    template.write_text("{{ bos_token }}" + template.read_text())
    config = json.loads((folder / "tokenizer_config.json").read_bytes())

    def name(**tokens: str) -> None:
        (folder / "tokenizer_config.json").write_text(json.dumps(config | tokens))

    name(bos_token="a", pad_token="<|pad|>")
    chat_record = run(job).manifest.chat
    assert chat_record is not None
    assert chat_record.template_tokens == {"bos_token": "a"}
    name(bos_token="a", pad_token="b")  # which the template does not ask for
    assert run(job).was_done
    name(bos_token="b", pad_token="b")
    said = (
        "tokens of tokenizer_config.json in the chat template: it has {'bos_token': 'a'}, asked for {'bos_token': 'b'}"
    )
    with pytest.raises(DataError, match=said):
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
    in_a_batch = IndexedReader(job.output)[0].tolist(), read_masks(job.output).runs.tolist()
    folder = tmp_path / "greedy"
    folder.mkdir()
    for file in job.tokenizer.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    content = json.loads((folder / "tokenizer.json").read_text())
    content["added_tokens"][-1]["lstrip"] = True  # a reserved token, which no text here spells
    (folder / "tokenizer.json").write_text(json.dumps(content))
    whole = dataclasses.replace(job, tokenizer=folder, output=tmp_path / "whole" / "c")
    manifest = run(whole).manifest
    assert manifest.engine is not None
    assert manifest.engine.compared == 0
    assert (IndexedReader(whole.output)[0].tolist(), read_masks(whole.output).runs.tolist()) == in_a_batch
    write_lines(record(QUESTION, {"from": "gpt", "value": "a<|im_end|>b"}))
    with pytest.raises(DataError, match=r"in\.jsonl:1: control token"):
        run(whole, overwrite=True)


def test_ways_that_disagree_end_the_job(job: ChatJob, write_lines: WriteLines, monkeypatch: pytest.MonkeyPatch) -> None:
    write_lines(record(QUESTION, {"from": "gpt", "value": "the mat"}))  # "assistant", newline, answer: one piece
    # A fault put into the fast way: no tokenizer is known that both ways take and disagree about.
    ranges = chat_encode._BytePlaces.ranges
    monkeypatch.setattr(chat_encode._BytePlaces, "ranges", lambda *args, **options: ranges(*args, **options) // 2)
    with pytest.raises(DataError, match=r"in\.jsonl:1: encoded in a batch and .* it differs: trained tokens"):
        run(job)
    assert not list(job.output.parent.glob("c.*"))


def test_a_turn_that_only_thinks_is_empty_without_its_trace(
    job: ChatJob, write_lines: WriteLines, tmp_path: Path
) -> None:
    write_lines(record(QUESTION, ANSWER), record(QUESTION, {"from": "gpt", "value": "<think>\nsat\n</think>"}))
    (path := tmp_path / "or.jinja").write_text(
        "{% for m in messages %}{{ m.content or 'nothing' }}<|im_end|>{% endfor %}"
    )
    run(job, thinking="strip", chat_template=path)
    assert [trained_text(job, number) for number in range(2)] == ["the mat<|im_end|>", "nothing<|im_end|>"]


def test_a_shape_that_is_not_what_the_template_makes_ends_the_job(
    job: ChatJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A fault put into filling: no template is known whose shape is wrong.
    filled = Shape.filled
    monkeypatch.setattr(Shape, "filled", lambda shape, contents: filled(shape, [said + "!" for said in contents]))
    with pytest.raises(DataError, match=r"in\.jsonl:1: rendered by itself it differs from what the shape"):
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


def test_origins_say_where_a_conversation_came_from_and_how_long_its_answer_is(
    job: ChatJob, write_lines: WriteLines
) -> None:
    write_lines({"id": "a", **record(QUESTION, ANSWER)}, b"{", {"id": "b", **record(QUESTION, ANSWER)})
    run(job, on_error="skip")
    origins = np.fromfile(job.output.with_suffix(".origin"), ORIGIN)
    assert origins["row"].tolist() == [1, 3]
    assert origins["id_hash"].tolist() == [id_hash("a"), id_hash("b")]
    runs = read_masks(job.output).runs
    assert origins["answer_tokens"].tolist() == (runs[:, 1] - runs[:, 0] - 1).tolist()  # the end of turn left out


def test_held_out_conversations_are_those_that_tokenize_holds_out(
    job: ChatJob, write_lines: WriteLines, tmp_path: Path
) -> None:
    path = write_lines(*({"id": str(number), **record(QUESTION, ANSWER)} for number in range(20)))
    result = run(job, hold_out_percent=40)
    text = TokenizeJob((path,), job.tokenizer, tmp_path / "text", adapter="sharegpt", hold_out_percent=40)
    tokenize(text, NoProgress())
    for name in ("", ".validation"):
        chats, texts = (np.fromfile(f"{prefix}{name}.origin", ORIGIN) for prefix in (job.output, text.output))
        assert chats["id_hash"].tolist() == texts["id_hash"].tolist()
        assert len(read_masks(f"{job.output}{name}")) == len(IndexedReader(f"{job.output}{name}")) == len(chats) > 0
    assert result.held_out is not None
    assert (result.held_out.split, result.manifest.documents + result.held_out.documents) == ("validation", 20)
    assert run(job, hold_out_percent=40).was_done
    for name in ("", ".validation"):
        verify(Path(f"{job.output}{name}"), deep=True)


def test_more_bad_records_than_allowed_end_the_job(job: ChatJob, write_lines: WriteLines) -> None:
    write_lines(record(QUESTION, ANSWER), b"{", b"{")
    assert run(job, on_error="skip", max_bad="2").manifest.rejected == 2
    with pytest.raises(DataError, match="more than --max-bad 1 records are bad"):
        run(job, on_error="skip", max_bad="1", overwrite=True)


def test_conversations_that_spell_a_control_token_are_left_out_if_asked(job: ChatJob, write_lines: WriteLines) -> None:
    write_lines(record(QUESTION, ANSWER), record(QUESTION, {"from": "gpt", "value": "a<|im_end|>b"}))
    manifest = run(job, special_tokens="reject", on_error="skip").manifest
    assert (manifest.documents, manifest.rejected_by_reason) == (1, {"control token": 1})
    assert len(read_masks(job.output)) == 1
    assert trained_text(job, 0).endswith("the mat<|im_end|>")
    with pytest.raises(UsageError, match="would let text forge turns"):
        run(job, special_tokens="parse", overwrite=True)


def test_a_filter_takes_conversations_by_their_answer(job: ChatJob, write_lines: WriteLines) -> None:
    write_lines(record(QUESTION, {"from": "gpt", "value": "a"}), record(QUESTION, {"from": "gpt", "value": "b" * 9}))
    manifest = run(job, where=Where.parse("answer_tokens > 1")).manifest
    assert (manifest.documents, manifest.left_out) == (1, 1)
    assert trained_text(job, 0) == "b" * 9 + "<|im_end|>"
    verify(job.output, deep=True)


def test_a_conversation_too_long_to_compare_gives_its_place_to_the_next(job: ChatJob, write_lines: WriteLines) -> None:
    long = {"from": "gpt", "value": "sat " * (LONGEST_CHECKED // 4)}
    write_lines(record(QUESTION, long), record(QUESTION, ANSWER), record(QUESTION, ANSWER))
    manifest = run(job).manifest
    assert manifest.documents == 3
    assert manifest.engine is not None
    assert manifest.engine.compared == 2


def test_ranges_by_characters_are_right_behind_text_with_marks(tiny_tokenizer: Path) -> None:
    tokenizer = Tokenizer.load(tiny_tokenizer, special_tokens="parse")
    inside = chr(0xFDD0)  # the mark of `chat_template.plain`, in a token that the text spells
    text = f"<{inside}|pad|>the cat"
    chat = chat_encode.Marked(text, [(8, 11)], [], (8, 15), is_protected=True)
    made = chat_encode.PieceEncoder(tokenizer, chat_encode.added_tokens(tokenizer)).encode(chat)
    (start, stop), ids = made.masks.runs[0], made.documents.ids.tolist()
    assert tokenizer.decode(ids[:start]) == "<|pad|>"
    assert tokenizer.decode(ids[start:stop]) == "the"


def test_shards_of_conversations_merge_into_what_one_job_writes(job: ChatJob, write_lines: WriteLines) -> None:
    write_lines(*({"id": str(number), **record(QUESTION, ANSWER)} for number in range(9)))
    whole = run(job).manifest
    shards = dataclasses.replace(job, output=job.output.parent / "shards")
    plan = make_plan(shards, shard_bytes=300)
    assert len(plan.parts) > 2
    freeze_plan(shards.output, plan, overwrite=False)
    write = lambda: tokenize_shards(shards, plan, Task(), NoProgress())  # noqa: E731
    assert not any(result.was_done for _, result in write())
    assert all(result.was_done for _, result in write())
    prefixes = prefixes_of(shards.output)
    merged = merge(prefixes, job.output.parent / "merged", NoProgress()).manifest
    assert merged.chat == whole.chat
    assert merged.data_id == whole.data_id
    verify(job.output.parent / "merged", deep=True)


def test_text_is_not_taken_for_conversations_of_the_same_input(job: ChatJob) -> None:
    run(job)
    text = TokenizeJob(job.inputs, job.tokenizer, job.output, adapter="sharegpt")
    with pytest.raises(DataError, match="holds conversations; give --overwrite"):
        tokenize(text, NoProgress())
    tokenize(dataclasses.replace(text, overwrite=True), NoProgress())
    with pytest.raises(DataError, match="holds documents of text; give --overwrite"):
        run(job)


def test_a_tokenizer_may_be_named_by_its_file(job: ChatJob) -> None:
    by_folder = run(job).manifest
    by_file = run(job, tokenizer=job.tokenizer / "tokenizer.json", output=job.output.parent / "d").manifest
    assert by_file.data_id == by_folder.data_id
