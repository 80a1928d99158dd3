"""nvidia/Nemotron-CrossThink: a `prompt` in messages and its ground truth in `reward_model`.

These are questions to practise on, not texts to read: the Document's text is the prompt, its answer the
ground truth, which is no part of the text. Columns: data_source, prompt [{role, content}], reward_model
{style, ground_truth}, meta_data. Confirmed on the file of mathematics
(`Nemotron-CrossThink-Math.jsonl`); the file of general questions (`…-QA.jsonl`) is taken to have the same.
Rows are numbered anew in each file, so their id is of their content.
"""

from __future__ import annotations

from data_tools.adapters.adapter import Adapter
from data_tools.adapters.fields import field_of, id_of, kind_of
from data_tools.adapters.messages import messages_of
from data_tools.readers import BadRecord, Columns, Record
from data_tools.records import Document, Domain


def _convert(record: Record, domain: Domain) -> Document:
    turns = messages_of(field_of(record, "prompt"), "prompt")
    text = "\n\n".join(turn.content for turn in turns if turn.content)
    reward = field_of(record, "reward_model")
    truth = reward.get("ground_truth") if isinstance(reward, dict) else None
    if not isinstance(truth, str) or not truth:
        raise BadRecord("no answer", f"reward_model.ground_truth is {_said(truth)}, not an answer")
    return Document(id_of({}, f"{text}\n\n{truth}"), text, domain, truth)


def _said(truth: object) -> str:
    return "empty" if truth == "" else kind_of(truth)


ADAPTER = Adapter(
    name="nemotron-crossthink",
    data_set="nvidia/Nemotron-CrossThink",
    columns=Columns(required=(("prompt",), ("reward_model",))),
    yields="Document: the question, with its answer apart",
    trust="columns confirmed on the Math file; the QA file is taken to have the same",
    convert=_convert,
    folders=(("CrossThink-Math", "math"),),
)
