"""Every source file says what it is and where to get it; what is not known of a study's data set says `unknown`."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from data_tools.adapters import NAMES
from data_tools.schema import SourceRecipe
from data_tools.strict_yaml import load_yaml

FOLDER = Path(__file__).parents[3] / "recipes/sources"
FILES = sorted(FOLDER.glob("*.yaml"))
STUDY = [file for file in FILES if not file.stem.startswith(("demo_", "miniature_"))]


def _read(file: Path) -> SourceRecipe:
    return SourceRecipe.model_validate(load_yaml(file).data)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_source_says_its_name_its_domain_where_it_is_had_and_its_licence(file: Path) -> None:
    source = _read(file)
    assert source.source == file.stem
    assert "domain" in source.model_fields_set
    assert source.available_at
    assert source.licence


@pytest.mark.parametrize("file", STUDY, ids=lambda file: file.stem)
def test_a_data_set_of_the_study_has_a_size_and_an_adapter_and_a_revision_for_each_part(file: Path) -> None:
    source = _read(file)
    assert source.declared_tokens
    parts = re.findall(r"[\w-]+/[\w.-]+", source.available_at)
    assert parts
    assert source.available_at.endswith("on Hugging Face")
    adapters, revisions = source.adapter.split(", "), source.revision.split(", ")
    assert set(adapters) <= set(NAMES)
    assert len(adapters) == len(revisions) == len(parts)
    assert all(re.fullmatch(r"[0-9a-f]{7,40}|unknown", revision) for revision in revisions)


def test_the_domain_shares_of_the_study_are_those_that_its_texts_state() -> None:
    shares = {file.stem: _read(file).domains() for file in STUDY}
    openthoughts = {"math": 0.71, "code": 0.21, "science": 0.08}
    assert shares == {
        "nemotron_base": {"general": 0.939, "math": 0.033, "code": 0.028},
        "nemotron_sft_code": {"code": 1},
        "nemotron_sft_general": {"general": 1},
        "nemotron_sft_general_chat": {"general": 1},
        "nemotron_sft_long": {"math": 0.75, "general": 0.25},
        "nemotron_sft_math": {"math": 1},
        "nemotron_sft_reduced": {"math": 0.567, "code": 0.174, "general": 0.259},  # ours: of the whole, by tokens
        "openthoughts3": openthoughts,
        "openthoughts3_chat": openthoughts,
    }
