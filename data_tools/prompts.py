"""Prompts with verifiable answers, from JSONL in the schema of Nemotron-CrossThink, rendered and in tokens.

| field        | read as |
|--------------|---------|
| prompt       | [{role, content}]: the turns before the answer, put into the chat template |
| reward_model | {ground_truth}: the answer |
| meta_data    | {family, domain, scorer, task}, all optional; scorer is of `data_tools.scoring` |

A prompt is known by its text and answer: the same one twice in a file is one prompt and one refused line.
Control tokens that a prompt spells would let it forge turns, so such a line is refused too.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import orjson

from data_tools.adapters import adapter_named
from data_tools.chat_encode import added_tokens
from data_tools.chat_template import ChatTemplate, opened_thinking
from data_tools.chat_template_files import special_tokens
from data_tools.errors import DataError
from data_tools.readers import BadRecord
from data_tools.records import Domain
from data_tools.scoring import check_truth, scorer_of
from data_tools.tokenizer import Tokenizer

ADAPTER = "nemotron-crossthink"


@dataclass(frozen=True, slots=True)
class PromptRow:
    """One prompt.

    Attributes:
        id: 32 hex digits of its text and answer.
        domain: What it is about.
        family: Of its task; "" where it names none.
        record: The line as it stands in the file, its scorer filled in.
        ids: Tokens of the rendered prompt, up to where the assistant begins.
        line: Where it stands in the file, from 1.
        opening: What the template begins of the answer, in these tokens already: `<think>` or nothing. An answer is
            scored with it.
    """

    id: str
    domain: str
    family: str
    record: Mapping[str, Any]
    ids: tuple[int, ...]
    line: int = 0
    opening: str = ""


@dataclass(frozen=True)
class PromptFile:
    """The prompts of one file.

    Attributes:
        rows: In order.
        sha256: Of the file.
        unusable: Lines refused, by reason.
        first_unusable: Place and reason of the first one; "" where there is none.
        other_domains: Rows by the domain that they name, where it is none of ours.
    """

    rows: tuple[PromptRow, ...]
    sha256: str
    unusable: Mapping[str, int]
    first_unusable: str
    other_domains: Mapping[str, int]


class PromptEncoder:
    """Renders prompts in a chat template and encodes them.

    Attributes:
        stop_ids: Ids at which an answer ends: the token that the template puts behind one, and the end of a document.
            Other control tokens end none: those of some tokenizers are `<think>` and `</think>` too.
    """

    def __init__(self, tokenizer_folder: str | Path, template: str) -> None:
        """Loads the tokenizer.

        Args:
            tokenizer_folder: Of the tokenizer.
            template: Text of the chat template.

        Raises:
            DataError: There is no tokenizer, or it is no template of questions and answers.
        """
        self._tokenizer = Tokenizer.load(tokenizer_folder, special_tokens="parse")
        tokens = added_tokens(self._tokenizer)
        self._control = tokens.control
        self._template = ChatTemplate(
            template, control_tokens=tokens.control, variables=special_tokens(Path(tokenizer_folder))
        )
        end = self._template.end_of_turn()
        self.stop_ids = frozenset({self._tokenizer.eod_id, *([tokens.ids[end]] if end is not None else [])})

    def render(self, messages: Sequence[Mapping[str, Any]]) -> str:
        """The text of a prompt; a control token that it spells is taken for one.

        Raises:
            BadRecord: The template refuses it.
        """
        return self._template.render_prompt([dict(message) for message in messages])

    def require_plain(self, messages: Sequence[Mapping[str, Any]]) -> None:
        """Refuses a prompt that spells a control token.

        Raises:
            BadRecord: It does.
        """
        spelled = next((t for message in messages for t in self._control if t in str(message["content"])), None)
        if spelled is not None:
            raise BadRecord("control token", f"its text spells {spelled}")

    def encode(self, texts: Sequence[str]) -> list[tuple[int, ...]]:
        """Tokens of rendered prompts."""
        return [tuple(self._tokenizer.encode(text)) for text in texts]


def read_prompts(
    path: Path, encoder: PromptEncoder, *, domain: Domain, scorer: str, families: Sequence[str] = ()
) -> PromptFile:
    """Reads the prompts of a file; lines that cannot be used are counted, not raised.

    Args:
        path: JSONL.
        encoder: Of the stage.
        domain: Of prompts that name none.
        scorer: Of prompts that name none.
        families: Only these; () takes all.

    Raises:
        DataError: The file cannot be read, or its first line has another schema.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None
    adapter = adapter_named(ADAPTER).for_file(path)
    kept: dict[str, tuple[str, Mapping[str, Any], int]] = {}
    unusable: Counter[str] = Counter()
    first = ""
    for number, line in enumerate(content.splitlines(), 1):
        try:
            document = adapter(line)
            record = _with_scorer(orjson.loads(line), scorer)
            if families and record["meta_data"].get("family") not in families:
                continue
            if document.id in kept:
                raise BadRecord("the same prompt again", "its text and answer stand above")
            _require_verifiable(record)
            encoder.require_plain(record["prompt"])
            kept[document.id] = (encoder.render(record["prompt"]), record, number)
        except BadRecord as bad:
            unusable[bad.reason] += 1
            first = first or f"{path}:{number}: {bad.detail}"
    ids = encoder.encode([text for text, _, _ in kept.values()])
    rows = tuple(
        PromptRow(
            id=name,
            domain=_domain_of(record, domain),
            family=str(record["meta_data"].get("family") or ""),
            record=record,
            ids=tokens,
            line=number,
            opening=opened_thinking(text),
        )
        for (name, (text, record, number)), tokens in zip(kept.items(), ids, strict=True)
    )
    named = (record["meta_data"].get("domain") for _, record, _ in kept.values())
    others = Counter(str(domain) for domain in named if domain is not None and domain not in get_args(Domain))
    return PromptFile(rows, hashlib.sha256(content).hexdigest(), dict(unusable), first, dict(others))


def content_id(rows: Sequence[PromptRow]) -> str:
    """Identity of some prompts: of what is asked, what is right, and who judges, in order."""
    digest = hashlib.sha256()
    for row in rows:
        about = row.record["meta_data"]
        judged = orjson.dumps([about.get("scorer"), about.get("task")], option=orjson.OPT_SORT_KEYS)
        digest.update(f"{row.id} {len(row.ids)} ".encode() + judged + b"\n")
    return digest.hexdigest()


def _with_scorer(record: dict[str, Any], scorer: str) -> dict[str, Any]:
    about = record.get("meta_data")
    about = dict(about) if isinstance(about, dict) else {}
    return record | {"meta_data": about | {"scorer": scorer_of(record, default=scorer)}}


def _domain_of(record: Mapping[str, Any], domain: Domain) -> str:
    said = record["meta_data"].get("domain")
    return str(said) if said in get_args(Domain) else domain


def _require_verifiable(record: Mapping[str, Any]) -> None:
    """Refuses a ground truth that its scorer cannot read."""
    about, truth = record["meta_data"], record["reward_model"]["ground_truth"]
    try:
        check_truth(truth, scorer=about["scorer"], task=about.get("task"))
    except DataError as error:
        raise BadRecord("no verifiable answer", str(error)) from None
