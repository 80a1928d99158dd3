"""What an sft stage reads: rows, fill, trained tokens, and a table of its sources."""

from __future__ import annotations

from rich.table import Table

from data_tools.quantities import format_exact
from megatron_ext.plan.render_table import Row, align_numbers, cut_rows, frame
from megatron_ext.plan.stage_plan import BatchPlan, DataPlan, SftPlan

_TRAINS_ON = {True: "the assistant's turns", False: "all tokens: no turns", None: "not built"}


def sft_rows(sft: SftPlan, batch: BatchPlan) -> list[Row]:
    """The numbers of the whole stage."""
    options = sft.options
    read = sum(source.conversations for source in sft.sources)
    positions = sft.rows * batch.sequence_length
    weighs = {"token": "each trained token", "sample": "each conversation"}
    loss = f"{weighs[options.loss]} weighs the same"
    if options.loss_switch_tokens is not None:
        other = weighs["sample" if options.loss == "token" else "token"]
        loss += f"; {other} behind {format_exact(options.loss_switch_tokens)} trained tokens"
    rows = [
        (
            "conversations",
            f"{format_exact(read)} read, drawn {options.draw.replace('_', ' ')}, passes {options.passes}",
        ),
        (
            "rows",
            f"{format_exact(sft.rows)} of {format_exact(batch.sequence_length)} tokens, "
            f"{100 * (1 - sft.padding / positions):.2f} % filled; longer conversations: {options.overlong}",
        ),
        (
            "tokens",
            f"{format_exact(positions)} processed, {format_exact(sft.padding)} of them padding; "
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
        "conversations",
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
    for source, planned in zip(sft.sources, data.sources, strict=True):
        table.add_row(
            source.source,
            f"{100 * planned.share:.4g} %",
            format_exact(source.conversations),
            format_exact(planned.documents),
            f"{planned.epochs:.3g}",
            f"{planned.max_epochs:g}",
            format_exact(source.packed_tokens),
            format_exact(source.trained_tokens),
            format_exact(source.dropped + source.untrained),
            format_exact(source.truncated + source.trimmed + source.split),
            _TRAINS_ON[source.has_turns],
            planned.prefix,
        )
    return table
