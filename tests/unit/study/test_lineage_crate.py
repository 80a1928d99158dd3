"""The RO-Crate of a lineage: read by the library that others read it with, and true to the files in it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rocrate.rocrate import ROCrate

from megatron_ext.__main__ import main
from megatron_ext.runtime.code_version import code_version
from megatron_ext.training.file_list import weights_fingerprint
from tests.support.evaluation_results import leave_evaluation
from tests.support.toy_arms import Arms


@pytest.fixture
def folder(arms: Arms, tmp_path: Path) -> Path:
    assert main(["lineage", str(arms.words), "--json", "--ro-crate", str(tmp_path / "crate")]) == 0
    return tmp_path / "crate"


def references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if value.keys() == {"@id"}:
            yield value["@id"]
        for one in value.values():
            yield from references(one)
    elif isinstance(value, list):
        for one in value:
            yield from references(one)


def test_the_library_reads_it_and_finds_the_checkpoint(folder: Path, arms: Arms) -> None:
    crate = ROCrate(folder)
    assert crate.version == "1.1"
    assert crate.mainEntity.id == f"#checkpoint/{arms.words.name}/step_5"
    assert crate.root_dataset["name"] == f"Lineage of {arms.words.name}"
    assert {"datePublished", "license", "description"} <= crate.root_dataset.properties().keys()


def test_every_reference_leads_to_an_entity(folder: Path) -> None:
    graph = json.loads((folder / "ro-crate-metadata.json").read_text())["@graph"]
    ids = [entity["@id"] for entity in graph]
    assert len(ids) == len(set(ids))
    outside = {name for name in references(graph) if name not in ids}
    assert outside == {"https://w3id.org/ro/crate/1.1", "http://schema.org/CompletedActionStatus"}


def test_its_files_are_there_with_the_hashes_that_it_says(folder: Path) -> None:
    files = [entity for entity in ROCrate(folder).data_entities if entity.type == "File"]
    there = {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}
    assert {file.id for file in files} == there - {"ro-crate-metadata.json"}
    for file in files:
        content = (folder / file.id).read_bytes()
        assert file["identifier"] == f"sha256:{hashlib.sha256(content).hexdigest()}"
        assert file["contentSize"] == str(len(content))


def test_a_stage_is_an_action_with_code_sources_and_the_weights_before(folder: Path, arms: Arms) -> None:
    crate = ROCrate(folder)
    action = crate.dereference(f"#train/{arms.words.name}").properties()
    assert action["@type"] == "CreateAction"
    assert {"@id": f"#code/{code_version().sha256}"} in action["instrument"]
    assert {"@id": f"#checkpoint/{arms.base.name}/step_5"} in action["object"]
    kinds = [one["@id"].partition("/")[0] for one in action["object"]]
    assert (kinds.count("#source"), kinds.count("#tokenizer")) == (2, 1)
    assert action["result"][0] == {"@id": f"#checkpoint/{arms.words.name}/step_5"}


def test_an_evaluation_is_an_action_on_the_checkpoint_that_it_judged(arms: Arms, tmp_path: Path) -> None:
    leave_evaluation(arms.words, fingerprint=weights_fingerprint(arms.words / "checkpoints/step_5"))
    assert main(["lineage", str(arms.words), "--json", "--ro-crate", str(tmp_path / "crate")]) == 0
    action = ROCrate(tmp_path / "crate").dereference(f"#evaluate/{arms.words.name}/one").properties()
    assert action["object"] == {"@id": f"#checkpoint/{arms.words.name}/step_5"}
    assert action["result"] == {"@id": f"stages/{arms.words.name}/evaluations/one/results.json"}


def test_a_folder_that_is_there_is_not_overwritten(
    folder: Path, arms: Arms, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["lineage", str(arms.words), "--json", "--ro-crate", str(folder)]) == 2
    assert "nothing is overwritten" in capsys.readouterr().err
