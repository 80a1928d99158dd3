"""What is asked of an evaluation beside its tasks: options, from `--set KEY=VALUE`, and by task from a suite.

Imports no torch: a wrong option is refused in about a second.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from data_tools.errors import UsageError
from data_tools.strict_yaml import parse_scalar


class Options(BaseModel):
    """How tasks are run; kinds read those that concern them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    seed: int = Field(1234, ge=0, description="Of samples, bootstraps, and choices of few-shot examples.")
    limit: int | None = Field(None, ge=1, description="Items of each task at most, the first ones; null: all.")

    samples: int = Field(1, ge=1, description="Answers sampled to each item (verifiable).")
    temperature: float = Field(0.0, ge=0, description="0 takes the most likely token; 1 samples from the model.")
    top_k: int = Field(0, ge=0, description="Sample among the k most likely tokens; 0 keeps all.")
    top_p: float = Field(1.0, gt=0, le=1, description="Sample among the most likely tokens that hold this much.")
    max_new_tokens: int = Field(512, ge=1, description="Tokens of an answer at most.")
    slots: int = Field(32, ge=1, description="Answers that a data-parallel rank samples at once.")
    scorer: Literal["exact", "number", "choice", "polynomial", "math-verify", "reasoning-gym"] = Field(
        "math-verify", description="Of prompts that name none (verifiable)."
    )
    unusable: Literal["refuse", "leave-out"] = Field(
        "refuse", description="What becomes of prompts without an answer that can be judged (verifiable)."
    )
    scoring_timeout_s: float = Field(10.0, gt=0, description="Wall seconds that scoring one answer may take.")
    chat_template: str | None = Field(
        None,
        description="File of the chat template, or plain: question, empty line, answer, for base models; "
        "null: the one that the checkpoint was taught.",
    )

    rows: int | None = Field(None, ge=1, description="Held-out rows of each source at most; null: all.")
    batch_tokens: int = Field(8192, ge=1, description="Tokens of one pass through the model (held-out, lm-eval).")

    include_path: str | None = Field(None, description="Folder of task files of one's own (lm-eval).")
    num_fewshot: int | None = Field(None, ge=0, description="Examples before a question; null: the task's (lm-eval).")
    chat: bool = Field(False, description="Ask in the checkpoint's chat template (lm-eval).")
    max_length: int | None = Field(
        None, ge=2, description="Tokens of a text at most; null: the length that was trained (lm-eval)."
    )

    contaminated: Literal["refuse", "mark"] = Field(
        "refuse", description="What becomes of a benchmark that was trained on."
    )
    overlap: tuple[str, ...] = Field(
        (), description="Reports of data-tools overlap, beside those that lie by a benchmark."
    )
    contamination_share: float = Field(
        0.5, gt=0, le=1, description="Share of an item's n-grams in a source from which on it counts as overlapping."
    )
    contamination_ngram: int = Field(
        13, ge=1, description="Words of an n-gram at most in an overlap report that counts."
    )
    contamination_items: float = Field(
        0.0, ge=0, le=1, description="Ratio of a benchmark's items that may overlap before it is refused."
    )

    @model_validator(mode="after")
    def _samples_differ(self) -> Self:
        if self.samples > 1 and self.temperature == 0:
            raise ValueError(
                f"samples: {self.samples}: at temperature 0 all answers to an item are the same; set temperature=0.7, "
                "or samples=1"
            )
        return self


def read_options(overrides: Sequence[str], *, base: Mapping[str, Any] | None = None) -> Options:
    """Options from `KEY=VALUE` texts.

    Args:
        overrides: As on the command line.
        base: What a suite sets; overrides come after it.

    Raises:
        UsageError: A key is unknown or a value outside its range; names both.
    """
    values = dict(base or {})
    for override in overrides:
        key, separator, text = override.partition("=")
        if not separator:
            raise UsageError(f"--set {override}: write --set key=value, such as --set samples=4.")
        values[key.strip()] = parse_scalar(text)
    return options_of(values, said="--set")


def options_of(values: Mapping[str, Any], *, said: str) -> Options:
    """Options from values.

    Args:
        values: By key.
        said: Where they stand, for errors.

    Raises:
        UsageError: A key is unknown or a value outside its range.
    """
    try:
        return Options(**values)
    except ValidationError as error:
        lines = [_problem(one) for one in error.errors()]
        raise UsageError("\n".join(f"{said} {line}." for line in lines)) from None


def _problem(error: Any) -> str:
    key = ".".join(map(str, error["loc"]))
    if error["type"] == "extra_forbidden":
        near = difflib.get_close_matches(key, Options.model_fields, n=1)
        return f"{key}: no such option; {f'did you mean {near[0]}' if near else ', '.join(Options.model_fields)}"
    message = error["msg"].removeprefix("Value error, ")
    return f"{key}={error['input']!r}: {message}" if key else message
