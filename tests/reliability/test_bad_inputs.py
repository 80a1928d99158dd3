"""Whatever is wrong with an input: an exit code, a message that names the place, counts, and no dataset accepted.

One table for the three verbs that read raw data. A case that hangs is killed by `deadline`.
"""

from __future__ import annotations

import gzip
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from data_tools.__main__ import main
from data_tools.errors import DataError
from data_tools.manifest import check_files, read_manifest
from data_tools.tokenizer import train

DEADLINE_S = 120
GOOD = {
    "tokenize": {"text": "the cat"},
    "count": {"text": "the cat"},
    "chat": {"messages": [{"role": "user", "content": "the"}, {"role": "assistant", "content": "cat"}]},
}
WRITING = ("tokenize", "chat")


@pytest.fixture(autouse=True)
def deadline() -> Iterator[None]:
    """Ends a case that hangs."""
    signal.alarm(DEADLINE_S)  # the default action of SIGALRM is to kill
    yield
    signal.alarm(0)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    (folder / "text.jsonl").write_text(json.dumps({"text": "the cat sat " * 20}) + "\n")
    train([folder / "text.jsonl"], "text", 288, folder / "tok")
    return folder / "tok"


@dataclass(frozen=True)
class Outcome:
    """What a command did."""

    code: int
    said: str
    prefix: Path

    @property
    def is_accepted(self) -> bool:
        """Whether a reader would take what stands at PREFIX."""
        try:
            check_files(self.prefix, read_manifest(self.prefix))
        except DataError:
            return False
        return True


Run = Callable[..., Outcome]


@pytest.fixture
def run(tmp_path: Path, tokenizer: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a verb on a file; its dataset is `out/set`."""

    def do(verb: str, source: Path, on_error: str = "") -> Outcome:
        prefix = tmp_path / "out" / "set"
        arguments = [verb, "--input", str(source), "--tokenizer", str(tokenizer)]
        arguments += ["--output", str(prefix)] if verb in WRITING else []
        arguments += ["--on-error", on_error] if on_error else []
        code = main(arguments)
        captured = capsys.readouterr()
        return Outcome(code, captured.out + captured.err, prefix)

    return do


def lines(*records: object) -> bytes:
    return b"".join((r if isinstance(r, bytes) else json.dumps(r).encode()) + b"\n" for r in records)


def with_value(verb: str, value: object) -> dict[str, object]:
    return {next(iter(GOOD[verb])): value}


RECORDS: dict[str, tuple[Callable[[str], object], str, str]] = {
    # what is wrong: the record, its reason in tokenize and count, its reason in chat
    "malformed line": (lambda verb: b'{"text": ', "malformed", "malformed"),
    "blank line": (lambda verb: b"", "blank", "blank"),
    "missing key": (lambda verb: {"other": "x"}, "missing key", "missing key"),
    "null": (lambda verb: with_value(verb, None), "not a string", "bad conversation"),
    "wrong type": (lambda verb: with_value(verb, 5), "not a string", "bad conversation"),
    "list": (lambda verb: b"[1]", "not an object", "not an object"),
    "invalid UTF-8": (lambda verb: lines(GOOD[verb])[:-1].replace(b"cat", b"\xff"), "malformed", "malformed"),
    "lone surrogate": (lambda verb: lines(GOOD[verb])[:-1].replace(b"cat", rb"\ud800"), "malformed", "malformed"),
    "empty text": (lambda verb: with_value(verb, "" if verb != "chat" else []), "empty", "empty"),
}


@pytest.mark.parametrize("verb", WRITING)
@pytest.mark.parametrize("case", RECORDS)
def test_a_bad_record_ends_the_job_at_its_line(verb: str, case: str, tmp_path: Path, run: Run) -> None:
    make, *reasons = RECORDS[case]
    (source := tmp_path / "in.jsonl").write_bytes(lines(GOOD[verb], make(verb), GOOD[verb]))
    outcome = run(verb, source)
    assert outcome.code == 3
    assert outcome.said.startswith(f"error: {source}:2: {reasons[verb == 'chat']}: ")
    assert not outcome.is_accepted
    assert list(outcome.prefix.parent.iterdir()) == []


@pytest.mark.parametrize("verb", WRITING)
@pytest.mark.parametrize("case", RECORDS)
def test_a_bad_record_is_left_out_counted_and_listed(verb: str, case: str, tmp_path: Path, run: Run) -> None:
    make, *reasons = RECORDS[case]
    (source := tmp_path / "in.jsonl").write_bytes(lines(GOOD[verb], make(verb), GOOD[verb]))
    outcome = run(verb, source, "skip")
    assert outcome.code == 0
    assert outcome.is_accepted
    manifest = read_manifest(outcome.prefix)
    assert (manifest.documents, manifest.rejected_by_reason) == (2, {reasons[verb == "chat"]: 1})
    (rejected,) = map(json.loads, Path(f"{outcome.prefix}.rejects.jsonl").read_bytes().splitlines())
    assert (rejected["line"], rejected["reason"]) == (2, reasons[verb == "chat"])


@pytest.mark.parametrize("case", RECORDS)
def test_count_counts_bad_records_by_reason(case: str, tmp_path: Path, run: Run) -> None:
    make, reason, _ = RECORDS[case]
    (source := tmp_path / "in.jsonl").write_bytes(lines(GOOD["count"], make("count"), GOOD["count"]))
    outcome = run("count", source)
    assert outcome.code == 0
    assert f"1 ({reason} 1)" in outcome.said


def parquet(verb: str) -> bytes:
    pq.write_table(pa.Table.from_pylist([GOOD[verb]] * 3), sink := pa.BufferOutputStream())
    return sink.getvalue().to_pybytes()


FILES: dict[str, tuple[str, Callable[[str], bytes | None], str]] = {
    # what is wrong: the name of the file, its content (None: there is none), what is said
    "empty file": ("in.jsonl", lambda verb: b"", r"no "),
    "missing file": ("in.jsonl", lambda verb: None, "cannot be read: No such file or directory"),
    "cut gzip": ("in.jsonl.gz", lambda verb: gzip.compress(lines(GOOD[verb]) * 99)[:-5], "damaged gzip"),
    "gzip with a flipped bit": (
        "in.jsonl.gz",
        lambda verb: (packed := gzip.compress(lines(GOOD[verb])))[:-3] + bytes([packed[-3] ^ 1]) + packed[-2:],
        "damaged gzip",
    ),
    "cut zstd": ("in.jsonl.zst", lambda verb: zstandard.compress(lines(GOOD[verb]) * 99)[:-5], "damaged zstd"),
    "cut Parquet": ("in.parquet", lambda verb: parquet(verb)[:-5], "damaged Parquet"),
    "Parquet by name only": ("in.parquet", lambda verb: lines(GOOD[verb]), "its name says Parquet"),
}


@pytest.mark.parametrize("verb", GOOD)
@pytest.mark.parametrize("on_error", ["fail", "skip"])
@pytest.mark.parametrize("case", FILES)
def test_a_bad_file_ends_the_job_whatever_is_skipped(
    verb: str, case: str, on_error: str, tmp_path: Path, run: Run
) -> None:
    if (verb, on_error) == ("count", "skip"):
        return  # count has no such option
    name, make, said = FILES[case]
    if (content := make(verb)) is not None:
        (tmp_path / name).write_bytes(content)
    outcome = run(verb, tmp_path / name, on_error if verb in WRITING else "")
    if (verb, case) == ("count", "empty file"):
        assert outcome.code == 0
        return
    assert outcome.code == 3
    assert outcome.said.startswith("error: ")
    assert name in outcome.said
    assert said in outcome.said
    assert not outcome.is_accepted
    assert not outcome.prefix.parent.exists() or list(outcome.prefix.parent.iterdir()) == []


@pytest.mark.parametrize("verb", WRITING)
def test_line_ends_and_a_byte_order_mark_change_nothing(verb: str, tmp_path: Path, run: Run) -> None:
    content = lines(GOOD[verb], GOOD[verb])
    ids = set()
    for number, form in enumerate((content, content.replace(b"\n", b"\r\n"), b"\xef\xbb\xbf" + content, content[:-1])):
        (source := tmp_path / f"{number}.jsonl").write_bytes(form)
        outcome = run(verb, source)
        assert outcome.code == 0
        ids.add(read_manifest(outcome.prefix).data_id)
        shutil.rmtree(outcome.prefix.parent)
    assert len(ids) == 1


@pytest.mark.parametrize("verb", WRITING)
def test_the_same_run_again_is_done_and_a_changed_input_is_refused(verb: str, tmp_path: Path, run: Run) -> None:
    (source := tmp_path / "in.jsonl").write_bytes(lines(GOOD[verb], GOOD[verb]))
    assert "out/set: done" in run(verb, source).said
    first = read_manifest(tmp_path / "out/set")
    again = run(verb, source)
    assert (again.code, "out/set: already done" in again.said) == (0, True)
    source.write_bytes(source.read_bytes().replace(b"cat", b"sat"))  # as many bytes
    changed = run(verb, source)
    assert changed.code == 3
    assert "holds another dataset" in changed.said
    assert f"sha256 of {source}" in changed.said
    assert read_manifest(tmp_path / "out/set") == first


def row(table: str, name: str) -> str:
    """The value of a row of a printed table."""
    return next(line.split("│")[2].strip() for line in table.splitlines() if line.startswith(f"│ {name} "))


@pytest.mark.slow
@pytest.mark.parametrize("verb", GOOD)
def test_a_line_of_100_megabytes_is_one_record(verb: str, tmp_path: Path, run: Run) -> None:
    long = lines(GOOD[verb]).replace(b"cat", b"cat " * 25_000_000)
    (source := tmp_path / "in.jsonl").write_bytes(lines(GOOD[verb]) + long + lines(GOOD[verb]))
    outcome = run(verb, source)
    assert outcome.code == 0
    if verb == "count":
        found = tuple(row(outcome.said, name) for name in ("documents", "would be rejected", "tokens"))
        assert found == ("3", "0", "25,000,006")
    else:
        assert outcome.is_accepted
        manifest = read_manifest(outcome.prefix)
        assert (manifest.documents, manifest.rejected) == (3, 0)
        # "the cat" twice and "the", 25,000,000 of " cat", " "; of chat an end of turn in place of each "the"
        assert (manifest.chat.trained_tokens if manifest.chat else manifest.tokens) == 25_000_006


@pytest.mark.system
@pytest.mark.parametrize("verb", GOOD)
def test_an_unreadable_file_is_named(verb: str, tmp_path: Path, tokenizer: Path) -> None:
    if os.geteuid() == 0 and not shutil.which("setpriv"):
        pytest.skip("not run: root reads every file, and there is no setpriv")
    (source := tmp_path / "in.jsonl").write_bytes(lines(GOOD[verb]))
    source.chmod(0)
    (out := tmp_path / "out").mkdir()
    command = [sys.executable, "-m", "data_tools", verb, "--input", str(source), "--tokenizer", str(tokenizer)]
    command += ["--output", str(out / "set")] if verb in WRITING else []
    if os.geteuid() == 0:  # as root without its power over modes
        command = ["setpriv", "--bounding-set=-all", "--inh-caps=-all", "--", *command]
    done = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S)
    assert (done.returncode, f"error: {source}: cannot be read: Permission denied" in done.stderr) == (3, True)
    assert list(out.iterdir()) == []


@pytest.mark.system
@pytest.mark.parametrize("verb", WRITING)
@pytest.mark.parametrize("of", ["good records", "good and bad records"])
@pytest.mark.parametrize("size_kb", [36, 64])
def test_a_full_disk_is_said_and_nothing_is_left_on_it(
    verb: str, of: str, size_kb: int, tmp_path: Path, run: Run
) -> None:
    """Some sizes are full only when a file is closed, which writes what was buffered."""
    record = lines(GOOD[verb]) if of == "good records" else lines(GOOD[verb], b"{")
    (tmp_path / "out").mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size_kb}k", "tmpfs", str(tmp_path / "out")]
    if os.geteuid() or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("not run: mounting a small disk needs root, and a system that lets it")
    try:
        (source := tmp_path / "in.jsonl").write_bytes(record * 10_000)
        outcome = run(verb, source, "skip")
        assert (outcome.code, f"{outcome.prefix}: No space left on device" in outcome.said) == (4, True), outcome.said
        assert not outcome.is_accepted
        assert list((tmp_path / "out").iterdir()) == []
        source.write_bytes(record * 5)  # less fits, and nothing stands in its way
        assert run(verb, source, "skip").code == 0
    finally:
        subprocess.run(["umount", str(tmp_path / "out")], check=True)
