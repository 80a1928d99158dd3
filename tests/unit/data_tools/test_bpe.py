"""Two libraries, one meaning: the ids of tokenizers."""

from __future__ import annotations

import json
import os
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_tools.bpe import ChosenEngine, Encoded, Gigatoken, SpecialTokens
from data_tools.engine_check import EngineCheck
from data_tools.errors import DataError, SetupError
from data_tools.tokenizer import Tokenizer

TEXTS = ["the cat", "", "a<|endoftext|>b<think>", "é\x00\n", "<|im_start|>"]


def place(number: int) -> str:
    return f"in.jsonl:{number + 1}"


def changed(tokenizer: Path, folder: Path, **fields: object) -> Path:
    """A copy of a tokenizer folder with other fields in its tokenizer.json."""
    shutil.copytree(tokenizer, folder)
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_bytes()) | fields))
    return folder


def test_a_tokenizer_trained_here_is_taken_by_the_fast_engine(tiny_tokenizer: Path) -> None:
    chosen = Tokenizer.load(tiny_tokenizer).chosen
    assert (chosen.engine.name, chosen.reason) == ("gigatoken", "")
    assert Tokenizer.load(tiny_tokenizer, engine="tokenizers").chosen.engine.name == "tokenizers"


@pytest.mark.parametrize("special_tokens", ["literal", "parse", "reject"])
def test_both_engines_give_the_same_ids(tiny_tokenizer: Path, special_tokens: SpecialTokens) -> None:
    tokenizer = Tokenizer.load(tiny_tokenizer, special_tokens=special_tokens)
    fast, slow = tokenizer.encode_batch(TEXTS), tokenizer.reference.encode_batch(TEXTS)
    assert fast.ids.tolist() == slow.ids.tolist()
    assert fast.lengths.tolist() == slow.lengths.tolist() == [len(tokenizer.encode(text)) for text in TEXTS]
    assert (fast.ids.dtype, len(fast)) == (np.uint32, 5)


@settings(max_examples=50, deadline=None)
@given(texts=st.lists(st.text() | st.sampled_from(["<|endoftext|>", "<think>", "don't", " \n "]), max_size=6))
def test_both_engines_agree_on_any_text(tiny_tokenizer: Path, texts: list[str]) -> None:
    tokenizer = Tokenizer.load(tiny_tokenizer)
    assert [ids.tolist() for ids in tokenizer.encode_batch(texts)] == [tokenizer.encode(text) for text in texts]


def test_text_forges_a_control_token_only_where_it_is_parsed(tiny_tokenizer: Path) -> None:
    parsed = Tokenizer.load(tiny_tokenizer, special_tokens="parse").encode_batch(["a<|endoftext|>"])
    assert parsed.ids.tolist()[1:] == [0]
    assert 0 not in Tokenizer.load(tiny_tokenizer).encode_batch(["a<|endoftext|>"]).ids


def test_control_ids_are_those_that_the_tokenizer_calls_special(tiny_tokenizer: Path) -> None:
    assert Tokenizer.load(tiny_tokenizer).control_ids == [0, 1, 2, 3, *range(6, 16)]


def test_no_text_is_no_ids(tiny_tokenizer: Path) -> None:
    for engine in ("gigatoken", "tokenizers"):
        encoded = Tokenizer.load(tiny_tokenizer, engine=engine).encode_batch([])
        assert (encoded.ids.tolist(), encoded.lengths.tolist(), list(encoded)) == ([], [], [])


def test_a_tokenizer_that_the_fast_engine_refuses_is_encoded_by_the_other(tmp_path: Path, tiny_tokenizer: Path) -> None:
    folder = changed(tiny_tokenizer, tmp_path / "t", normalizer={"type": "Lowercase"})
    tokenizer = Tokenizer.load(folder)
    assert tokenizer.chosen.engine is tokenizer.reference
    assert "ormalizer" in tokenizer.chosen.reason
    assert tokenizer.encode_batch(["THE CAT"]).ids.tolist() == tokenizer.encode("the cat")
    with pytest.raises(SetupError, match="--bpe gigatoken: it does not take this tokenizer: .*; give --bpe tokenizers"):
        _ = Tokenizer.load(folder, engine="gigatoken").chosen


def test_an_engine_that_gives_other_ids_ends_the_job(tiny_tokenizer: Path) -> None:
    tokenizer = Tokenizer.load(tiny_tokenizer)
    content = json.loads((tiny_tokenizer / "tokenizer.json").read_bytes())
    content["model"]["merges"] = content["model"]["merges"][:1]
    other = Gigatoken(json.dumps(content).encode(), special_tokens="literal")
    wrong = Tokenizer(tokenizer.facts, tokenizer.reference, lambda: ChosenEngine(other))
    check = EngineCheck(wrong, documents=10, total_bytes=100)
    with pytest.raises(DataError, match=r"in\.jsonl:2: gigatoken .* give other ids .*: token 0 of ' the cat'"):
        check.check(["~", " the cat"], 100, place)


def test_the_sample_is_spread_over_the_input(tiny_tokenizer: Path) -> None:
    check = EngineCheck(Tokenizer.load(tiny_tokenizer), documents=400, total_bytes=1000)
    texts, compared = ["the cat sat"] * 100, []
    for _ in range(10):
        check.check(texts, 100, place)
        compared.append(check.compared)
    assert compared == [40, 80, 120, 160, 200, 240, 280, 320, 360, 400]


def test_of_an_input_without_size_the_first_documents_are_compared(tiny_tokenizer: Path) -> None:
    check = EngineCheck(Tokenizer.load(tiny_tokenizer), documents=150, total_bytes=0)
    for _ in range(3):
        check.check(["the cat sat"] * 100, 0, place)
    assert check.compared == 150


def test_the_reference_is_not_compared_with_itself(tiny_tokenizer: Path) -> None:
    check = EngineCheck(Tokenizer.load(tiny_tokenizer, engine="tokenizers"), documents=10, total_bytes=10)
    check.check(["the cat"], 10, place)
    assert check.compared == 0


def test_the_ids_of_each_text_are_handed_out_one_by_one() -> None:
    encoded = Encoded(np.array([1, 2, 3], np.uint32), np.array([2, 0, 1]))
    assert [ids.tolist() for ids in encoded] == [[1, 2], [], [3]]


def test_the_words_that_gigatoken_keeps_are_bounded(tiny_tokenizer: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data_tools.bpe._CACHE_BYTES", 16 << 20)
    engine = Gigatoken((tiny_tokenizer / "tokenizer.json").read_bytes(), special_tokens="literal")
    generator = random.Random(0)
    ids = [engine.encode_batch(["cat sat"]).ids.tolist()]
    before = resident_mib()
    for _ in range(40):
        engine.encode_batch([" ".join("".join(generator.choices("abcdefghij", k=9)) for _ in range(20_000))])
    ids.append(engine.encode_batch(["cat sat"]).ids.tolist())
    assert resident_mib() - before < 45  # 800,000 words would take 80
    assert ids[0] == ids[1]


def resident_mib() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
