"""Each YAML trap is closed, and every key knows its line."""

from __future__ import annotations

from pathlib import Path

import pytest

from data_tools.errors import RecipeError
from data_tools.strict_yaml import load_yaml, nearest, parse_scalar, parse_yaml


def errors_of(text: str) -> str:
    with pytest.raises(RecipeError) as caught:
        parse_yaml(text, path="r.yaml")
    return str(caught.value)


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("1e-4", 1e-4),
        ("1.5e3", 1500.0),
        (".5", 0.5),
        ("12", 12),
        ("-3", -3),
        ("0", 0),
        ("true", True),
        ("False", False),
        ("null", None),
        ("~", None),
        ("", None),
        ("on", "on"),
        ("off", "off"),
        ("yes", "yes"),
        ("no", "no"),
        ("012", "012"),
        ("1:30", "1:30"),
        ("0x10", "0x10"),
        ("8_192", "8_192"),
        (".inf", ".inf"),
        (".nan", ".nan"),
        ("2026-11-22", "2026-11-22"),
        ("20B", "20B"),
        ("=", "="),
        ("'12'", "12"),
        ('"true"', "true"),
        ("M*-", "M*-"),
        ('"*M-"', "*M-"),
    ],
)
def test_a_scalar_means_what_it_looks_like(written: str, value: object) -> None:
    data = parse_yaml(f"key: {written}\n", path="r.yaml").data
    assert data == {"key": value}
    assert type(data["key"]) is type(value)
    assert parse_scalar(written) == value
    assert type(parse_scalar(written)) is type(value)


def test_an_integer_too_long_for_python_stays_a_string() -> None:
    assert parse_scalar("9" * 5000) == "9" * 5000


def test_every_key_and_list_element_has_its_line() -> None:
    text = "# x\nstage: sft\ndata:\n  blend:\n    - {source: a, share: 0.5}\n    - source: b\n      share: 0.5\n"
    document = parse_yaml(text, path="r.yaml")
    assert document.data == {
        "stage": "sft",
        "data": {"blend": [{"source": "a", "share": 0.5}, {"source": "b", "share": 0.5}]},
    }
    assert document.marks == {
        (): 2,
        ("stage",): 2,
        ("data",): 3,
        ("data", "blend"): 4,
        ("data", "blend", 0): 5,
        ("data", "blend", 0, "source"): 5,
        ("data", "blend", 0, "share"): 5,
        ("data", "blend", 1): 6,
        ("data", "blend", 1, "source"): 6,
        ("data", "blend", 1, "share"): 7,
    }


def test_a_key_is_always_a_string() -> None:
    assert parse_yaml("on: 1\n1: 2\n", path="r.yaml").data == {"on": 1, "1": 2}


def test_a_key_given_twice_is_an_error_with_both_lines() -> None:
    assert errors_of("seed: 1\nlr: 2\nseed: 3\n") == 'r.yaml:3: key "seed" stands twice, first on line 1; remove one'


def test_a_key_given_twice_in_braces_is_an_error() -> None:
    assert errors_of("a: {b: 1, b: 2}") == 'r.yaml:1: key "b" stands twice, first on line 1; remove one'


def test_an_unquoted_pattern_that_starts_with_a_star_says_to_quote_it() -> None:
    assert errors_of("pattern: *M-\n") == (
        'r.yaml:1: "*M-" is read as an alias; quote a value that starts with "*": "*M-"'
    )


def test_a_pattern_that_is_no_alias_either_says_to_quote_it() -> None:
    message = errors_of("a: 1\npattern: *M-|M\n")
    assert message.startswith("r.yaml:2:")
    assert message.endswith('a value that starts with "*" must be quoted: "*M-"')


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        ("a: &x 1\n", 1, '"&x" is read as an anchor'),
        ("a: 1\n<<: {b: 1}\n", 2, 'the merge key "<<" is not allowed'),
        ("a: !!str 1\n", 1, "the tag"),
        ("a: !!python/object/apply:os.system [ls]\n", 1, "the tag"),
        ("a: 1\n---\nb: 2\n", 2, "a second document starts here"),
        ("%YAML 1.1\n---\na: 1\n", 1, "a % directive is not allowed"),
        ("a:\n\tb: 1\n", 2, "indent with spaces, not tabs"),
        ("a: |M\n", 1, "must be quoted"),
        ("a: b: c\n", 1, 'quote a value that holds ": "'),
        ("a: @x\n", 1, "quote the value"),
        ("a: [1\n", 2, "not valid YAML"),
        ("a: 1\nb: \x07\n", 2, "is not allowed in YAML"),
        ("? [1]\n: 2\n", 1, "cannot be a key"),
        ("? \n: 1\n", 1, "a key is empty"),
        ("- 1\n", 1, "the top level must be a mapping"),
        ("", 1, "the top level must be a mapping"),
        ("a: " + "[" * 2000, 1, "nested deeper than 50 levels"),
    ],
)
def test_a_trap_is_refused_with_its_line(text: str, line: int, said: str) -> None:
    message = errors_of(text)
    assert message.startswith(f"r.yaml:{line}:")
    assert said in message
    assert "\n" not in message


def test_errors_that_do_not_stop_the_reading_come_all_at_once() -> None:
    lines = errors_of("a: *x\nb: 1\nb: &y 2\n").split("\n")
    assert [line.split(": ")[0] for line in lines] == ["r.yaml:1", "r.yaml:3", "r.yaml:3"]


def test_a_file_is_read_with_its_path_in_errors(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_bytes("\ufeffname: é\r\n".encode())
    assert load_yaml(path).data == {"name": "é"}
    path.write_bytes(b"name: \xff")
    with pytest.raises(RecipeError, match=r"r\.yaml: not UTF-8 text at byte 6"):
        load_yaml(path)
    with pytest.raises(RecipeError, match=r"absent\.yaml: cannot be read: No such file or directory"):
        load_yaml(tmp_path / "absent.yaml")


def test_the_nearest_key_is_found_or_none() -> None:
    assert nearest("sequence_lenght", ["seed", "sequence_length"]) == "sequence_length"
    assert nearest("zzz", ["seed", "sequence_length"]) is None


def test_a_text_read_twice_gives_values_of_its_own_each_time() -> None:
    first = parse_yaml("a: {b: [1]}\n", path="r.yaml")
    first.data["a"]["b"].append(2)
    first.marks.clear()
    again = parse_yaml("a: {b: [1]}\n", path="r.yaml")
    assert again.data == {"a": {"b": [1]}}
    assert again.marks["a", "b"] == 1
