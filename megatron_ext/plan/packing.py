"""The rows of each source of a stage that packs its documents: counted, stored, and said."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from rich.table import Table

from data_tools.dataset import StoredDataset
from data_tools.quantities import format_exact
from data_tools.strict_yaml import KeyPath
from megatron_ext.plan.packed_rows import NO_ROWS, count_rows, policy_for, sum_counts
from megatron_ext.plan.render_table import frame
from megatron_ext.plan.stage_plan import PackedPlan
from megatron_ext.recipe.load import LoadedRecipe
from megatron_ext.recipe.problems import Problems

_CUT = {"truncate": "truncated", "trim-thinking": "trimmed"}


def plan_rows(
    loaded: LoadedRecipe,
    index: int,
    dataset: StoredDataset | None,
    problems: Problems,
    *,
    store: Path,
    is_kept: bool,
) -> PackedPlan:
    """The rows of one pass over a source.

    Args:
        loaded: What was asked.
        index: Place of the source in the recipe.
        dataset: Of it; None where its size is declared: then rows without padding are supposed.
        problems: Takes a source of which no document is left for a row.
        store: Run root, whose `prepared/` keeps the counts.
        is_kept: Whether counts that are not there are put into it.

    Raises:
        DataError: An index is not the one of its manifest, or the store is damaged and nothing is to be kept.
    """
    data, length = loaded.recipe.data, loaded.recipe.training.sequence_length
    if dataset is None:
        tokens = loaded.sources[index].declared_tokens or 0
        nothing = NO_ROWS._replace(rows=max(1, tokens // length), tokens=tokens)
        return PackedPlan(long_documents=data.long_documents, **nothing._asdict())
    policy = policy_for(dataset, data.long_documents)
    blocks = count_rows(dataset, sequence_length=length, long_documents=policy, store=store, is_kept=is_kept)
    counts = sum_counts(blocks)
    if counts.rows == 0:
        key: KeyPath = ("sources", index, "prefix")
        message = (
            f"{dataset.prefix}: none of its {dataset.documents:,} documents is left for rows of {length:,} tokens "
            f"with data.long_documents {data.long_documents}; write split there, or raise training.sequence_length"
        )
        problems.add(loaded.origin(key), ("prefix",), message)
    return PackedPlan(long_documents=policy, **counts._asdict())


def fill_percent(packed: PackedPlan, sequence_length: int) -> float:
    """Positions of the rows that hold a token."""
    return 100 * packed.tokens / (packed.rows * sequence_length)


def packing_table(
    sources: Iterable[tuple[str, int, PackedPlan]], *, sequence_length: int, long_documents: str
) -> Table:
    """What one pass over each source holds.

    Args:
        sources: Name, documents and rows of each that is built.
        sequence_length: Positions of a row.
        long_documents: What becomes of longer documents.
    """
    cut = _CUT.get(long_documents)
    columns = ["source", "documents", "rows", "fill", "split"]
    columns += [cut, "tokens"] if cut else []
    columns += ["dropped", "tokens"]
    columns += ["long documents"] if long_documents == "trim-thinking" else []
    table = frame(*columns, title=f"packed into rows of {sequence_length:,}, one pass")
    for column in table.columns[1 : columns.index("dropped") + 2]:
        column.justify = "right"
    for name, documents, packed in sources:
        counts = [packed.split, *([packed.cut, packed.cut_tokens] if cut else [])]
        counts += [packed.dropped, packed.dropped_tokens]
        fill = f"{fill_percent(packed, sequence_length):.2f} %"
        policy = [_said_policy(packed)] if long_documents == "trim-thinking" else []
        rows = [format_exact(documents), format_exact(packed.rows), fill]
        table.add_row(name, *rows, *map(format_exact, counts), *policy)
    return table


def _said_policy(packed: PackedPlan) -> str:
    is_trimmed = packed.long_documents == "trim-thinking"
    return packed.long_documents if is_trimmed else f"no thinking recorded: {packed.long_documents}"
