"""What holds of every verb of data_tools: its options, its example, its summary."""

from __future__ import annotations

import argparse
import shlex
import shutil
from pathlib import Path

import pytest

from data_tools.__main__ import command_parser, main

REPOSITORY = Path(__file__).parents[2]
BOX = set("─│┌┐└┘├┤┬┴┼")

SHARDS = "--shard-bytes --task --engine --submit --tasks --max-running --sbatch --ray-address"
OPTIONS = {
    "sample": "--out --size --seed --only --scale --workers",
    "train-tokenizer": "--input --key --vocab-size --out",
    "tokenize": "--input --adapter --key --where --answer-rule --on-error --max-bad --rejects --tokenizer "
    f"--append-eod --special-tokens --compat --verify-sample --bpe --workers --output --hold-out --overwrite {SHARDS}",
    "inspect": "prefix --document --row --tokenizer --png --json",
    "chat": "--input --adapter --tokenizer --chat-template --train-on --thinking --special-tokens --where --on-error "
    f"--max-bad --rejects --bpe --workers --output --hold-out --overwrite {SHARDS}",
    "pack": "data --length --output --algo --overlong --pad-multiple --seed --out --overwrite",
    "plan": "file --tokens --sequence-length --data-root",
    "blend": "file --tokens --sequence-length --data-root --out --export --overwrite",
    "overlap": "a b --against --out --ngram --adapter --key --data-root",
    "status": "output",
    "merge": "prefixes --output --overwrite",
    "count": "--input --tokenizer --adapter --key --append-eod --where --answer-rule",
    "verify": "prefix --deep",
}
"""Every argument of every verb. Whoever adds one says it here, in the verb's documentation and in CHANGELOG.md."""


def verbs() -> dict[str, argparse.ArgumentParser]:
    actions = command_parser()._actions
    (subparsers,) = (action for action in actions if isinstance(action, argparse._SubParsersAction))
    return dict(subparsers.choices)


def examples(verb: str) -> list[list[str]]:
    """The commands that a verb's help starts with, as arguments of `main`."""
    text = verbs()[verb].format_help()
    assert text.startswith("Example:\n  python -m data_tools "), f"{verb}: help starts with: {text[:60]!r}"
    commands = text.split("\n\n")[0].removeprefix("Example:\n").replace("\\\n", " ").splitlines()
    return [shlex.split(command.strip().removeprefix("python -m data_tools")) for command in commands]


def test_the_command_line_grows_only_where_this_file_says_so() -> None:
    found = {
        verb: {action.option_strings[0] if action.option_strings else action.dest for action in parser._actions}
        for verb, parser in verbs().items()
    }
    assert found == {verb: {"-h", *options.split()} for verb, options in OPTIONS.items()}


@pytest.mark.parametrize("verb", OPTIONS)
def test_a_verb_explains_each_argument_and_its_example_ends_with_the_verb_itself(verb: str) -> None:
    assert [action.dest for action in verbs()[verb]._actions if not action.help] == []
    assert examples(verb)[-1][0] == verb


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in the state in which steps 1 to 3 of `make demo` leave it."""
    folder = tmp_path_factory.mktemp("demo")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for verb in ("sample", "train-tokenizer"):
            assert main(examples(verb)[0]) == 0
        for name in (f"{source}{part}" for source in ("base", "ldq", "shq") for part in ("", ".validation")):
            command = f"tokenize --input data/demo/raw/{name}.jsonl --tokenizer data/demo/tokenizer --append-eod"
            assert main(shlex.split(f"{command} --output data/demo/tokens/{name}")) == 0
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("verb", OPTIONS)
def test_the_example_of_a_verb_runs_on_the_demo_and_ends_with_a_table(
    verb: str, demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(demo / "data", tmp_path / "data")
    (tmp_path / "recipes").symlink_to(REPOSITORY / "recipes")
    monkeypatch.chdir(tmp_path)
    for command in examples(verb):
        capfd.readouterr()
        assert main(command) == 0, capfd.readouterr().err
    said = capfd.readouterr().out.rstrip("\n").splitlines()
    last_rule = max(number for number, line in enumerate(said) if set(line.strip()) <= BOX and line.strip())
    assert all(line.count("  ") for line in said[last_rule + 1 :]), f"no rows of a table: {said[last_rule + 1 :]}"
