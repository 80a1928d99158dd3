"""What an rl stage samples: prompts, completions, tokens at most, and a table of its sources."""

from __future__ import annotations

from rich.table import Table

from data_tools.quantities import format_exact
from megatron_ext.plan.render_table import Row, align_numbers, cut_rows, frame
from megatron_ext.plan.rl_batch import MOST_REFILLS
from megatron_ext.plan.rollout import slots_in_use
from megatron_ext.plan.stage_plan import BatchPlan, DataPlan, RlPlan
from megatron_ext.plan.vllm import SERVERS, UNTRIED


def rl_rows(rl: RlPlan, batch: BatchPlan, data: DataPlan) -> list[Row]:
    """The numbers of the whole stage."""
    options, size = rl.options, sum(source.prompts for source in rl.sources)
    samples = batch.total_samples * options.samples_per_prompt
    mini = options.mini_batch_prompts or batch.global_batch_size
    updates = batch.global_batch_size // mini * options.epochs
    most = f"at most {format_exact(samples * options.max_new_tokens)} tokens"
    if rl.max_sampled_tokens:
        most += f"; the stage ends behind {format_exact(rl.max_sampled_tokens)}"
    parts = {
        "accuracy": options.rewards.accuracy,
        "format": options.rewards.format,
        "accuracy and format": options.rewards.accuracy_and_format,
    }
    top = [f"top-k {options.top_k}"] if options.top_k else []
    kl = f"KL {options.kl.coefficient:g} ({options.kl.estimator})" if rl.has_reference else "no KL, no reference"
    slots = slots_in_use(options, batch)
    of_asked = f" of rl.slots {format_exact(options.slots)}" if slots < options.slots else ""
    rows = [
        (
            "prompts",
            f"{format_exact(batch.total_samples)} drawn from a set of {format_exact(size)}: "
            f"{batch.total_samples / size:.3g} passes, {options.max_epochs:g} permitted",
        ),
        (
            "samples",
            f"{format_exact(samples)} = {options.samples_per_prompt} of each prompt, of at most "
            f"{format_exact(options.max_new_tokens)} tokens",
        ),
        ("sampled", most),
        (
            "sampling",
            ", ".join([f"temperature {options.temperature:g}", f"top-p {options.top_p:g}", *top])
            + f"; {format_exact(slots)}{of_asked} at once on a rank",
        ),
        *_engine_row(options.engine),
        (
            "steps",
            f"{format_exact(batch.total_steps)} of {format_exact(batch.global_batch_size)} prompts, "
            f"{updates} update{'s' if updates > 1 else ''} each, of {format_exact(mini)} prompts",
        ),
        *_dynamic_row(options.dynamic_sampling),
        ("microbatches", f"up to {batch.num_microbatches} an update on each rank, of 1 row"),
        ("rewards", ", ".join(f"{weight:g} x {name}" for name, weight in parts.items() if weight)),
        (
            "loss",
            f"advantage {options.advantage}, clip {options.clip_low:g} to {options.clip_high:g}, {kl}, "
            f"averaged by {options.aggregation}",
        ),
    ]
    return rows + cut_rows(batch)


def _engine_row(engine: str) -> list[Row]:
    """What samples, where it is not the training model itself."""
    if engine == "in-process":
        return []
    said = f"{engine}: servers that {SERVERS} names take over each step's weights; {UNTRIED}"
    return [("engine", f"{said}, and its tokens cannot be sampled again")]


def _dynamic_row(is_on: bool) -> list[Row]:
    """What may be sampled beside what the steps learn from."""
    if not is_on:
        return []
    return [("dynamic sampling", f"groups whose rewards are equal are replaced, up to {MOST_REFILLS} times a step")]


def rl_table(rl: RlPlan, data: DataPlan) -> Table:
    """A row a source."""
    columns = ("source", "prompts", "of", "held out", "too long", "unusable", "tokens", "longest", "passes", "at most")
    table = frame(*columns, "domains", "file")
    align_numbers(table, columns[1:])
    for source, planned in zip(rl.sources, data.sources, strict=True):
        known = not planned.is_declared
        table.add_row(
            source.source,
            format_exact(source.prompts),
            format_exact(source.usable) if known else "declared",
            format_exact(source.held_out),
            format_exact(source.overlong) if known else "",
            format_exact(source.unusable) if known else "",
            format_exact(source.prompt_tokens) if known else "",
            format_exact(source.longest_prompt) if known else "",
            f"{planned.epochs:.3g}",
            f"{planned.max_epochs:g}",
            ", ".join(f"{domain} {format_exact(count)}" for domain, count in source.domains) or planned.domain,
            planned.prefix,
        )
    return table
