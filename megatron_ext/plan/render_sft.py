"""What an sft stage reads: rows, fill, trained tokens, and a table of its sources."""

from __future__ import annotations

from rich.table import Table

from data_tools.quantities import format_exact
from megatron_ext.plan.render_table import Row, align_numbers, cut_rows, frame
from megatron_ext.plan.stage_plan import BatchPlan, DataPlan, SftPlan, SftSource

_TRAINS_ON = {True: "the assistant's turns", False: "all tokens: no turns", None: "not built"}


def sft_rows(sft: SftPlan, batch: BatchPlan) -> list[Row]:
    """The numbers of the whole stage."""
    options = sft.options
    drawn, is_declared = sum(source.conversations for source in sft.sources), _is_declared(sft)
    is_split = any(source.split for source in sft.sources)
    read = "unknown" if is_declared else f"{format_exact(sft.pieces)}{' pieces' if is_split else ''}"
    positions = sft.rows * batch.sequence_length
    fill = "fill unknown" if is_declared else f"{100 * (1 - sft.padding / positions):.2f} % filled"
    weighs = {"token": "each trained token", "sample": "each conversation"}
    loss = f"{weighs[options.loss]} weighs the same"
    if options.loss_switch_tokens is not None:
        other = weighs["sample" if options.loss == "token" else "token"]
        loss += f"; {other} behind {format_exact(options.loss_switch_tokens)} trained tokens"
    rows = [
        (
            "conversations",
            f"{format_exact(drawn)} drawn, {read} read, {options.draw.replace('_', ' ')}, passes {options.passes}",
        ),
        (
            "rows",
            f"{'about ' if is_declared else ''}{format_exact(sft.rows)} of {format_exact(batch.sequence_length)} "
            f"tokens, {fill}; longer conversations: {options.overlong}",
        ),
        (
            "tokens",
            f"about {format_exact(positions)} processed, padding unknown; "
            f"at most {format_exact(sft.trained_tokens)} trained"
            if is_declared
            else f"{format_exact(positions)} processed, {format_exact(sft.padding)} of them padding; "
            f"{format_exact(sft.trained_tokens)} trained",
        ),
        (
            "steps",
            f"{format_exact(batch.total_steps)} = {format_exact(batch.total_samples)} {options.batch_unit} / "
            f"{format_exact(batch.global_batch_size)} a step",
        ),
        ("microbatches", f"up to {batch.num_microbatches} a step on each rank, of 1 row"),
        ("loss", loss),
    ]
    return rows + cut_rows(batch)


def sft_table(sft: SftPlan, data: DataPlan) -> Table:
    """A row a source."""
    columns = (
        "source",
        "share",
        "drawn",
        "read",
        "of its",
        "epochs",
        "at most",
        "tokens",
        "trained",
        "left out",
        "cut",
    )
    table = frame(*columns, "trains on", "dataset")
    align_numbers(table, columns[1:])
    is_declared = _is_declared(sft)
    for source, planned in zip(sft.sources, data.sources, strict=True):
        table.add_row(
            source.source,
            f"{100 * planned.share:.4g} %",
            format_exact(source.conversations),
            "unknown" if is_declared else _read(source),
            format_exact(planned.documents),
            f"{planned.epochs:.3g}",
            f"{planned.max_epochs:g}",
            f"{'about ' if is_declared else ''}{format_exact(source.packed_tokens)}",
            *(
                ("unknown",) * 3
                if is_declared
                else (
                    format_exact(source.trained_tokens),
                    format_exact(source.dropped + source.untrained),
                    format_exact(source.truncated + source.trimmed + source.split),
                )
            ),
            _TRAINS_ON[source.has_turns],
            planned.prefix,
        )
    return table


def _is_declared(sft: SftPlan) -> bool:
    """Whether data is not built yet, so that nothing but numbers of conversations is known."""
    return any(source.has_turns is None for source in sft.sources)


def _read(source: SftSource) -> str:
    """Conversations of a source that are in rows; their pieces where some are split."""
    return f"{format_exact(source.pieces)}{' pieces' if source.split else ''}"
