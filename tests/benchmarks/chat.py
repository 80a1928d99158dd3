"""CPU time of `data_tools chat` against Hugging Face's apply_chat_template with masks, same ids and masks.

    OMP_NUM_THREADS=1 python tests/benchmarks/chat.py --corpus CORPUS.jsonl --tokenizer DIR [--bytes 60_000_000]

The corpus is one of corpus.py. Two sets are made of its texts:

- long: a question of 300 characters, a trace of thinking and an answer, about 30,000 characters together;
- short: one to four questions of 40 to 200 characters, each with an answer of 100 to 600.

Ours is the whole job on one thread: reading, rendering, encoding, comparing a sample, masks, origins, hashes
and files, and loading the tokenizer. Hugging Face's is the calls alone. The marginal ratio leaves loading
out: what all conversations take beyond a tenth of them. Every id and every mask of the two is compared;
texts that spell a control token are left out, as Hugging Face would parse it.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import numpy as np
from transformers import AutoTokenizer

from data_tools.chat import ChatJob, chat
from data_tools.indexed import IndexedReader
from data_tools.loss_mask import read_masks
from data_tools.manifest import read_manifest
from data_tools.progress import NoProgress
from data_tools.threads import limit_threads
from data_tools.tokenizer import Tokenizer

TEMPLATE = (
    "{% for message in messages %}{{ message.role + '\n' }}{% if message.role == 'assistant' %}"
    "{% generation %}{{ message.content + eos_token }}{% endgeneration %}"
    "{% else %}{{ message.content + eos_token }}{% endif %}{% endfor %}"
)
LONG, QUESTION, ANSWER = 30_000, 300, 1_000
Messages = list[dict[str, str]]


def main() -> None:
    """Prints both CPU times, tokens a second, ratios, and how much was equal."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, required=True, help="JSONL of corpus.py")
    parser.add_argument("--tokenizer", type=Path, required=True, help="folder of tokenizer.json")
    parser.add_argument("--bytes", type=int, default=60_000_000, help="characters of each set (default 60_000_000)")
    parser.add_argument("--job", nargs=2, type=Path, metavar=("JSONL", "PREFIX"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.job:
        print(_job(*options.job, tokenizer=options.tokenizer))
        return
    for name, make in (("long", _long), ("short", _short)):
        _measure(name, list(make(_texts(options.corpus, options.tokenizer), options.bytes)), options)


def _measure(name: str, conversations: list[Messages], options: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as folder:
        whole, tenth = Path(folder) / "all", Path(folder) / "tenth"
        tenth_s = _ours(tenth, conversations[::10], options)
        ours_s = _ours(whole, conversations, options)
        theirs_s = _compare(whole, conversations, options.tokenizer)
        manifest = read_manifest(whole)
        rest = manifest.tokens - IndexedReader(tenth).tokens
    assert manifest.engine, "always recorded"
    tokens = manifest.tokens
    print(f"{name}: {len(conversations):,} conversations, {tokens / len(conversations):,.0f} tokens on average,")
    print(f"  all ids and masks equal; by {manifest.engine.name}, {manifest.engine.compared:,} checked in the job")
    print(f"  apply_chat_template   {theirs_s:8.2f} CPU s   {tokens / theirs_s / 1e6:6.2f} M tokens/s")
    print(f"  data_tools chat       {ours_s:8.2f} CPU s   {tokens / ours_s / 1e6:6.2f} M tokens/s")
    marginal = theirs_s * rest / tokens / (ours_s - tenth_s)
    print(f"  ratio                 {theirs_s / ours_s:8.1f}x whole job, {marginal:.1f}x marginal", flush=True)


def _texts(corpus: Path, tokenizer: Path) -> Iterator[str]:
    loaded = Tokenizer.load(tokenizer)
    control = [loaded.decode([number]) for number in loaded.control_ids]
    with corpus.open() as file:
        for line in file:
            text = json.loads(line)["text"]
            if not any(token in text for token in control):
                yield text


def _long(texts: Iterator[str], size: int) -> Iterator[Messages]:
    text = ""
    for more in texts:
        text += more + "\n\n"
        while len(text) >= LONG and size > 0:
            said, text = text[:LONG], text[LONG:]
            size -= LONG
            answer = f"<think>\n{said[QUESTION:-ANSWER]}\n</think>\n\n{said[-ANSWER:]}"
            yield [{"role": "user", "content": said[:QUESTION]}, {"role": "assistant", "content": answer}]


def _short(texts: Iterator[str], size: int) -> Iterator[Messages]:
    generator = random.Random(0)
    for text in texts:
        at = 0
        while at + 4 * 800 < len(text) and size > 0:
            messages = []
            for _ in range(generator.randint(1, 4)):
                for role, low, high in (("user", 40, 200), ("assistant", 100, 600)):
                    stop = at + generator.randint(low, high)
                    messages.append({"role": role, "content": text[at:stop]})
                    at = stop
            size -= sum(len(message["content"]) for message in messages)
            yield messages


def _ours(output: Path, conversations: list[Messages], options: argparse.Namespace) -> float:
    """CPU seconds of the job in a process of its own, its imports and the tokenizer included."""
    source = output.with_suffix(".jsonl")
    source.write_text("".join(json.dumps({"messages": messages}) + "\n" for messages in conversations))
    output.with_suffix(".jinja").write_text(TEMPLATE)
    job = ["--job", str(source), str(output), "--corpus", str(options.corpus), "--tokenizer", str(options.tokenizer)]
    ran = subprocess.run([sys.executable, __file__, *job], capture_output=True, text=True, check=True)
    return float(ran.stdout)


def _job(source: Path, output: Path, *, tokenizer: Path) -> float:
    limit_threads(1)
    began = time.process_time()
    job = ChatJob((source,), tokenizer, output, chat_template=output.with_suffix(".jinja"))
    chat(job, NoProgress())
    return time.process_time() - began


def _compare(prefix: Path, conversations: list[Messages], tokenizer: Path) -> float:
    """The CPU seconds of Hugging Face."""
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
    return seconds


if __name__ == "__main__":
    main()
