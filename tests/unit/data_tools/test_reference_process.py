"""tokenizers in a process of its own gives what it gives in this one, and ends when nobody asks any more."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from data_tools import tokenizer as tokenizer_module
from data_tools.bpe import ChosenEngine, Gigatoken, SpecialTokens
from data_tools.errors import DataError, SetupError
from data_tools.job import TokenizeJob
from data_tools.progress import NoProgress
from data_tools.reference_process import ReferenceProcess
from data_tools.tokenize import tokenize
from data_tools.tokenizer import Tokenizer

TEXTS = ["the cat", "", "a<|endoftext|>b<think>", "é\x00\n", "<|im_start|>"]
WriteLines = Callable[..., Path]


@pytest.fixture(autouse=True)
def _each_tokenizer_counts_as_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizer_module, "_LARGE_BYTES", 0)


def is_there(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def process_of(tokenizer: Tokenizer) -> ReferenceProcess:
    assert isinstance(tokenizer.reference, ReferenceProcess)
    return tokenizer.reference


@pytest.mark.parametrize("special_tokens", ["literal", "parse", "reject"])
def test_it_gives_the_ids_the_text_and_the_facts_of_the_library(
    tiny_tokenizer: Path, special_tokens: SpecialTokens
) -> None:
    apart = Tokenizer.load_for_job(tiny_tokenizer, special_tokens=special_tokens, engine="auto")
    here = Tokenizer.load(tiny_tokenizer, special_tokens=special_tokens)
    process = process_of(apart)
    assert [ids.tolist() for ids in process.encode_batch(TEXTS)] == [here.encode(text) for text in TEXTS]
    assert apart.encode(TEXTS[2]) == here.encode(TEXTS[2])
    assert apart.decode([0, 2]) == here.decode([0, 2]) == "<|endoftext|><|im_start|>"
    assert (apart.facts, apart.control_ids, process.version) == (here.facts, here.control_ids, here.reference.version)
    assert apart.chosen.engine.name == "gigatoken"


def test_a_tokenizer_that_gigatoken_refuses_is_encoded_in_this_process(tmp_path: Path, tiny_tokenizer: Path) -> None:
    fields = json.loads((tiny_tokenizer / "tokenizer.json").read_bytes()) | {"normalizer": {"type": "Lowercase"}}
    (tmp_path / "tokenizer.json").write_text(json.dumps(fields))
    (tmp_path / "tokenizer_config.json").write_bytes((tiny_tokenizer / "tokenizer_config.json").read_bytes())
    tokenizer = Tokenizer.load_for_job(tmp_path, special_tokens="literal", engine="auto")
    assert not isinstance(tokenizer.reference, ReferenceProcess)
    assert tokenizer.chosen.engine is tokenizer.reference
    assert "ormalizer" in tokenizer.chosen.reason


def test_ids_that_differ_end_the_job_and_leave_nothing(tiny_tokenizer: Path, write_lines: WriteLines) -> None:
    source = write_lines({"text": "the cat sat"}, {"text": "the end"})
    tokenizer = Tokenizer.load_for_job(tiny_tokenizer, special_tokens="literal", engine="auto")
    content = json.loads((tiny_tokenizer / "tokenizer.json").read_bytes())
    content["model"]["merges"] = content["model"]["merges"][:1]
    other = Gigatoken(json.dumps(content).encode(), special_tokens="literal")
    wrong = Tokenizer(tokenizer.facts, process_of(tokenizer), lambda: ChosenEngine(other))
    job = TokenizeJob(inputs=(source,), tokenizer=tiny_tokenizer, output=source.parent / "out")
    with pytest.raises(DataError, match=r"in\.jsonl:1: gigatoken .* and tokenizers .* give other ids"):
        tokenize(job, NoProgress(), load=lambda: wrong)
    assert not list(source.parent.glob("out*"))


def test_a_job_compares_its_documents_with_the_process(tiny_tokenizer: Path, write_lines: WriteLines) -> None:
    source = write_lines(*({"text": f"the cat {number}"} for number in range(50)))
    job = TokenizeJob(inputs=(source,), tokenizer=tiny_tokenizer, output=source.parent / "out", verify_sample=40)
    engine = tokenize(job, NoProgress()).manifest.engine
    assert engine is not None
    assert (engine.name, engine.compared) == ("gigatoken", 40)


def test_a_tokenizer_that_the_library_cannot_read_is_refused(tmp_path: Path, tiny_tokenizer: Path) -> None:
    (tmp_path / "tokenizer.json").write_text('{"model": 1}')
    (tmp_path / "tokenizer_config.json").write_bytes((tiny_tokenizer / "tokenizer_config.json").read_bytes())
    with pytest.raises(DataError, match=r"tokenizer\.json: not readable by tokenizers: "):
        Tokenizer.load_for_job(tmp_path, special_tokens="literal", engine="auto")


def test_it_ends_with_the_tokenizer(tiny_tokenizer: Path) -> None:
    tokenizer = Tokenizer.load_for_job(tiny_tokenizer, special_tokens="literal", engine="auto")
    number = process_of(tokenizer)._process.pid
    assert is_there(number)
    del tokenizer
    assert not is_there(number)


def test_it_ends_when_who_started_it_is_killed(tiny_tokenizer: Path) -> None:
    program = (
        "import sys, time; from pathlib import Path; from data_tools.reference_process import ReferenceProcess; "
        "one = ReferenceProcess(Path(sys.argv[1]), special_tokens='literal', eod_token='<|endoftext|>'); "
        "print(one._process.pid, flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", program, str(tiny_tokenizer / "tokenizer.json")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as starter:
        assert starter.stdout is not None
        number = int(starter.stdout.readline())
        assert is_there(number)
        starter.kill()
    deadline = time.monotonic() + 30
    while is_there(number) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not is_there(number)


def test_a_process_that_dies_ends_the_job_with_its_code(tiny_tokenizer: Path) -> None:
    process = process_of(Tokenizer.load_for_job(tiny_tokenizer, special_tokens="literal", engine="auto"))
    os.kill(process._process.pid, signal.SIGKILL)
    with pytest.raises(SetupError, match="checks a sample with tokenizers ended with code -9"):
        process.encode_batch(["the cat"])


def test_the_program_loads_no_numpy() -> None:
    program = "import sys, data_tools.reference_server; print('numpy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
