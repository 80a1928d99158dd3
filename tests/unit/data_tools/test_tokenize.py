"""JSONL into a dataset, and no dataset out of anything else."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import resource
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from data_tools.atomic_files import only_writer
from data_tools.encode import Encoder
from data_tools.errors import DataError, UsageError
from data_tools.indexed import IndexedReader
from data_tools.manifest import check_files, read_manifest, write_manifest
from data_tools.origin import DOMAINS, ORIGIN
from data_tools.progress import NoProgress
from data_tools.tokenize import TokenizeJob, TokenizeResult, tokenize
from data_tools.tokenizer import Tokenizer, describe, train
from tests.support.child_process import exit_code_of

WriteLines = Callable[..., Path]


def run(source: Path, tokenizer: Path, **options: object) -> TokenizeResult:
    """Tokenises `source` to the prefix `out` beside it."""
    fields: dict[str, object] = {"inputs": (source,), "tokenizer": tokenizer, "output": source.parent / "out"}
    return tokenize(TokenizeJob(**(fields | options)), NoProgress())  # type: ignore[arg-type]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_each_line_becomes_a_document_that_ends_with_the_eod(tiny_tokenizer: Path, write_lines: WriteLines) -> None:
    source = write_lines({"text": "the cat"}, {"text": "a"})
    run(source, tiny_tokenizer, append_eod=True)
    tokenizer = Tokenizer.load(tiny_tokenizer)
    reader = IndexedReader(source.parent / "out")
    documents = [reader[number].tolist() for number in range(len(reader))]
    assert documents == [[*tokenizer.encode("the cat"), 0], [*tokenizer.encode("a"), 0]]


def test_without_append_eod_no_document_has_one(tiny_tokenizer: Path, write_lines: WriteLines) -> None:
    source = write_lines({"text": "the cat"})
    manifest = run(source, tiny_tokenizer).manifest
    assert IndexedReader(source.parent / "out")[0].tolist() == Tokenizer.load(tiny_tokenizer).encode("the cat")
    assert (manifest.append_eod, manifest.eod_id) == (False, 0)


def test_an_eod_spelled_in_the_text_does_not_end_the_document(tiny_tokenizer: Path, write_lines: WriteLines) -> None:
    source = write_lines({"text": "a<|endoftext|>b"})
    run(source, tiny_tokenizer, append_eod=True)
    ids = IndexedReader(source.parent / "out")[0].tolist()
    assert ids.count(0) == 1
    assert ids[-1] == 0
    assert Tokenizer.load(tiny_tokenizer).decode(ids[:-1]) == "a<|endoftext|>b"


def test_tokens_are_counted_by_domain_on_both_sides_of_the_split(tiny_tokenizer: Path, write_lines: WriteLines) -> None:
    rows = []
    for number, domain in enumerate(["math", "code", "puzzle"] * 20):
        turns = [{"from": "human", "value": "~" * (1 + number % 7)}, {"from": "gpt", "value": "a"}]
        rows.append({"id": str(number), "domain": domain, "conversations": turns})
    source = write_lines(*rows)
    options = {"adapter": "openthoughts3", "append_eod": True, "hold_out_percent": 30.0}
    run(source, tiny_tokenizer, **options, validation=source.parent / "held")
    for prefix in (source.parent / "out", source.parent / "held"):
        expected = dict.fromkeys(["code", "general", "math"], 0)  # a word that the adapter does not know is general
        origins = np.fromfile(f"{prefix}.origin", ORIGIN)
        for length, number in zip(IndexedReader(prefix).lengths, origins["domain"], strict=True):
            expected[DOMAINS[number]] += int(length)
        assert all(expected.values())
        assert read_manifest(prefix).tokens_by_domain == expected


def test_the_manifest_describes_the_dataset(tiny_tokenizer: Path, write_lines: WriteLines) -> None:
    source = write_lines({"text": "a"}, {"text": "bc"}, {"text": "~"})
    manifest = run(source, tiny_tokenizer, append_eod=True, command="data-tools tokenize …").manifest
    prefix = source.parent / "out"
    assert read_manifest(prefix) == manifest
    assert (manifest.documents, manifest.tokens, manifest.tokens_per_block) == (3, 7, [7])
    assert (manifest.rejected, manifest.rejected_by_reason) == (0, {})
    assert manifest.max_token_id == max(Tokenizer.load(tiny_tokenizer).encode("abc~"))
    assert (manifest.dtype, manifest.bin_bytes) == ("uint16", 14)
    assert manifest.bin_sha256 == hashlib.sha256(Path(f"{prefix}.bin").read_bytes()).hexdigest()
    assert manifest.idx_sha256 == hashlib.sha256(Path(f"{prefix}.idx").read_bytes()).hexdigest()
    assert manifest.tokenizer.fingerprint == describe(tiny_tokenizer).fingerprint
    assert (manifest.tokenizer.vocab_size, manifest.tokenizer.name) == (288, "tiny")
    assert manifest.sources[0].sha256 == hashlib.sha256(source.read_bytes()).hexdigest()
    assert manifest.command == "data-tools tokenize …"
    check_files(prefix, manifest)


def test_only_the_four_files_are_left(tiny_tokenizer: Path, write_lines: WriteLines) -> None:
    source = write_lines({"text": "a"})
    run(source, tiny_tokenizer)
    assert names(source.parent) == ["in.jsonl", "out.bin", "out.idx", "out.manifest.json", "out.origin"]


def test_several_inputs_are_read_in_their_order(tiny_tokenizer: Path, write_lines: WriteLines) -> None:
    first = write_lines({"text": "a"}, name="1.jsonl")
    second = write_lines({"conversations": [{"from": "human", "value": "b"}]}, name="2.jsonl")
    manifest = run(first, tiny_tokenizer, inputs=(second, first)).manifest
    reader, tokenizer = IndexedReader(first.parent / "out"), Tokenizer.load(tiny_tokenizer)
    assert [tokenizer.decode(reader[number].tolist()) for number in range(2)] == ["b", "a"]
    assert [Path(source.path).name for source in manifest.sources] == ["2.jsonl", "1.jsonl"]


def test_batches_of_any_size_and_either_engine_give_the_same_documents(
    tiny_tokenizer: Path, write_lines: WriteLines, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_lines(*({"text": "the cat sat " * number} for number in range(1, 30)))
    whole = run(source, tiny_tokenizer).manifest
    monkeypatch.setattr("data_tools.hugging_face._LARGEST_BATCH_CHARACTERS", 100)
    other = run(source, tiny_tokenizer, bpe="tokenizers", output=source.parent / "other").manifest
    assert (whole.engine.name, other.engine.name) == ("gigatoken", "tokenizers")  # type: ignore[union-attr]
    assert other.data_id == whole.data_id


def test_the_first_bad_line_ends_the_job_and_leaves_nothing(tiny_tokenizer: Path, write_lines: WriteLines) -> None:
    source = write_lines({"text": "a"}, b'{"text": ', {"text": "b"})
    with pytest.raises(DataError, match=r"in\.jsonl:2: malformed: .*; mend the line, or give --on-error skip"):
        run(source, tiny_tokenizer)
    assert names(source.parent) == ["in.jsonl"]


def test_skipped_lines_are_counted_and_listed_by_line_and_reason(tiny_tokenizer: Path, write_lines: WriteLines) -> None:
    source = write_lines({"text": "a"}, b"{", {"text": ""}, b"", {"text": "b"}, {"text": None}, b"[]", {"text": ""})
    manifest = run(source, tiny_tokenizer, on_error="skip").manifest
    assert (manifest.documents, manifest.rejected) == (2, 6)
    assert manifest.rejected_by_reason == {
        "blank": 1,
        "empty": 2,
        "malformed": 1,
        "not a string": 1,
        "not an object": 1,
    }
    rows = [json.loads(line) for line in (source.parent / "out.rejects.jsonl").read_text().splitlines()]
    assert [(row["line"], row["reason"]) for row in rows] == [
        (2, "malformed"),
        (3, "empty"),
        (4, "blank"),
        (6, "not a string"),
        (7, "not an object"),
        (8, "empty"),
    ]
    assert {row["file"] for row in rows} == {str(source)}


def test_rejects_go_to_the_file_that_is_named(tiny_tokenizer: Path, write_lines: WriteLines) -> None:
    source = write_lines({"text": "a"}, b"{")
    run(source, tiny_tokenizer, on_error="skip", rejects=source.parent / "bad/rejects.jsonl")
    assert len((source.parent / "bad/rejects.jsonl").read_text().splitlines()) == 1
    assert not (source.parent / "out.rejects.jsonl").exists()


def test_a_job_without_a_single_document_writes_nothing(tiny_tokenizer: Path, write_lines: WriteLines) -> None:
    source = write_lines(b"{", {"text": ""})
    with pytest.raises(DataError, match=r"in\.jsonl: no document has text \(2 lines rejected\); nothing was written"):
        run(source, tiny_tokenizer, on_error="skip")
    source.write_bytes(b"")
    with pytest.raises(DataError, match=r"in\.jsonl: no document has text \(0 lines rejected\)"):
        run(source, tiny_tokenizer)
    assert names(source.parent) == ["in.jsonl"]


def test_the_same_job_again_is_already_done(tiny_tokenizer: Path, write_lines: WriteLines) -> None:
    source = write_lines({"text": "a"})
    first = run(source, tiny_tokenizer)
    written = Path(source.parent / "out.bin").stat().st_mtime_ns
    again = run(source, tiny_tokenizer)
    assert (first.was_done, again.was_done) == (False, True)
    assert again.manifest == first.manifest
    assert Path(source.parent / "out.bin").stat().st_mtime_ns == written


def test_a_moved_input_with_the_same_content_is_the_same_job(tiny_tokenizer: Path, write_lines: WriteLines) -> None:
    source = write_lines({"text": "a"})
    run(source, tiny_tokenizer)
    moved = source.rename(source.parent / "moved.jsonl")
    assert run(moved, tiny_tokenizer).was_done


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"append_eod": True}, "--append-eod: it has False, asked for True"),
        ({"key": "body"}, "--key: it has text, asked for body"),
        ({"special_tokens": "parse"}, "--special-tokens: it has literal, asked for parse"),
        (
            {"adapter": "nemotron-cc-v2"},
            "--adapter: it has text, asked for nemotron-cc-v2\n  --key: it has text, asked for none",
        ),
    ],
)
def test_other_settings_at_the_same_prefix_are_refused_by_name(
    tiny_tokenizer: Path, write_lines: WriteLines, options: dict[str, object], said: str
) -> None:
    source = write_lines({"text": "a", "body": "b"})
    before = run(source, tiny_tokenizer).manifest
    with pytest.raises(DataError, match=r"out: holds another dataset; give --overwrite") as caught:
        run(source, tiny_tokenizer, **options)
    assert str(caught.value).splitlines()[1:] == f"  {said}".splitlines()
    assert read_manifest(source.parent / "out") == before


def test_what_compat_keeps_is_another_dataset(tiny_tokenizer: Path, write_lines: WriteLines) -> None:
    source = write_lines({"text": "a"})
    run(source, tiny_tokenizer, special_tokens="parse")
    with pytest.raises(DataError, match="--compat: it has none, asked for megatron"):
        run(source, tiny_tokenizer, special_tokens="parse", compat="megatron")


def test_a_dataset_of_another_version_of_the_reader_is_another_dataset(
    tiny_tokenizer: Path, write_lines: WriteLines
) -> None:
    source = write_lines({"text": "a"})
    manifest = run(source, tiny_tokenizer).manifest
    old = replace(manifest, versions=manifest.versions | {"reader": "0"})
    write_manifest(source.parent / "out", old)
    with pytest.raises(DataError, match="reader version: it has 0, asked for "):
        run(source, tiny_tokenizer)


def test_another_input_at_the_same_prefix_is_refused_unless_overwritten(
    tiny_tokenizer: Path, write_lines: WriteLines
) -> None:
    source = write_lines({"text": "a"})
    run(source, tiny_tokenizer)
    source.write_text('{"text": "bc"}\n')
    with pytest.raises(DataError, match=r"bytes of .*in\.jsonl: it has 14, asked for 15"):
        run(source, tiny_tokenizer)
    with pytest.raises(DataError, match=r"--input: it has .*in\.jsonl, asked for .*other\.jsonl\n  bytes of .*other"):
        run(source, tiny_tokenizer, inputs=(write_lines({"text": "def"}, name="other.jsonl"),))
    with pytest.raises(DataError, match="number of --input files: it has 1, asked for 2"):
        run(source, tiny_tokenizer, inputs=(source, write_lines({"text": "d"}, name="more.jsonl")))
    assert run(source, tiny_tokenizer, overwrite=True).manifest.tokens == 2


def test_another_tokenizer_at_the_same_prefix_is_refused(
    tiny_tokenizer: Path, write_lines: WriteLines, tmp_path: Path
) -> None:
    source = write_lines({"text": "a"})
    run(source, tiny_tokenizer)
    train([source], "text", 272, tmp_path / "other")
    with pytest.raises(DataError, match=r"--tokenizer \(fingerprint\): it has"):
        run(source, tmp_path / "other")


def test_lines_skipped_before_are_not_accepted_by_a_strict_run(tiny_tokenizer: Path, write_lines: WriteLines) -> None:
    source = write_lines({"text": "a"}, b"{")
    run(source, tiny_tokenizer, on_error="skip")
    with pytest.raises(DataError, match="--on-error: it has skip, with 1 lines rejected, asked for fail"):
        run(source, tiny_tokenizer)


def test_a_finished_dataset_with_a_damaged_file_is_not_called_done(
    tiny_tokenizer: Path, write_lines: WriteLines
) -> None:
    source = write_lines({"text": "abc"})
    run(source, tiny_tokenizer)
    Path(source.parent / "out.bin").write_bytes(b"\x00\x00")
    with pytest.raises(DataError, match=r"out\.bin: has 2 bytes, its manifest says 6"):
        run(source, tiny_tokenizer)


def test_a_pair_that_was_not_made_here_is_not_overwritten(tiny_tokenizer: Path, write_lines: WriteLines) -> None:
    source = write_lines({"text": "a"})
    foreign = source.parent / "out.bin"
    foreign.write_bytes(b"precious")
    with pytest.raises(DataError, match=r"out\.bin without a manifest; give --overwrite"):
        run(source, tiny_tokenizer)
    assert foreign.read_bytes() == b"precious"


def test_an_overwritten_dataset_leaves_no_list_of_old_rejects(tiny_tokenizer: Path, write_lines: WriteLines) -> None:
    source = write_lines({"text": "a"}, b"{")
    run(source, tiny_tokenizer, on_error="skip")
    source.write_text('{"text": "a"}\n')
    run(source, tiny_tokenizer, overwrite=True)
    assert "out.rejects.jsonl" not in names(source.parent)


def test_an_input_given_twice_is_refused(tiny_tokenizer: Path, write_lines: WriteLines) -> None:
    source = write_lines({"text": "a"})
    with pytest.raises(UsageError, match=r"--input: .*in\.jsonl is given twice"):
        run(source, tiny_tokenizer, inputs=(source, source.parent / "." / "in.jsonl"))


def test_an_input_is_never_written_over(tiny_tokenizer: Path, write_lines: WriteLines) -> None:
    source = write_lines({"text": "a"})
    with pytest.raises(UsageError, match=r"in\.jsonl: is an input and would be written too"):
        run(source, tiny_tokenizer, on_error="skip", rejects=source)


def test_two_writers_of_one_prefix_are_kept_apart(tiny_tokenizer: Path, write_lines: WriteLines) -> None:
    source = write_lines({"text": "a"})
    with (
        only_writer(source.parent / "out"),
        pytest.raises(DataError, match="out: another process is writing it"),
    ):
        run(source, tiny_tokenizer)


def run_without_room(source: Path, tokenizer: Path) -> None:
    """A limit on the size of files stands for a disk without room."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))  # Python ignores SIGXFSZ, so writing fails instead
    try:
        run(source, tokenizer)
    except OSError as error:
        os._exit(7 if error.errno == errno.EFBIG else 1)


def test_a_full_disk_leaves_neither_dataset_nor_partial_files(tiny_tokenizer: Path, write_lines: WriteLines) -> None:
    source = write_lines(*({"text": "the cat sat " * 50} for _ in range(200)))
    assert exit_code_of(run_without_room, source, tiny_tokenizer) == 7
    assert names(source.parent) == ["in.jsonl"]


def test_an_encoder_that_fails_removes_its_partial_files(tiny_tokenizer: Path, tmp_path: Path) -> None:
    job = TokenizeJob((), tiny_tokenizer, tmp_path / "a", hold_out_percent=1.0)
    with pytest.raises(KeyboardInterrupt), Encoder(Tokenizer.load(tiny_tokenizer), job, total_bytes=0):
        raise KeyboardInterrupt
    assert names(tmp_path) == []


def test_the_manifest_says_who_encoded_and_how_many_documents_were_compared(
    tiny_tokenizer: Path, write_lines: WriteLines
) -> None:
    source = write_lines({"text": "the cat"}, {"text": "a"}, {"text": "b"})
    engine = run(source, tiny_tokenizer, verify_sample=2).manifest.engine
    assert engine is not None
    assert (engine.name, engine.reason, engine.compared) == ("gigatoken", "", 2)


def test_where_each_document_came_from_is_kept(tiny_tokenizer: Path, write_lines: WriteLines) -> None:
    first = write_lines({"text": "a", "id": "x"}, b"{", {"text": "b", "id": "y"}, name="1.jsonl")
    turns = [{"from": "human", "value": "b"}, {"from": "gpt", "value": "~~~"}]
    second = write_lines({"conversations": turns, "id": "z"}, name="2.jsonl")
    run(first, tiny_tokenizer, inputs=(first, second), on_error="skip")
    origins = np.fromfile(first.parent / "out.origin", ORIGIN)
    assert origins["row"].tolist() == [1, 3, 1]
    assert origins["source"].tolist() == [0, 0, 1]
    assert origins["answer_tokens"].tolist() == [-1, -1, 3]
    assert [DOMAINS[number] for number in origins["domain"]] == ["general"] * 3
    expected = [int.from_bytes(hashlib.sha256(name).digest()[:8], "big") for name in (b"x", b"y", b"z")]
    assert origins["id_hash"].tolist() == expected


def test_held_out_documents_go_to_a_dataset_of_their_own(tiny_tokenizer: Path, write_lines: WriteLines) -> None:
    source = write_lines(*({"text": f"the cat {number}", "id": f"doc-{number}"} for number in range(200)))
    result = run(source, tiny_tokenizer, hold_out_percent=2.0, append_eod=True)
    tokenizer = Tokenizer.load(tiny_tokenizer)
    held_out = IndexedReader(source.parent / "out.validation")
    texts = [tokenizer.decode(held_out[number].tolist()) for number in range(len(held_out))]
    assert texts == [f"the cat {number}<|endoftext|>" for number in (59, 80, 178)]  # as in test_split.py
    assert result.held_out is not None
    assert (result.manifest.documents, result.held_out.documents) == (197, 3)
    assert (result.manifest.split, result.held_out.split) == ("train", "validation")
    assert np.fromfile(source.parent / "out.validation.origin", ORIGIN)["split"].tolist() == [1, 1, 1]
    assert run(source, tiny_tokenizer, hold_out_percent=2.0, append_eod=True).was_done
    with pytest.raises(DataError, match="--hold-out: it has 2%, asked for 0%"):
        run(source, tiny_tokenizer, append_eod=True)


def test_what_an_earlier_job_held_out_does_not_stay_beside_a_dataset_that_holds_it_too(
    tiny_tokenizer: Path, write_lines: WriteLines
) -> None:
    source = write_lines(*({"text": f"the cat {number}", "id": f"doc-{number}"} for number in range(200)))
    before = run(source, tiny_tokenizer, hold_out_percent=2.0).manifest
    with pytest.raises(DataError, match=r"out\.validation: holds .* held out \(2%\); give --hold-out 2%, or remove it"):
        run(source, tiny_tokenizer, overwrite=True)
    assert read_manifest(source.parent / "out") == before
    for path in source.parent.glob("out.validation.*"):
        path.unlink()
    assert run(source, tiny_tokenizer, overwrite=True).manifest.documents == 200


def test_a_validation_set_of_its_own_stays_beside_a_dataset(tiny_tokenizer: Path, write_lines: WriteLines) -> None:
    source, held_out = write_lines({"text": "a"}), write_lines({"text": "b"}, name="validation.jsonl")
    run(held_out, tiny_tokenizer, output=source.parent / "out.validation")
    assert run(source, tiny_tokenizer).manifest.documents == 1


def test_a_validation_set_of_another_input_is_not_taken_for_what_was_held_out(
    tiny_tokenizer: Path, write_lines: WriteLines
) -> None:
    source = write_lines(*({"text": f"the cat {number}", "id": f"doc-{number}"} for number in range(200)))
    run(source, tiny_tokenizer, hold_out_percent=2.0)
    other = write_lines({"text": "b"}, name="other.jsonl")
    run(other, tiny_tokenizer, output=source.parent / "out.validation", overwrite=True)
    with pytest.raises(DataError, match=r"out\.validation: is not what .*out holds out; give --overwrite"):
        run(source, tiny_tokenizer, hold_out_percent=2.0)


@pytest.mark.parametrize("max_bad", ["1", "49%"])
def test_a_finished_job_with_more_bad_records_than_now_allowed_is_refused(
    tiny_tokenizer: Path, write_lines: WriteLines, max_bad: str
) -> None:
    source = write_lines({"text": "a"}, b"{", b"{", {"text": "b"})
    run(source, tiny_tokenizer, on_error="skip")
    with pytest.raises(
        DataError, match=f"was finished with 2 of 4 records bad, more than --max-bad {max_bad}; raise it"
    ):
        run(source, tiny_tokenizer, on_error="skip", max_bad=max_bad)
    assert run(source, tiny_tokenizer, on_error="skip", max_bad="50%").was_done


def test_text_that_spells_a_control_token_is_parsed_or_rejected_by_choice(
    tiny_tokenizer: Path, write_lines: WriteLines
) -> None:
    source = write_lines({"text": "a<|endoftext|>b"}, {"text": "<think>"}, {"text": "<|pad|><|im_end|>"})
    parsed = run(source, tiny_tokenizer, special_tokens="parse").manifest
    assert IndexedReader(source.parent / "out")[0].tolist()[1] == 0
    assert parsed.special_tokens == "parse"
    rejected = run(source, tiny_tokenizer, special_tokens="reject", on_error="skip", overwrite=True).manifest
    assert (rejected.documents, rejected.rejected_by_reason) == (1, {"control token": 2})
    rows = [json.loads(line) for line in (source.parent / "out.rejects.jsonl").read_text().splitlines()]
    assert [(row["line"], row["detail"].split(";")[0]) for row in rows] == [
        (1, "the text spells '<|endoftext|>'"),
        (3, "the text spells '<|pad|>'"),
    ]
    assert IndexedReader(source.parent / "out")[0].tolist() == [4]
    with pytest.raises(DataError, match=r"in\.jsonl:1: control token: the text spells"):
        run(source, tiny_tokenizer, special_tokens="reject", overwrite=True)


def test_compat_megatron_keeps_an_empty_text_without_tokens(tiny_tokenizer: Path, write_lines: WriteLines) -> None:
    source = write_lines({"text": "a"}, {"text": ""}, {"text": "b"})
    run(source, tiny_tokenizer, compat="megatron", special_tokens="parse", append_eod=True)
    reader = IndexedReader(source.parent / "out")
    assert reader.lengths.tolist() == [2, 0, 2]
    assert (reader.header.documents, reader.header.sequences) == (3, 2)
    with pytest.raises(UsageError, match=r"--special-tokens literal: preprocess_data\.py parses control tokens"):
        run(source, tiny_tokenizer, compat="megatron")


@pytest.mark.parametrize(
    ("max_bad", "said"),
    [
        ("1", r"in\.jsonl:3: .*: more than --max-bad 1 records are bad \(malformed 2\); nothing was written"),
        ("40%", r"2 of 4 records are bad, more than --max-bad 40%"),
    ],
)
def test_too_many_bad_records_end_the_job(
    tiny_tokenizer: Path, write_lines: WriteLines, max_bad: str, said: str
) -> None:
    source = write_lines({"text": "a"}, b"{", b"{", {"text": "b"})
    with pytest.raises(DataError, match=said):
        run(source, tiny_tokenizer, on_error="skip", max_bad=max_bad)
    assert names(source.parent) == ["in.jsonl"]
    for enough in ("2", "50%"):
        assert run(source, tiny_tokenizer, on_error="skip", max_bad=enough, overwrite=True).manifest.rejected == 2


@pytest.mark.parametrize("max_bad", ["x", "-1", "1%%", "nan%"])
def test_a_limit_that_is_no_number_is_refused(tiny_tokenizer: Path, write_lines: WriteLines, max_bad: str) -> None:
    with pytest.raises(UsageError, match="--max-bad: .* is neither a number of records"):
        run(write_lines({"text": "a"}), tiny_tokenizer, on_error="skip", max_bad=max_bad)


def test_other_content_of_the_same_size_and_time_is_refused(tiny_tokenizer: Path, write_lines: WriteLines) -> None:
    source = write_lines({"text": "a"})
    os.utime(source, ns=(0, 1_000_000_000_000_000_000))
    run(source, tiny_tokenizer)
    source.write_text('{"text": "b"}\n')
    os.utime(source, ns=(0, 1_000_000_000_000_000_000))
    with pytest.raises(DataError, match=r"sha256 of .*in\.jsonl: it has [0-9a-f]{64}, asked for [0-9a-f]{64}"):
        run(source, tiny_tokenizer)
