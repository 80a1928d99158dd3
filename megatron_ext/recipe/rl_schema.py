"""What an rl stage adds to a recipe: its prompts, how they are sampled, rewarded and learned from."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from data_tools.schema import NAME, Count, Number, Section

Refused = Literal["error", "drop"]
"""What becomes of a prompt that cannot be used."""


class PromptSource(Section):
    """Prompts with verifiable answers, in the schema of Nemotron-CrossThink."""

    source: str = Field(pattern=NAME, description="Name of the source, for people: letters, digits, '_' and '-'.")
    file: str = Field(description="JSONL of prompts, relative to the site's data_root.")
    validation_file: str | None = Field(
        default=None,
        description="The same of held-out prompts; null holds out validation_prompts of `file`, by their content.",
    )
    domain: Literal["code", "general", "math", "science"] = Field(
        default="general", description="What prompts are about that do not say it in meta_data.domain."
    )
    families: tuple[str, ...] = Field(
        default=(), description="Only prompts of these meta_data.family, in training and held out; none written: all."
    )
    scorer: Literal["exact", "number", "choice", "polynomial", "math-verify", "reasoning-gym"] = Field(
        default="exact",
        description="Scorer of prompts that name none in meta_data.scorer and whose answer is no label of a choice.",
    )
    share: Number | None = Field(
        default=None,
        gt=0,
        le=1,
        description="Share of the prompt set, which is as large as its sources allow; written for all sources or none.",
    )
    prompts: Count | None = Field(
        default=None, gt=0, description="So many of its prompts, drawn by the seed; null: all, or as share says."
    )
    validation_prompts: Count = Field(
        default=128, gt=0, description="Held-out prompts at most, drawn by their content; not hashed with a file."
    )
    declared_prompts: Count | None = Field(
        default=None, gt=0, description="Prompts that the file is said to have; plans use it until it is there."
    )
    build: str = Field(default="", description="Command that makes the file, printed when it is missing.")
    available_at: str = Field(default="", description="Where it is had.")
    revision: str = Field(default="", description="Revision that is meant.")
    licence: str = Field(default="", description="Terms.")


class KlRecipe(Section):
    """How far the policy may move from the weights that the stage began with."""

    estimator: Literal["k1", "k2", "k3"] = Field(
        default="k3", description="Estimator of KL(policy || reference) from the sampled tokens, in the loss."
    )
    coefficient: Number = Field(
        default=0.001, ge=0, description="Weight of the KL in the loss; 0 keeps no reference model."
    )
    weighted: bool = Field(
        default=False, description="Multiply it by the policy ratio, which makes its gradient unbiased; k1 needs it."
    )


class RewardRecipe(Section):
    """What a completion is worth: the weighted sum of its parts, each 0 or 1."""

    accuracy: Number = Field(default=0, ge=0, description="Weight of a right answer in a box, whatever else is there.")
    format: Number = Field(default=0, ge=0, description="Weight of <think>...</think> and one box behind it.")
    accuracy_and_format: Number = Field(default=1, ge=0, description="Weight of both at once, as in CrossThink.")
    timeout_s: Number = Field(
        default=5, gt=0, description="Seconds after which a scorer is stopped and gives 0; hashed."
    )
    on_error: Literal["stop", "count"] = Field(
        default="stop",
        description="A scorer that raises ends the stage, or its completions get 0 and are counted; not hashed.",
    )


class RlRecipe(Section):
    """How prompts are sampled, rewarded, and learned from.

    Source of the defaults: arXiv 2510.03264 section 3.1 (8 samples, temperature 1, top-p 1, KL 0.001); clip_low and
    the normalisation of GRPO: arXiv 2402.03300; clip_high: arXiv 2503.14476 uses 0.28.
    """

    prompts: tuple[PromptSource, ...] = Field(min_length=1, description="Where the prompts come from.")
    max_epochs: Number = Field(
        default=1, gt=0, description="Passes over the prompt set that are permitted; not hashed."
    )
    overlong_prompts: Refused = Field(
        default="error", description="What becomes of prompts with more than max_prompt_tokens."
    )
    unusable_prompts: Refused = Field(
        default="error",
        description="What becomes of prompts without an answer that a scorer can read, of damaged lines, and of "
        "prompts that the file has already given.",
    )
    samples_per_prompt: Count = Field(default=8, gt=1, description="Completions of one prompt: a group.")
    mini_batch_prompts: Count | None = Field(
        default=None,
        gt=0,
        description="Prompts of one update; divides training.global_batch_size; null: all, so one update a step.",
    )
    epochs: Count = Field(default=1, gt=0, description="Passes over the completions of a step.")
    max_prompt_tokens: Count = Field(gt=0, description="Tokens of a rendered prompt at most.")
    max_new_tokens: Count = Field(gt=0, description="Tokens of a completion at most.")
    temperature: Number = Field(default=1.0, gt=0, description="Of sampling, and of all log-probabilities.")
    top_p: Number = Field(default=1.0, gt=0, le=1, description="Sample among the likeliest tokens that hold this sum.")
    top_k: Count = Field(default=0, ge=0, description="Sample among so many likeliest tokens; 0: all.")
    engine: Literal["in-process", "vllm"] = Field(
        default="in-process",
        description="What samples: the training model itself, or vLLM servers of this place, which take over each "
        "step's weights; their tokens cannot be sampled again, so vllm is hashed.",
    )
    slots: Count = Field(default=32, gt=0, description="Completions that a rank samples at once, at most; not hashed.")
    advantage: Literal["mean-std", "mean", "leave-one-out"] = Field(
        default="mean-std",
        description="Of a completion: its reward less the mean of its group, divided by the group's deviation or not, "
        "or less the mean of the others.",
    )
    clip_low: Number = Field(default=0.2, gt=0, lt=1, description="The ratio is clipped below at 1 - clip_low.")
    clip_high: Number = Field(default=0.2, gt=0, description="The ratio is clipped above at 1 + clip_high.")
    kl: KlRecipe = KlRecipe()
    aggregation: Literal["token", "sequence", "group-sum"] = Field(
        default="sequence",
        description="What weighs the same in an update: every sampled token, every completion (GRPO as published), or "
        "every token, divided by max_new_tokens (group-sum).",
    )
    importance_cap: Number | None = Field(
        default=None,
        ge=1,
        description="Truncated importance weights of what the sampler and the trainer see differently; null: none.",
    )
    overlong: Literal["keep", "mask", "soft-penalty"] = Field(
        default="keep",
        description="Completions cut at max_new_tokens: learned from as any other, left out of the loss and counted, "
        "or worth less the more of the last overlong_penalty_tokens they fill.",
    )
    overlong_penalty_tokens: Count = Field(
        default=0, ge=0, description="soft-penalty only: tokens over which it grows."
    )
    dynamic_sampling: bool = Field(
        default=False, description="Sample more prompts in the place of groups whose rewards are all equal."
    )
    mismatch_threshold: Number = Field(
        default=0.1,
        gt=0,
        description="Mean of |log p sampled - log p trained| in nats at which the stage stops before it learns; not "
        "hashed.",
    )
    rewards: RewardRecipe = RewardRecipe()
    validation_samples: Count = Field(
        default=1, gt=0, description="Completions of each held-out prompt at a validation; not hashed."
    )
