"""CPU time of `data_tools chat` against Hugging Face's apply_chat_template with masks, same ids and masks.

    OMP_NUM_THREADS=1 python tests/benchmarks/chat.py --corpus CORPUS.jsonl --tokenizer DIR [--bytes 20_000_000]

The corpus is one of corpus.py; each text becomes a conversation: its first characters the question, then a
trace of thinking, its last the answer, cut at 24,000 characters. Ours is the whole job on one thread: reading,
rendering, encoding, comparing a sample, masks, hashes and files, with loading the tokenizer. Hugging Face's
is the calls alone. The ratio of slopes leaves loading out: it compares half of the conversations with all.
Every id and every mask of the two is compared; texts that spell a control token are left out, as Hugging
Face would parse it.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import numpy as np
from transformers import AutoTokenizer

from data_tools.chat import ChatJob, chat
from data_tools.chat_encode import added_tokens
from data_tools.chat_template import TokenFinder
from data_tools.indexed import IndexedReader
from data_tools.loss_mask import read_masks
from data_tools.progress import NoProgress
from data_tools.threads import limit_threads
from data_tools.tokenizer import Tokenizer

TEMPLATE = (
    "{% for message in messages %}{{ message.role + '\n' }}{% if message.role == 'assistant' %}"
    "{% generation %}{{ message.content + eos_token }}{% endgeneration %}"
    "{% else %}{{ message.content + eos_token }}{% endif %}{% endfor %}"
)
LONGEST, QUESTION, ANSWER = 24_000, 300, 600


def main() -> None:
    """Prints both CPU times, tokens a second, ratios, and how much was equal."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, required=True, help="JSONL of corpus.py")
    parser.add_argument("--tokenizer", type=Path, required=True, help="folder of tokenizer.json")
    parser.add_argument(
        "--bytes", type=int, default=20_000_000, help="characters of conversations (default 20_000_000)"
    )
    options = parser.parse_args()
    limit_threads(1)
    control = TokenFinder(added_tokens(Tokenizer.load(options.tokenizer)).control)
    conversations = list(_conversations(options.corpus, options.bytes, control))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        half_s = _ours(folder / "half", conversations[::2], options.tokenizer)
        ours_s = _ours(folder / "all", conversations, options.tokenizer)
        tokens, theirs_s = _compare(folder / "all", conversations, options.tokenizer)
        half_tokens = IndexedReader(folder / "half").tokens
    print(f"{len(conversations):,} conversations, {tokens:,} tokens, all ids and masks equal")
    print(f"  engine                {Tokenizer.load(options.tokenizer).chosen.engine.name}")
    print(f"  apply_chat_template   {theirs_s:8.2f} CPU s   {tokens / theirs_s / 1e6:6.2f} M tokens/s")
    print(f"  data_tools chat       {ours_s:8.2f} CPU s   {tokens / ours_s / 1e6:6.2f} M tokens/s")
    slope = (tokens - half_tokens) / (ours_s - half_s)
    print(f"  ratio                 {theirs_s / ours_s:8.1f}x whole job, {slope * theirs_s / tokens:.1f}x on the slope")


def _conversations(corpus: Path, size: int, control: TokenFinder) -> Any:
    with corpus.open() as file:
        for line in file:
            text = json.loads(line)["text"][:LONGEST]
            if len(text) < 2 * (QUESTION + ANSWER) or control.find(text):
                continue
            size -= len(text)
            if size < 0:
                return
            answer = f"<think>\n{text[QUESTION:-ANSWER]}\n</think>\n\n{text[-ANSWER:]}"
            yield [{"role": "user", "content": text[:QUESTION]}, {"role": "assistant", "content": answer}]


def _ours(output: Path, conversations: list[Any], tokenizer: Path) -> float:
    source, template = output.with_suffix(".jsonl"), output.with_suffix(".jinja")
    source.write_text("".join(json.dumps({"messages": messages}) + "\n" for messages in conversations))
    template.write_text(TEMPLATE)
    job = ChatJob(inputs=(source,), tokenizer=tokenizer, output=output, chat_template=template)
    began = time.process_time()
    chat(job, NoProgress())
    return time.process_time() - began


def _compare(prefix: Path, conversations: list[Any], tokenizer: Path) -> tuple[int, float]:
    """Tokens, and the CPU seconds of Hugging Face."""
    loaded = AutoTokenizer.from_pretrained(tokenizer)
    documents, masks = IndexedReader(prefix), read_masks(prefix)
    seconds = 0.0
    for number, messages in enumerate(conversations):
        began = time.process_time()
        theirs: Any = loaded.apply_chat_template(
            messages, chat_template=TEMPLATE, return_dict=True, return_assistant_tokens_mask=True
        )
        seconds += time.process_time() - began
        ids = documents[number]
        mask = masks.mask(number, tokens=len(ids))
        if not (np.array_equal(ids, theirs["input_ids"]) and np.array_equal(mask, theirs["assistant_masks"])):
            raise SystemExit(f"conversation {number}: ids or masks differ")
    return documents.tokens, seconds


if __name__ == "__main__":
    main()
