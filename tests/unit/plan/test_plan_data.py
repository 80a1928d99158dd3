"""Data that is missing, damaged or does not fit is refused with its place and what to do."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from data_tools.errors import DataError, RecipeError
from data_tools.manifest import read_manifest, write_manifest
from data_tools.records import Domain
from tests.support.pencil_project import PencilProject, refused

NOT_BUILT = "not built yet (data_root './data' is relative to the working directory)"


def refusal(project: PencilProject, *overrides: str) -> str:
    return refused(lambda: project.plan(*overrides), DataError)


def test_the_plan_says_what_each_source_gives(project: PencilProject) -> None:
    a, b = project.plan().data.sources
    assert (a.source, a.domain, a.documents, a.tokens, a.samples, a.epochs) == ("a", "math", 100, 1000, 30, 0.48)
    assert (b.source, b.documents, b.tokens, b.samples, b.epochs) == ("b", 40, 400, 10, 0.4)
    assert (a.prefix, a.validation_prefix) == ("data/a", "data/a.validation")


def _count(prefix: str, tokens_by_domain: dict[Domain, int]) -> None:
    write_manifest(prefix, replace(read_manifest(prefix), tokens_by_domain=tokens_by_domain))


def test_domains_are_those_of_the_manifest_else_those_of_the_file_and_no_part_of_the_stage(
    project: PencilProject,
) -> None:
    project.edit("a.yaml", "domain: math", "domain: math\ndomain_shares: {math: 0.5, code: 0.5}")
    before = project.plan()
    assert before.data.sources[0].domain_shares == (("code", 0.5), ("math", 0.5))
    assert [source.domains_known for source in before.data.sources] == ["declared", "declared"]
    _count("data/a", {"general": 250, "math": 750})
    _count("data/b", {"math": 400})
    after = project.plan()
    assert [source.domain_shares for source in after.data.sources] == [(("general", 0.25), ("math", 0.75)), ()]
    assert [source.domains_known for source in after.data.sources] == ["counted over the whole source"] * 2
    assert after.stage_id == before.stage_id


def test_a_dataset_whose_records_tell_no_domain_leaves_it_to_the_file(project: PencilProject) -> None:
    _count("data/a", {"general": 1000})
    a = project.plan().data.sources[0]
    assert (a.domain, a.domain_shares, a.domains_known) == ("math", (), "declared")


def test_the_plan_knows_its_tokenizer(project: PencilProject) -> None:
    data = project.plan().data
    assert (data.tokenizer, data.tokenizer_vocab_size, data.eod_id) == ("data/tokenizer", 100, 0)


def test_a_folder_of_shards_is_one_source(project: PencilProject) -> None:
    project.write_dataset("shard", tokens=500)
    for suffix in ("bin", "idx", "manifest.json"):
        Path(f"data/a.{suffix}").rename(f"data/a-00000.{suffix}")
        Path(f"data/shard.{suffix}").rename(f"data/a-00001.{suffix}")
    a, _ = project.plan().data.sources
    assert (a.prefix, a.documents, a.tokens, a.samples, a.epochs) == ("data/a", 150, 1500, 30, 0.32)
    project.write_dataset("a-00001", tokens=510)
    changed, _ = project.plan().data.sources
    assert changed.data_id != a.data_id


def test_missing_datasets_are_all_named_with_the_command_that_builds_them(project: PencilProject) -> None:
    Path("data/a.manifest.json").unlink()
    Path("data/b.validation.manifest.json").unlink()
    command = "python -m data_tools tokenize --input FILE.jsonl --tokenizer data/tokenizer --output"
    assert refusal(project).splitlines() == [
        "2 problems",
        f"a.yaml:2: prefix: data/a.manifest.json: {NOT_BUILT}; build it with: {command} data/a --append-eod",
        f"b.yaml:3: validation_prefix: data/b.validation.manifest.json: {NOT_BUILT}; "
        f"build it with: {command} data/b.validation --append-eod",
    ]


def test_an_absolute_data_root_needs_no_explanation(project: PencilProject) -> None:
    project.edit("site.yaml", "./data", f"{Path.cwd()}/data")
    Path("data/a.manifest.json").unlink()
    assert "data/a.manifest.json: not built yet; build it with" in refusal(project)


def test_the_command_of_the_source_comes_first(project: PencilProject) -> None:
    project.edit("a.yaml", "domain: math", "build: make demo")
    Path("data/a.manifest.json").unlink()
    assert "build it with: make demo or python -m data_tools tokenize" in refusal(project)


def test_a_missing_tokenizer_says_how_to_train_one(project: PencilProject) -> None:
    Path("data/tokenizer").rename("data/other")
    assert refusal(project) == (
        f"pretrain.yaml:4: data.tokenizer: data/tokenizer: {NOT_BUILT}; "
        "build it with: python -m data_tools train-tokenizer --input FILE.jsonl --vocab-size N --out data/tokenizer"
    )


def test_a_dataset_of_another_size_than_its_manifest_is_refused(project: PencilProject) -> None:
    with open("data/a.bin", "ab") as file:
        file.write(b"xx")
    assert refusal(project).startswith("a.yaml:2: prefix: data/a.bin: has 2,002 bytes, its manifest says 2,000")


def test_a_manifest_that_is_no_json_is_refused(project: PencilProject) -> None:
    Path("data/a.manifest.json").write_text("{")
    assert refusal(project).startswith("a.yaml:2: prefix: data/a.manifest.json: not JSON")


def test_data_of_another_tokenizer_is_refused(project: PencilProject) -> None:
    file = Path("data/tokenizer/tokenizer.json")
    file.write_text(file.read_text() + "\n")
    text = refusal(project)
    assert text.startswith("4 problems\na.yaml:2: prefix: data/a: made with tokenizer 'tokenizer' (")
    assert "the recipe reads with data/tokenizer (" in text


def test_a_tokenizer_with_more_ids_than_the_model_is_refused(project: PencilProject) -> None:
    assert (
        "data.tokenizer: data/tokenizer has 100 ids, model.vocab_size is 99 (--set model.vocab_size=99); "
        "raise that to at least 100, or take a smaller tokenizer"
    ) in refusal(project, "model.vocab_size=99")


def test_token_ids_beyond_the_vocabulary_are_refused(project: PencilProject) -> None:
    project.write_dataset("a", tokens=1000, largest=100)
    assert refusal(project) == (
        "a.yaml:2: prefix: data/a: holds token id 100, model.vocab_size 100 allows ids below it (model.yaml:4); "
        "raise that to at least 101, or tokenize again"
    )


def test_a_held_out_set_needs_one_sample(project: PencilProject) -> None:
    project.write_dataset("a.validation", tokens=16)
    assert "a.yaml:3: validation_prefix: data/a.validation: 16 tokens give no validation sample" in refusal(project)
    project.write_dataset("a.validation", tokens=17)
    assert project.plan().data.sources[0].source == "a"


def test_an_empty_dataset_is_refused(project: PencilProject) -> None:
    project.write_dataset("a", tokens=0)
    assert "a.yaml:2: prefix: data/a: holds no tokens" in refusal(project)


def test_one_content_under_two_names_is_refused(project: PencilProject) -> None:
    for suffix in ("bin", "idx", "manifest.json"):
        Path(f"data/b.{suffix}").write_bytes(Path(f"data/a.{suffix}").read_bytes())
    assert refusal(project) == ("b.yaml:2: prefix: holds the same tokens as source 'a'; name one of them only")


def test_a_short_held_out_set_is_read_whole_and_said(project: PencilProject) -> None:
    plan = project.plan("training.validation_tokens=64")
    assert plan.cadence.validation_samples == 4
    assert plan.roundings == tuple(
        f"source {name}: validation reads 3 samples, all of its held-out set, of the 4 of training.validation_tokens."
        for name in ("a", "b")
    )


def test_a_share_of_less_than_one_sample_is_refused(project: PencilProject) -> None:
    with pytest.raises(RecipeError) as caught:
        project.plan("data.blend[0].share=0.99", "data.blend[1].share=0.01")
    assert str(caught.value) == (
        "--set data.blend[1].share=0.01: data.blend[1].share: 0.01 of 40 samples is less than one, so 'b' would not be "
        "read; raise the share or budget.tokens, or remove the entry"
    )


def test_training_data_is_no_held_out_data(project: PencilProject) -> None:
    project.edit("b.yaml", "validation_prefix: b.validation", "validation_prefix: a")
    message = refusal(project)
    assert message.startswith("b.yaml:3: validation_prefix: ")
    assert "holds the same tokens as a source that is trained on" in message


def _hold_out(name: str, split: str, percent: float, *, where: str = "") -> None:
    """Lets a manifest say that its documents are a part of those of raw.jsonl."""
    file = Path(f"data/{name}.manifest.json")
    source = {"path": "raw.jsonl", "bytes": 1, "sha256": "0" * 64}
    facts = {"split": split, "hold_out_percent": percent, "where": where, "sources": [source]}
    file.write_text(json.dumps(json.loads(file.read_text()) | facts))


def test_a_held_out_set_larger_than_what_the_source_left_out_is_refused(project: PencilProject) -> None:
    """Of the documents with the lowest hashes `a` leaves out 1 %, and 5 % are validated on."""
    _hold_out("a", "train", 1)
    _hold_out("a.validation", "validation", 5)
    assert refusal(project) == (
        "a.yaml:3: validation_prefix: holds 5 % of the documents of raw.jsonl, and source 'a' holds out 1 % of them "
        "and trains on the others; tokenize one of the two again with the --hold-out of the other"
    )


@pytest.mark.parametrize(
    "training", [{"percent": 5}, {"percent": 9}, {"percent": 1, "where": "answer_tokens > 9"}], ids=str
)
def test_a_held_out_set_that_no_source_is_known_to_hold_is_taken(
    project: PencilProject, training: dict[str, Any]
) -> None:
    _hold_out("a", "train", **training)
    _hold_out("a.validation", "validation", 5)
    assert project.plan().data.sources[0].source == "a"


def test_documents_without_an_end_are_refused(project: PencilProject) -> None:
    manifest = json.loads(Path("data/a.manifest.json").read_text())
    Path("data/a.manifest.json").write_text(json.dumps(manifest | {"append_eod": False}))
    assert "data/a: was tokenized without --append-eod" in refusal(project)


def test_a_plan_survives_its_file(project: PencilProject) -> None:
    plan = project.plan()
    assert type(plan).model_validate_json(plan.model_dump_json()) == plan
    assert json.loads(plan.model_dump_json())["stage_id"] == plan.stage_id
