"""The prompts of an rl stage as rows of other engines, in the order in which the stage draws them.

| file of verl (Parquet) | holds |
|---|---|
| data_source  | name of the source |
| prompt       | [{role, content}]: the turns, for the chat template |
| ability      | the domain |
| reward_model | {style: rule, ground_truth} |
| extra_info   | {index, question}: place of the draw (held out: row), and `scoring.encode_question` |

| file of NeMo-RL (JSONL) | holds |
|---|---|
| input  | the rendered prompt, up to where the assistant begins |
| output | `scoring.encode_question` |

A training row is one draw: a prompt that is drawn in two passes stands twice.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson

from data_tools.chat_template_files import template_source
from data_tools.errors import SetupError
from data_tools.prompts import PromptEncoder, PromptRow
from megatron_ext.datasets.prompts import PromptCursor, planned_prompts
from megatron_ext.handoff.facts import StageFacts
from megatron_ext.handoff.scoring import encode_question


class HandedPrompts:
    """The prompts of a stage, drawn and held out.

    Args:
        facts: The stage.

    Attributes:
        drawn: Of each draw its source and prompt.
        held_out: Of each held-out prompt the same.
        stop_ids: Ids at which an answer ends.
        template: Text of the chat template.

    Raises:
        DataError: A file of prompts is not what was planned.
    """

    def __init__(self, facts: StageFacts) -> None:
        plan = facts.plan
        assert plan.rl is not None, "an rl stage is handed off"
        prompts = planned_prompts(plan)
        names = [source.source for source in plan.data.sources]
        drawn = PromptCursor(plan, prompts).draw(facts.prompts_to_draw)
        self.drawn: list[tuple[str, PromptRow]] = [(names[one.source], one.row) for one in drawn]
        self.held_out = [
            (name, row) for name, source in zip(names, prompts.sources, strict=True) for row in source.held_out
        ]
        self.stop_ids = prompts.stop_ids
        template = Path(plan.rl.chat_template)
        self.template, _ = template_source(
            template.parent, None if template.name == "tokenizer_config.json" else template
        )
        self._encoder = PromptEncoder(plan.data.tokenizer, self.template)

    def write_parquet(self, train: Path, validation: Path) -> None:
        """Writes verl's files.

        Args:
            train: Of the draws.
            validation: Of the held-out prompts.

        Raises:
            SetupError: pyarrow is not installed.
        """
        try:
            import pyarrow
            import pyarrow.parquet
        except ModuleNotFoundError:
            raise SetupError(
                "rl-handoff: verl reads Parquet, and pyarrow is not installed; install it with: "
                "pip install 'megatron-ext[parquet]', or write --engine nemo-rl"
            ) from None
        for path, rows in ((train, self.drawn), (validation, self.held_out)):
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(_verl_rows(rows))), path)

    def write_jsonl(self, train: Path, validation: Path, *, samples_of_held_out: int) -> None:
        """Writes NeMo-RL's files, which has one answer to each row that it validates with.

        Args:
            train: Of the draws.
            validation: Of the held-out prompts.
            samples_of_held_out: Rows of each held-out prompt.
        """
        repeated = [one for one in self.held_out for _ in range(samples_of_held_out)]
        for path, rows in ((train, self.drawn), (validation, repeated)):
            with path.open("wb") as file:
                for _, row in rows:
                    line = {"input": self._encoder.render(row.record["prompt"]), "output": encode_question(row)}
                    file.write(orjson.dumps(line) + b"\n")


def _verl_rows(rows: list[tuple[str, PromptRow]]) -> Iterator[dict[str, Any]]:
    for index, (source, row) in enumerate(rows):
        yield {
            "data_source": source,
            "prompt": [{"role": turn["role"], "content": turn["content"]} for turn in row.record["prompt"]],
            "ability": row.domain,
            "reward_model": {"style": "rule", "ground_truth": row.record["reward_model"]["ground_truth"]},
            "extra_info": {"index": index, "question": encode_question(row)},
        }
