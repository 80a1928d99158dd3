"""SentencePiece models: the ids of the library that trained them, and Megatron's bytes."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import sentencepiece

from data_tools.errors import DataError, SetupError, UsageError
from data_tools.indexed import IndexedReader
from data_tools.progress import NoProgress
from data_tools.tokenize import TokenizeJob, tokenize
from data_tools.tokenizer import Tokenizer, describe, fingerprint

WriteLines = Callable[..., Path]
ODD = [
    "",
    " ",
    "a",
    " the cat",
    "the  cat ",
    "</s>",
    "<s>the</s>cat",
    "\n\t",
    "é漢🙂",
    "\x00",
    "▁cat",
    "the\u00a0cat",
    "ﬁ",
]


def trained(folder: Path, **options: object) -> Path:
    """A model of words of a to h, trained on the spot."""
    generator = random.Random(0)
    words = ["".join(generator.choices("abcdefgh", k=generator.randint(2, 7))) for _ in range(300)]
    folder.mkdir()
    (folder / "text").write_text("\n".join(" ".join(generator.choices(words, k=9)) for _ in range(400)) + "\nthe cat\n")
    fields = {"model_type": "bpe", "vocab_size": 400, "byte_fallback": True, "minloglevel": 2} | options
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "text"), model_prefix=str(folder / "tokenizer"), num_threads=1, **fields
    )
    return folder / "tokenizer.model"


@pytest.fixture(scope="module")
def bpe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("models") / "bpe", user_defined_symbols=["<think>"])


@pytest.fixture(scope="module")
def unigram(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(
        tmp_path_factory.mktemp("models") / "unigram", model_type="unigram", byte_fallback=False, vocab_size=100
    )


def texts() -> list[str]:
    generator = random.Random(1)
    pieces = [" ", "  ", "the", "cat", "é", "漢", "<think>", "</s>", "\n", "abc", "▁", "0", "\u200b"]
    return [*ODD, *("".join(generator.choices(pieces, k=20)) for _ in range(300))]


def test_a_model_is_described_by_its_own_pieces(bpe: Path) -> None:
    facts = describe(bpe)
    assert (facts.vocab_size, facts.eod_id, facts.eod_token) == (400, 2, "</s>")
    assert facts.fingerprint == hashlib.sha256(bpe.read_bytes() + b"</s>").hexdigest() == fingerprint(bpe.parent)


def test_gigatoken_encodes_where_it_is_asked_for_and_is_compared(bpe: Path, write_lines: WriteLines) -> None:
    source = write_lines({"text": "the cat </s>"}, {"text": "abc  hé"})
    job = TokenizeJob((source,), bpe, source.parent / "out", bpe="gigatoken")
    whole = tokenize(TokenizeJob((source,), bpe, source.parent / "whole"), NoProgress()).manifest
    manifest = tokenize(job, NoProgress()).manifest
    assert manifest.engine is not None
    assert (manifest.engine.name, manifest.engine.compared) == ("gigatoken", 2)
    assert manifest.data_id == whole.data_id


def test_a_difference_between_the_two_libraries_ends_the_job(bpe: Path, write_lines: WriteLines) -> None:
    source = write_lines({"text": "<think>漢\n▁   ▁漢abc 漢abcthe\u200b0 "})
    job = TokenizeJob((source,), bpe, source.parent / "out", bpe="gigatoken")
    with pytest.raises(DataError, match=r"in\.jsonl:1: gigatoken .* and sentencepiece .* give other ids"):
        tokenize(job, NoProgress())


def test_gigatoken_refuses_a_unigram_model(unigram: Path, write_lines: WriteLines) -> None:
    source = write_lines({"text": "abc"})
    with pytest.raises(SetupError, match="--bpe gigatoken: it does not take this tokenizer"):
        tokenize(TokenizeJob((source,), unigram, source.parent / "out", bpe="gigatoken"), NoProgress())


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_documents_are_the_ids_of_the_library_and_then_its_eos(
    kind: str, write_lines: WriteLines, request: pytest.FixtureRequest
) -> None:
    model: Path = request.getfixturevalue(kind)
    processor = sentencepiece.SentencePieceProcessor(model_file=str(model))
    source = write_lines({"text": "the cat </s>"}, {"text": "abc  hé"})
    job = TokenizeJob((source,), model, source.parent / "out", append_eod=True)
    engine = tokenize(job, NoProgress()).manifest.engine
    documents = IndexedReader(source.parent / "out")
    assert documents[0].tolist() == [*processor.encode("the cat </s>"), 2]
    assert documents[1].tolist() == [*processor.encode("abc  hé"), 2]
    assert 2 not in processor.encode("the cat </s>")
    assert engine is not None
    assert (engine.name, engine.compared, engine.reason) == ("sentencepiece", 0, "")
    assert tokenize(job, NoProgress()).was_done


def test_the_bytes_are_those_of_megatrons_sentencepiece_path(bpe: Path, write_lines: WriteLines) -> None:
    from megatron.core.datasets.indexed_dataset import DType, IndexedDatasetBuilder
    from megatron.core.tokenizers.text.libraries.sentencepiece_tokenizer import SentencePieceTokenizer

    theirs = SentencePieceTokenizer(str(bpe))
    source = write_lines(*({"text": text} for text in texts() if theirs.text_to_ids(text)))
    builder = IndexedDatasetBuilder(str(source.parent / "theirs.bin"), dtype=DType.optimal_dtype(theirs.vocab_size))
    for line in source.read_text().splitlines():
        ids = [*theirs.text_to_ids(json.loads(line)["text"]), theirs.eos_id]
        builder.add_document(np.array(ids), [len(ids)])
    builder.finalize(str(source.parent / "theirs.idx"))
    job = TokenizeJob((source,), bpe, source.parent / "out", append_eod=True, compat="megatron", special_tokens="parse")
    tokenize(job, NoProgress())
    for suffix in ("bin", "idx"):
        assert (source.parent / f"out.{suffix}").read_bytes() == (source.parent / f"theirs.{suffix}").read_bytes()


@pytest.mark.parametrize("how", ["parse", "reject"])
def test_a_model_has_no_spelling_of_control_pieces_to_choose_about(
    bpe: Path, write_lines: WriteLines, how: str
) -> None:
    source = write_lines({"text": "the"})
    with pytest.raises(
        UsageError, match=f"--special-tokens {how}: .*no text spells a control piece of a SentencePiece"
    ):
        tokenize(TokenizeJob((source,), bpe, source.parent / "out", special_tokens=how), NoProgress())  # type: ignore[arg-type]


def test_ids_become_text_with_control_pieces_spelled_out(bpe: Path) -> None:
    tokenizer = Tokenizer.load(bpe)
    assert tokenizer.decode([*tokenizer.encode("the cat"), 2]) == "the cat</s>"
    assert tokenizer.control_ids == [1, 2]


def test_a_folder_is_read_by_its_only_model_and_tokenizer_json_comes_first(
    bpe: Path, tiny_tokenizer: Path, tmp_path: Path
) -> None:
    shutil.copy(bpe, tmp_path / "any.model")
    assert fingerprint(tmp_path) == fingerprint(bpe)
    shutil.copy(bpe, tmp_path / "other.model")
    with pytest.raises(DataError, match=r"holds any\.model, other\.model; name the one to read"):
        describe(tmp_path)
    shutil.copytree(tiny_tokenizer, tmp_path, dirs_exist_ok=True)
    assert fingerprint(tmp_path) == fingerprint(tiny_tokenizer)


def test_a_model_without_eos_and_a_file_that_is_none_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has no eos piece to end a document with; train it with --eos_id"):
        describe(trained(tmp_path / "none", eos_id=-1))
    (tmp_path / "x.model").write_bytes(b"\n\x0enot a model")
    with pytest.raises(DataError, match=r"x\.model: is no SentencePiece model"):
        describe(tmp_path / "x.model")
