"""What the sources of demo and miniature declare is what their data have once they are made."""

from __future__ import annotations

from pathlib import Path

import pytest

from data_tools.__main__ import main as data_tools
from data_tools.dataset import read_dataset
from data_tools.schema import SourceRecipe
from data_tools.strict_yaml import load_yaml

SOURCES = Path(__file__).parents[2] / "recipes" / "sources"

pytestmark = pytest.mark.slow


def made(folder: Path, *, base: str, sets: list[str], vocabulary: int) -> None:
    """Samples of the small size (of `base` the one named) and a tokenizer for all of them."""
    assert data_tools(["sample", "--out", f"{folder}/raw", "--size", base, "--only", "base"]) == 0
    assert data_tools(["sample", "--out", f"{folder}/raw", "--only", ",".join(sets)]) == 0
    texts = [f"{folder}/raw/{name}.jsonl" for name in ["base", *sets] if name != "form"]
    trained = ["train-tokenizer", "--input", *texts, "--vocab-size", f"{vocabulary}", "--out", f"{folder}/tokenizer"]
    assert data_tools(trained) == 0


def tokens_of(folder: Path, source: SourceRecipe) -> tuple[int, int]:
    """Documents and tokens of a source, made now."""
    name, is_chat = Path(source.prefix).name, source.source.endswith("_chat")
    out = f"{folder}/{'chat' if is_chat else 'tokens'}/{name}"
    how = ["--adapter", "messages" if name == "form" else "openthoughts3"] if is_chat else ["--append-eod"]
    common = ["--input", f"{folder}/raw/{name}.jsonl", "--tokenizer", f"{folder}/tokenizer", "--output", out]
    assert data_tools(["chat" if is_chat else "tokenize", *common, *how]) == 0
    dataset = read_dataset(out)
    return dataset.documents, dataset.tokens


@pytest.mark.parametrize(
    ("family", "base", "sets", "vocabulary"),
    [
        ("demo", "small", ["ldq", "shq", "form"], 4_096),
        ("miniature", "full", ["mini_base", "mini_ldq", "mini_shq"], 1_024),
    ],
)
def test_a_source_declares_what_the_made_data_have(
    tmp_path: Path, family: str, base: str, sets: list[str], vocabulary: int
) -> None:
    made(tmp_path, base=base, sets=sets, vocabulary=vocabulary)
    for file in sorted(SOURCES.glob(f"{family}_*.yaml")):
        source = SourceRecipe.model_validate(load_yaml(file).data)
        if source.source.startswith("miniature_gpu"):
            continue  # of the full size, which takes minutes
        documents, tokens = tokens_of(tmp_path, source)
        if source.licence == "PSF-2.0":  # Python's own library: every version has another
            assert documents == pytest.approx(source.declared_documents, rel=0.1)
            assert tokens == pytest.approx(source.declared_tokens, rel=0.1)
        else:  # the tokenizer hangs on that library too
            assert documents == source.declared_documents
            assert tokens == pytest.approx(source.declared_tokens, rel=0.01)
