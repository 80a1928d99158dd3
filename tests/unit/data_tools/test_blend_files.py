"""Blend files are strict: every mistake is named with its file and line."""

from __future__ import annotations

from pathlib import Path

import pytest

from data_tools.blend_files import read_blend
from data_tools.errors import RecipeError

SOURCE = "source: {name}\nprefix: {name}\nvalidation_prefix: {name}.validation\n"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with the sources a and b."""
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        Path(f"{name}.yaml").write_text(SOURCE.format(name=name))
    return tmp_path


def write(text: str, name: str = "blend.yaml") -> str:
    Path(name).write_text(f"blend: {name.removesuffix('.yaml')}\n{text}")
    return name


def refusal(text: str) -> str:
    with pytest.raises(RecipeError) as caught:
        read_blend(write(text))
    return str(caught.value)


def test_a_blend_knows_the_sources_below_it() -> None:
    write("weighting: equal\nentries:\n  - {source: a.yaml}\n", "inner.yaml")
    file = read_blend(write("entries:\n  - {source: inner.yaml, share: 0.5}\n  - {source: b.yaml, share: 0.5}\n"))
    assert [source.recipe.source for source in file.sources()] == ["a", "b"]
    assert file.places == ("blend.yaml:3: entries[0]", "blend.yaml:4: entries[1]")


def test_paths_are_relative_to_the_file_that_writes_them() -> None:
    Path("blends").mkdir()
    Path("blends/inner.yaml").write_text("blend: inner\nweighting: equal\nentries:\n  - {source: ../a.yaml}\n")
    file = read_blend(write("weighting: equal\nentries:\n  - {source: blends/inner.yaml}\n"))
    assert [source.path for source in file.sources()] == ["a.yaml"]


def test_a_circle_is_refused_with_its_way() -> None:
    write("weighting: equal\nentries:\n  - {source: blend.yaml}\n", "inner.yaml")
    assert refusal("weighting: equal\nentries:\n  - {source: inner.yaml}\n") == (
        "inner.yaml:4: entries[0].source: a circle: blend.yaml -> inner.yaml -> blend.yaml; remove one entry"
    )


def test_a_missing_source_is_refused_with_those_that_are_there() -> None:
    text = refusal("weighting: equal\nentries:\n  - {source: c.yaml}\n")
    assert text == "blend.yaml:4: entries[0].source: c.yaml: no such file; there are: a.yaml, b.yaml, blend.yaml"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "entries:\n  - {source: a.yaml, shar: 1}\n",
            "blend.yaml:3: entries[0].shar: unknown key; did you mean share?",
        ),
        ("entries:\n  - {source: a.yaml, share: 2}\n", "blend.yaml:3: entries[0].share: 2 is not allowed: "),
        ("entries:\n  - {share: 1}\n", "blend.yaml:3: entries[0].source: required and not set"),
        (
            "entries:\n  - {source: a.yaml, share: 1, epochs: 1}\n",
            "blend.yaml:3: entries[0]: share and epochs are both",
        ),
        (
            "entries:\n  - {source: a.yaml, epochs: 3, max_epochs: 2}\n",
            "blend.yaml:3: entries[0]: epochs 3 is above max_epochs 2",
        ),
        (
            "entries:\n  - {source: a.yaml, epochs: 2, min_epochs: 3}\n",
            "blend.yaml:3: entries[0]: min_epochs 3 is above the 2 that may be read",
        ),
        (
            "entries:\n  - {source: a.yaml, share: 0.5}\n",
            "blend.yaml:2: entries: shares 0.5 sum to 0.5, must sum to 1; raise them by 0.5 in all",
        ),
        ("entries:\n  - {source: a.yaml}\n", "blend.yaml:1: entries[0] has none of share, tokens, epochs"),
        (
            "weighting: natural\nentries:\n  - {source: a.yaml, share: 1}\n",
            "blend.yaml:1: weighting natural decides the amounts",
        ),
        ("weighting: temperature\nentries:\n  - {source: a.yaml}\n", "blend.yaml:1: temperature is None"),
        (
            "weighting: equal\nentries:\n  - {source: a.yaml}\n  - {source: a.yaml}\n",
            "blend.yaml:1: a.yaml stands in two entries",
        ),
        ("entries: []\n", "blend.yaml:1: entries is empty; write at least one source"),
    ],
)
def test_a_mistake_is_named_with_its_line(text: str, said: str) -> None:
    assert refusal(text).startswith(said)


def test_all_mistakes_of_a_file_are_named_at_once() -> None:
    lines = refusal("entries:\n  - {source: a.yaml, share: 2}\n  - {share: 1}\n").splitlines()
    assert lines[0] == "2 problems"
    assert [line.split(": ")[0] for line in lines[1:]] == ["blend.yaml:3", "blend.yaml:4"]


def test_two_sources_of_one_name_are_refused() -> None:
    Path("other.yaml").write_text(SOURCE.format(name="a"))
    text = refusal("weighting: equal\nentries:\n  - {source: a.yaml}\n  - {source: other.yaml}\n")
    assert text == "other.yaml: source: 'a' is the name of a.yaml too; rename one"


def test_a_source_file_is_no_blend() -> None:
    with pytest.raises(RecipeError, match="a.yaml: this is a source file; name a blend file"):
        read_blend("a.yaml")


def test_domain_shares_must_sum_to_one() -> None:
    Path("a.yaml").write_text(SOURCE.format(name="a") + "domain_shares: {math: 0.5, code: 0.4}\n")
    text = refusal("weighting: equal\nentries:\n  - {source: a.yaml}\n")
    assert text == "a.yaml:4: domain_shares: the shares sum to 0.9, must sum to 1; write the share of every domain"
