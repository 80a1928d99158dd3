"""What a stage reads, as tables: by source, by phase, and in the chain of stages that it ends."""

from __future__ import annotations

from rich.table import Table

from data_tools.quantities import format_count, format_exact
from megatron_ext.plan.packing import packing_table
from megatron_ext.plan.render_rl import rl_table
from megatron_ext.plan.render_sft import sft_table
from megatron_ext.plan.render_table import Row, align_numbers, frame
from megatron_ext.plan.stage_plan import PhasePlan, SourcePlan, StagePlan


def chain_rows(plan: StagePlan) -> list[Row]:
    """The stages before this one, and where the learning rate's horizon lies."""
    batch, horizon = plan.batch, plan.schedule.horizon_samples * plan.schedule.sample_tokens
    label = "continues" if plan.parent is not None else "init_from"
    rows = [  # the one that this one begins from, then those behind it
        (
            label if index == 0 else "behind it" if index == 1 else "",
            f"{stage.stage_id}  {stage.recipe}: {format_exact(stage.total_steps)} steps, "
            f"{format_exact(stage.total_tokens)} tokens{'; its weights only' if stage.gives == 'weights' else ''}",
        )
        for index, stage in enumerate(reversed(plan.behind.chain) if plan.behind is not None else ())
    ]
    if plan.awaits_weights:
        rows.append(("init_from", "unresolved: planned without it; run needs --set init_from=STAGE"))
    if plan.parent is not None:
        rows.append(("chain", f"{format_exact(batch.end_tokens)} tokens with this stage"))
    if plan.schedule.horizon_tokens is not None and batch.end_tokens != horizon:
        left = horizon - batch.end_tokens
        said = (
            f"{format_exact(left)} are left to stages that continue this one"
            if left > 0
            else f"the chain ends {format_exact(-left)} tokens behind it"
        )
        rows.append(
            (
                "horizon",
                f"{format_exact(horizon)} tokens; {said}",
            )
        )
    return rows


def domain_rows(plan: StagePlan) -> list[Row]:
    """The shares of each source whose domains are not all the one that its file names, and how they are known."""
    rows: list[Row] = []
    for source in plan.data.sources:
        if source.domain_shares:
            shares = ", ".join(f"{domain} {100 * share:.4g} %" for domain, share in source.domain_shares)
            rows.append(("" if rows else "domains", f"{source.source}: {shares} of its tokens, {source.domains_known}"))
    return rows


def data_tables(plan: StagePlan) -> list[tuple[str, Table]]:
    """A title and a table for each phase where there are several, and for the whole stage."""
    if plan.rl is not None:
        return [("", rl_table(plan.rl, plan.data))]
    if plan.sft is not None:
        return [("", sft_table(plan.sft, plan.data))]
    phases = plan.data.all_phases()
    packed = _packed(plan)
    if len(phases) == 1:
        return [("", _sources(plan)), *packed]
    tables = []
    for number, phase in enumerate(phases, 1):
        tokens = format_exact(phase.samples * plan.batch.sequence_length)
        title = f"phase {number} of {len(phases)}: {tokens} tokens, {format_exact(phase.samples)} samples"
        tables.append((title, _phase(plan, phase)))
    return [*tables, ("all phases", _sources(plan)), *packed]


def _packed(plan: StagePlan) -> list[tuple[str, Table]]:
    """The rows of the sources that are built, where documents are packed."""
    rows = [
        (source.source, source.documents, source.packed)
        for source in plan.data.sources
        if source.packed is not None and not source.is_declared
    ]
    length = plan.batch.sequence_length
    return [("", packing_table(rows, sequence_length=length, long_documents=plan.data.long_documents))] if rows else []


def _sources(plan: StagePlan) -> Table:
    so_far = ("in chain",) if plan.behind is not None else ()
    columns = ("source", "share", "samples", "tokens", "of its", "documents", "epochs", *so_far, "at most", "dataset")
    table = frame(*columns)
    align_numbers(table, columns[1:-1])
    length = plan.batch.sequence_length
    anew = {source.data_id: source.passes_before_anew for source in plan.behind.sources} if plan.behind else {}
    for source in plan.data.sources:
        in_chain = anew.get(source.data_id, 0.0) + source.tokens_before / source.pass_tokens(length) + source.epochs
        table.add_row(
            source.source,
            f"{100 * source.share:.4g} %",
            format_exact(source.samples),
            format_exact(source.samples * plan.batch.sequence_length),
            f"{format_exact(source.tokens)}{_said_of_size(source)}",
            "not built" if source.is_declared else format_count(source.documents),
            f"{source.epochs:.3g}",
            *([f"{in_chain:.3g}"] if so_far else []),
            f"{source.max_epochs:g}",
            source.prefix,
        )
    return table


def _said_of_size(source: SourcePlan) -> str:
    """What the tokens of a source are: of packed ones the rows too, of which passes are counted."""
    if source.is_declared:
        return " declared"
    return f" in {format_exact(source.packed.rows)} rows" if source.packed is not None else ""


def _phase(plan: StagePlan, phase: PhasePlan) -> Table:
    columns = ("source", "share", "samples", "tokens", "epochs", "so far", "at most", "cursor")
    table = frame(*columns)
    align_numbers(table, columns[1:-1])
    length = plan.batch.sequence_length
    has_tokens = {source.source: source.pass_tokens(length) for source in plan.data.sources}
    for source in phase.sources:
        tokens = has_tokens[source.source]
        table.add_row(
            source.source,
            f"{100 * source.share:.4g} %",
            format_exact(source.samples),
            format_exact(source.samples * length),
            f"{source.samples * length / tokens:.3g}",
            f"{(source.tokens_before + source.samples * length) / tokens:.3g}",
            f"{source.max_epochs:g}",
            source.cursor,
        )
    return table
