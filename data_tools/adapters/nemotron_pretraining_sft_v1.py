r"""nvidia/Nemotron-Pretraining-SFT-v1, gated: `text`, in three folders.

| folder               | domain  | text |
|----------------------|---------|------|
| Nemotron-SFT-Code    | code    | plain |
| Nemotron-SFT-MATH    | math    | plain |
| Nemotron-SFT-General | general | turns: `<extra_id_1>User\n…` `<extra_id_1>Assistant\n…`, also System |

Confirmed: the column `text` and the folders. Second-hand: the turns (a script with NVIDIA's copyright);
not confirmed: other columns, and whether Code and MATH mark their answers. Another reader of the set
(Marin) takes MATH for `input: … output: …` and Code for a question, a blank line and `<think>…`;
those who trust that say so with `--answer-rule` (`data_tools/selection.py`). A row without turns is a
Document without an answer.
"""

from __future__ import annotations

import re

from data_tools.adapters.adapter import Adapter, Item
from data_tools.adapters.fields import ID_KEYS, conversation_of, id_of, text_of
from data_tools.readers import BadRecord, Columns, Record
from data_tools.records import Document, Domain, Role, Turn

_MARK = re.compile(r"(?:\A|(?<=\n))<extra_id_1>(System|User|Assistant)\n")
_ROLES: dict[str, Role] = {"System": "system", "User": "user", "Assistant": "assistant"}


def _convert(record: Record, domain: Domain) -> Item:
    text = text_of(record, "text")
    marks = list(_MARK.finditer(text)) if "<extra_id_1>" in text else []
    if not marks:
        if text.startswith("<extra_id_1>"):
            raise BadRecord(
                "bad conversation", f"it starts with {text[:30]!r}, none of the speakers {', '.join(_ROLES)}"
            )
        return Document(id_of(record, text), text, domain)
    if marks[0].start():
        raise BadRecord("bad conversation", f"{marks[0].start():,} characters stand before the first turn")
    ends = [mark.start() for mark in marks[1:]] + [len(text)]
    turns = (
        Turn(_ROLES[mark[1]], text[mark.end() : end].removesuffix("\n")) for mark, end in zip(marks, ends, strict=True)
    )
    said = tuple(turn for turn in turns if turn.content or turn.role != "system")
    if empty := next((turn for turn in said if not turn.content.strip()), None):
        raise BadRecord("empty", f"a turn of the {empty.role}'s is empty")
    return conversation_of(record, said, domain)


ADAPTER = Adapter(
    name="nemotron-pretraining-sft-v1",
    data_set="nvidia/Nemotron-Pretraining-SFT-v1",
    columns=Columns(required=(("text",),), optional=ID_KEYS),
    yields="Conversation (General), Document (Code, MATH)",
    trust="`text` confirmed; turns second-hand; other columns and marks of answers not confirmed",
    convert=_convert,
    folders=(("Nemotron-SFT-Code", "code"), ("Nemotron-SFT-MATH", "math")),
)
