"""Where the prompts of an rl stage are drawn: shuffled passes over a prompt set, no pass without permission.

Pass p has the set in a random order that hangs on the seed, the set's content and p. Steps take prompts off these
orders one after the other, over the end of a pass too, so every prompt comes once before any comes again. A drawn
prompt's place, counted over all passes, seeds its samples: whoever samples it, on whatever rank, samples the same.
"""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_tools.chat_template_files import template_source
from data_tools.errors import DataError
from data_tools.permutation import keyed_permutation
from data_tools.prompts import PromptRow
from megatron_ext.plan.rl_batch import permitted_prompts
from megatron_ext.plan.rl_prompts import PromptSet, read_prompt_set
from megatron_ext.plan.stage_plan import StagePlan

_STATE_VERSION = 1


@dataclass(frozen=True)
class DrawnPrompt:
    """A prompt, and what its samples hang on.

    Attributes:
        row: What is asked, and what is right.
        source: Place of its source in `plan.data.sources`.
        place: Of this draw, counted over all passes.
        seed: Of its samples.
    """

    row: PromptRow
    source: int
    place: int
    seed: int


def planned_prompts(plan: StagePlan) -> PromptSet:
    """The prompts that a plan was made of.

    Raises:
        DataError: A file was changed since.
    """
    assert plan.rl is not None, "prompts are read by an rl stage"
    file = Path(plan.rl.chat_template)
    template, _ = template_source(file.parent, None if file.name == "tokenizer_config.json" else file)
    found = read_prompt_set(
        plan.rl.options, data_root=plan.rl.data_root, tokenizer=plan.data.tokenizer, template=template, seed=plan.seed
    )
    for source, got in zip(plan.data.sources, found.sources, strict=True):
        if (got.data_id, got.validation_data_id) != (source.data_id, source.validation_data_id):
            raise DataError(
                f"{source.prefix}: holds other prompts than were planned; restore it, or start a new stage with it"
            )
    return found


class PromptCursor:
    """Draws prompts; the number of those drawn is the whole state."""

    def __init__(self, plan: StagePlan, prompts: PromptSet) -> None:
        """Stands before the first prompt.

        Args:
            plan: The stage, of kind rl.
            prompts: Of the plan.
        """
        assert plan.rl is not None, "prompts are drawn by an rl stage"
        self._rows = [(row, index) for index, source in enumerate(prompts.sources) for row in source.rows]
        self._seed = plan.seed
        self._content = " ".join(source.data_id for source in prompts.sources)
        self._max_drawn = permitted_prompts(plan.rl.options.max_epochs, len(self._rows))
        self.drawn = 0

    @property
    def left(self) -> int:
        """Prompts that may still be drawn."""
        return self._max_drawn - self.drawn

    def draw(self, count: int) -> list[DrawnPrompt]:
        """The next prompts; the cursor moves behind them.

        Raises:
            DataError: The permitted passes do not hold so many more.
        """
        if count > self.left:
            raise DataError(
                f"rl.max_epochs: {self.drawn:,} of {self._max_drawn:,} permitted prompts are drawn and {count:,} more "
                "were asked for; nothing is repeated unasked. Raise rl.max_epochs, or lower the budget."
            )
        size = len(self._rows)
        found = []
        for place in range(self.drawn, self.drawn + count):
            row, source = self._rows[int(self._order(place // size)[place % size])]
            found.append(DrawnPrompt(row, source, place, sample_seed(self._seed, place)))
        self.drawn += count
        return found

    @functools.lru_cache(maxsize=2)  # noqa: B019 - one cursor lives as long as its run
    def _order(self, number: int) -> np.ndarray:
        return keyed_permutation(len(self._rows), key=f"prompts of pass {number} {self._seed} {self._content}")

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to go on behind the last prompt."""
        return {"version": _STATE_VERSION, "drawn": self.drawn, "size": len(self._rows)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on where `state_dict` was taken.

        Raises:
            DataError: If the state belongs to another prompt set.
        """
        for name, mine in (("version", _STATE_VERSION), ("size", len(self._rows))):
            if state.get(name) != mine:
                raise DataError(
                    f"prompt position: {name}: the checkpoint has {state.get(name)!r}, this run {mine!r}; its place "
                    "cannot be taken up. Resume with the recipe and prompts of the checkpoint."
                )
        self.drawn = state["drawn"]


def sample_seed(seed: int, place: int | str) -> int:
    """The seed of the samples of a draw.

    >>> sample_seed(1, 0) == sample_seed(1, 1)
    False
    """
    return int.from_bytes(hashlib.sha256(f"samples {seed} {place}".encode()).digest()[:8]) >> 1
