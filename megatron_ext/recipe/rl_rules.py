"""Which keys an rl stage needs, which would mean nothing in it, and which contradict each other."""

from __future__ import annotations

from collections.abc import Iterator

from data_tools.schema import wrong_sum
from data_tools.strict_yaml import KeyPath
from megatron_ext.recipe.rl_schema import RlRecipe
from megatron_ext.recipe.schema import Recipe

Broken = tuple[KeyPath, str]
"""A key, relative to its section, and its value, rule and remedy."""


def broken_rl_rules(recipe: Recipe) -> Iterator[Broken]:
    """What does not go with stage rl."""
    if recipe.parent is not None:
        yield ("continue",), f"{recipe.parent}: an rl stage takes weights only, and continues no cursor or schedule"
    yield from _budget_rules(recipe)
    yield from _unread_rules(recipe)
    yield from _layout_rules(recipe)
    if recipe.rl is None:
        yield ("rl",), "required and not set; write its prompts, max_prompt_tokens and max_new_tokens"
        return
    yield from _length_rules(recipe, recipe.rl)
    yield from _prompt_rules(recipe.rl)
    yield from _loss_rules(recipe, recipe.rl)


def _budget_rules(recipe: Recipe) -> Iterator[Broken]:
    budget = recipe.budget
    if budget.examples:
        yield ("budget", "examples"), f"{budget.examples:,}: counts conversations of stage sft; remove it"
    written = [key for key in ("steps", "prompts", "epochs") if getattr(budget, key)]
    if not written:
        yield ("budget", "steps"), "required and not set; write steps, prompts or epochs, such as epochs: 1"
    if len(written) > 1:
        yield ("budget", written[1]), f"written beside {written[0]}; one of steps, prompts and epochs decides"


def _unread_rules(recipe: Recipe) -> Iterator[Broken]:
    training, schedule, data = recipe.training, recipe.schedule, recipe.data
    for key in ("blend", "phases"):
        if getattr(data, key) is not None:
            yield (
                ("data", key),
                "an rl stage reads rl.prompts; remove it (or set it to null where a file above sets it)",
            )
    if recipe.sft is not None:
        yield ("sft",), "read with stage sft only, and stage is rl; remove it"
    if data.packing != "none":
        yield ("data", "packing"), f"{data.packing}: stage rl packs completions whatever this says; remove it"
    if data.document_isolation != "full":
        yield (
            ("data", "document_isolation"),
            f"{data.document_isolation}: completions that share a row must not meet in attention, convolution or "
            "state; stage rl needs full",
        )
    if training.micro_batch_size != 1:
        yield ("training", "micro_batch_size"), f"{training.micro_batch_size}: a packed row is a microbatch; set 1"
    if training.ramp_tokens:
        yield ("training", "ramp_tokens"), f"{training.ramp_tokens:,}: stage rl has no batch ramp; set 0"
    if training.validation_tokens:
        yield (
            ("training", "validation_tokens"),
            f"{training.validation_tokens:,}: stage rl counts rl.prompts[].validation_prompts; set 0",
        )
    if schedule.style == "wsd":
        yield ("schedule", "style"), "wsd needs the tokens of its decay; in stage rl write constant, linear or cosine"
    for key in ("warmup_tokens", "horizon_tokens"):
        if value := getattr(schedule, key):
            remedy = "write warmup_ratio" if key == "warmup_tokens" else "remove it"
            yield ("schedule", key), f"{value:,}: the learning rate of stage rl follows its steps; {remedy}"


def _layout_rules(recipe: Recipe) -> Iterator[Broken]:
    parallel = recipe.parallel
    for key in ("pipeline_model_parallel_size", "context_parallel_size"):
        if (size := getattr(parallel, key)) > 1:
            yield (
                ("parallel", key),
                f"{size}: an rl stage samples with the model that it trains, and no rank may hold a part of the layers "
                "or of a sequence; set 1 and raise tensor_model_parallel_size",
            )
    if parallel.overlap_param_gather:
        yield (
            ("parallel", "overlap_param_gather"),
            "true, but an rl stage samples between two steps, before weights would be gathered; set it to false",
        )


def _length_rules(recipe: Recipe, rl: RlRecipe) -> Iterator[Broken]:
    length, asked = recipe.training.sequence_length, rl.max_prompt_tokens + rl.max_new_tokens
    if asked > length:
        yield (
            ("rl", "max_new_tokens"),
            f"max_prompt_tokens {rl.max_prompt_tokens:,} + max_new_tokens {rl.max_new_tokens:,} = {asked:,} do not fit "
            f"in training.sequence_length {length:,}; lower them, or raise that",
        )


def _prompt_rules(rl: RlRecipe) -> Iterator[Broken]:
    shares = [source.share for source in rl.prompts]
    written = [share for share in shares if share is not None]
    if written and len(written) < len(shares):
        yield ("rl", "prompts", shares.index(None), "share"), "not set, and others are; write all shares or none"
    elif written and (message := wrong_sum(written)):
        yield ("rl", "prompts"), message
    names = [source.source for source in rl.prompts]
    for index, source in enumerate(rl.prompts):
        if source.share is not None and source.prompts is not None:
            yield ("rl", "prompts", index, "prompts"), f"{source.prompts:,}: written beside share; keep one of them"
        for end in ("_low", "_high"):  # a validation gives SOURCE, SOURCE_low and SOURCE_high
            if source.source.removesuffix(end) in set(names) - {source.source}:
                yield (
                    ("rl", "prompts", index, "source"),
                    f"{source.source}: is the name of an end of {source.source.removesuffix(end)}'s interval; "
                    "choose another",
                )
        if names.index(source.source) != index:
            yield ("rl", "prompts", index, "source"), f"{source.source} names another source already; choose another"


def _loss_rules(recipe: Recipe, rl: RlRecipe) -> Iterator[Broken]:
    prompts = recipe.training.global_batch_size
    if rl.mini_batch_prompts is not None and prompts % rl.mini_batch_prompts:
        yield (
            ("rl", "mini_batch_prompts"),
            f"{rl.mini_batch_prompts:,} does not divide training.global_batch_size {prompts:,}, the prompts of a step",
        )
    if rl.kl.weighted and not rl.kl.coefficient:
        yield ("rl", "kl", "weighted"), "true, and kl.coefficient is 0: there is nothing to weigh; remove it"
    if rl.engine == "vllm" and recipe.training.cuda_graphs:
        yield (
            ("training", "cuda_graphs"),
            "true: in stage rl these are graphs of sampling in-process, and vLLM makes its own; set it to false",
        )
    if rl.engine == "vllm" and rl.temperature != 1 and (rl.top_k or rl.top_p < 1):
        key, value = ("top_k", rl.top_k) if rl.top_k else ("top_p", rl.top_p)
        yield (
            ("rl", key),
            f"{value:g} with engine vllm and temperature {rl.temperature:g}: a server gives log-probabilities before "
            "both or behind both, and the loss needs those between them; set temperature 1, or keep all tokens",
        )
    if rl.top_k > recipe.model.vocab_size:
        yield ("rl", "top_k"), f"{rl.top_k:,} of {recipe.model.vocab_size:,} tokens: keeps all; write 0"
    if rl.kl.estimator == "k1" and rl.kl.coefficient and not rl.kl.weighted:
        yield ("rl", "kl", "estimator"), "k1: its gradient is zero in expectation unless kl.weighted is true; set that"
    if (rl.overlong == "soft-penalty") != bool(rl.overlong_penalty_tokens):
        yield (
            ("rl", "overlong_penalty_tokens"),
            f"{rl.overlong_penalty_tokens:,}, and overlong is {rl.overlong}; the two belong together",
        )
    if rl.overlong_penalty_tokens > rl.max_new_tokens:
        yield (
            ("rl", "overlong_penalty_tokens"),
            f"{rl.overlong_penalty_tokens:,} is above max_new_tokens {rl.max_new_tokens:,}; lower it",
        )
    if not rl.rewards.accuracy + rl.rewards.format + rl.rewards.accuracy_and_format:
        yield ("rl", "rewards"), "every weight is 0, so every reward is; write one above 0"
