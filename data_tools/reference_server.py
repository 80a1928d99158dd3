"""The program that `reference_process.py` starts: a tokenizer.json in tokenizers, asked over a pipe.

    python -m data_tools.reference_server TOKENIZER_JSON SPECIAL_TOKENS EOD_TOKEN

One line of JSON goes out when it is loaded, and one for each that comes in:

| comes in       | goes out                                                                             |
|----------------|--------------------------------------------------------------------------------------|
|                | {sha256, version, largest_id, eod_id, control_ids}, or {error} and the end           |
| {encode: [s]}  | [[id]]                                                                               |
| {decode: [id]} | s                                                                                    |

It ends when its input does, so it never outlives who started it.
"""

from __future__ import annotations

import hashlib
import json
import sys
from typing import Any

from data_tools.hugging_face import HuggingFaceTokenizer, give_memory_back


def _loaded(path: str, special_tokens: Any, eod_token: str) -> tuple[dict[str, Any], HuggingFaceTokenizer]:
    with open(path, "rb") as file:
        content = file.read()
    tokenizer = HuggingFaceTokenizer(content, special_tokens=special_tokens)
    ids = tokenizer.token_ids
    facts = {
        "sha256": hashlib.sha256(content).hexdigest(),
        "version": tokenizer.version,
        "largest_id": max(ids.values()),
        "eod_id": ids.get(eod_token),
        "control_ids": tokenizer.control_ids,
    }
    del content, ids
    give_memory_back()
    return facts, tokenizer


def main() -> None:
    """Answers until its input ends."""
    try:
        facts, tokenizer = _loaded(*sys.argv[1:])
    except Exception as error:  # the library raises bare Exception
        print(json.dumps({"error": str(error)}), flush=True)
        return
    print(json.dumps(facts), flush=True)
    for line in sys.stdin.buffer:
        asked = json.loads(line)
        if "encode" in asked:
            answer: Any = [ids for part in tokenizer.encode_parts(asked["encode"]) for ids in part]
        else:
            answer = tokenizer.decode(asked["decode"])
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    try:
        main()
    except BrokenPipeError:  # who asked has been killed
        sys.stderr.close()
        raise SystemExit(1) from None
