"""Mistral's tekken vocabulary (131,072 ids) as a tokenizer folder of Hugging Face's form.

    pip download --no-deps mistral-common; unzip mistral_common*.whl
    python tests/benchmarks/tekken.py mistral_common/data/tekken_240911.json OUT

The merges of a vocabulary of ranks are all its splits into two tokens, by rank; it takes about 20 s.
"""

from __future__ import annotations

import base64
import sys
from pathlib import Path

import orjson

FIRST_CONTROL = ("<unk>", "<s>", "</s>", "[INST]", "[/INST]")


def _letters() -> dict[int, str]:
    """The printable letter that stands for each byte in byte-level BPE. Source: GPT-2, `bytes_to_unicode`."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + at) for at, byte in enumerate(others)}


def _merges(tokens: list[bytes], words: list[str]) -> list[list[str]]:
    rank = {token: number for number, token in enumerate(tokens)}
    merges = []
    for token in tokens:
        cuts = [(rank.get(token[:at]), rank.get(token[at:])) for at in range(1, len(token))]
        pairs = sorted((left, right) for left, right in cuts if left is not None and right is not None)
        merges += [[words[left], words[right]] for left, right in pairs]
    return merges


def write_tekken(source: Path, out: Path) -> None:
    """Writes tokenizer.json and tokenizer_config.json."""
    content = orjson.loads(source.read_bytes())
    config = content["config"]
    num_control = config["default_num_special_tokens"]
    tokens = [
        base64.b64decode(entry["token_bytes"])
        for entry in content["vocab"][: config["default_vocab_size"] - num_control]
    ]
    letters = _letters()
    words = ["".join(letters[byte] for byte in token) for token in tokens]
    control = [*FIRST_CONTROL, *(f"<SPECIAL_{number}>" for number in range(len(FIRST_CONTROL), num_control))]
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    split = {"type": "Split", "pattern": {"Regex": config["pattern"]}, "behavior": "Isolated", "invert": False}
    model = {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": True,
        "vocab": {word: number for number, word in enumerate([*control, *words])},
        "merges": _merges(tokens, words),
    }
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": number, "content": token, **flags} for number, token in enumerate(control)],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, byte_level]},
        "post_processor": None,
        "decoder": byte_level,
        "model": model,
    }
    out.mkdir(parents=True, exist_ok=True)
    out.joinpath("tokenizer.json").write_bytes(orjson.dumps(tokenizer))
    names = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "</s>",
        "bos_token": "<s>",
        "unk_token": "<unk>",
    }
    out.joinpath("tokenizer_config.json").write_bytes(orjson.dumps(names))


if __name__ == "__main__":
    write_tekken(Path(sys.argv[1]), Path(sys.argv[2]))
