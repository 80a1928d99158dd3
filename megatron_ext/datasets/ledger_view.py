"""A ledger as a table, with the sums of each source and domain, and in words what the table cannot say."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from data_tools.quantities import counted, format_exact
from megatron_ext.datasets.ledger import PADDING, LedgerRow, checkpoint_at, sum_by_source, sum_rows
from megatron_ext.plan.render import terminal
from megatron_ext.plan.render_table import frame

_SAMPLES = {"pretrain": "row", "sft": "conversation", "rl": "prompt"}


def print_ledger(rows: Sequence[LedgerRow], path: Path) -> None:
    """Prints the rows, and the sum of each source and domain.

    Args:
        rows: `read_ledger` of `path`.
        path: A checkpoint, or a stage's folder.

    Raises:
        DataError: There is no checkpoint.
    """
    checkpoint = checkpoint_at(path)
    file = checkpoint / "plan.json"
    plan = json.loads(file.read_bytes()) if file.is_file() else {}
    console = terminal()
    console.print(_heading(path, checkpoint, plan))
    columns = ("phase", "source", "domain", "planned", "read", "trained", "epochs", "first", "repeated", "documents")
    table = frame(*columns, "again")
    for column in table.columns[3:]:
        column.justify = "right"
    for row in rows:
        _add(table, str(row.phase) if row.phase else "before", row.source, row.domain, row)
    of_sources = [row for row in rows if row.data_id != PADDING]
    for row in sum_by_source(of_sources):
        _add(table, "all", row.source, row.domain, row)
    for domain, parts in _by_domain(of_sources).items():
        known = sorted({part.domains_known for part in parts if part.domain_shares})
        is_trained_known = not any(part.domain_shares and part.padding + part.masked for part in parts)
        name = f"{domain} ({', '.join(known)})" if known else domain
        _add(table, "all", "", name, sum_rows(parts), is_trained_known=is_trained_known)
    whole = sum_rows(rows)
    _add(table, "all", "everything", "", whole)
    console.print(table)
    print("documents: read for the first time; again: those that had been read before")
    if any(row.domain_shares for row in rows):
        print(
            "domains: counted shares are exact where whole passes were read, and hold about in between; declared ones "
            "are what the source's file says"
        )
    print(
        f"{_samples(rows, plan)}; {whole.masked:,} tokens untrained, {whole.padding:,} positions of padding, "
        f"{whole.truncated:,} tokens truncated; {whole.pieces_isolated:,} pieces of documents isolated"
    )
    if whole.sampled:
        print(f"{whole.sampled:,} tokens sampled, {whole.trained:,} trained")
    if here := [row for row in rows if row.phase]:  # an import has read nothing itself
        _print_packed(rows, sum_rows(here))


def _heading(path: Path, checkpoint: Path, plan: Mapping[str, Any]) -> str:
    if checkpoint == path:
        return str(path)
    ended = "finished" if (path / "stage.json").is_file() else "not finished"
    of_steps = f", of {plan['batch']['total_steps']:,} steps" if plan else ""
    return f"{path}: {ended}; as of {checkpoint.relative_to(path)}{of_steps}"


def _samples(rows: Sequence[LedgerRow], plan: Mapping[str, Any]) -> str:
    """How many rows, conversations or prompts the stage has read, apart from those of the stages before it."""
    here, before = (sum(row.samples for row in rows if bool(row.phase) == is_here) for is_here in (True, False))
    said = counted(here, _SAMPLES.get(plan.get("stage", ""), "sample"))
    behind = plan.get("parent") or plan.get("init_from") or {"chain": []}
    kinds = {_SAMPLES.get(stage["stage_id"].split("-")[0], "sample") for stage in behind["chain"]}
    unit = kinds.pop() if len(kinds) == 1 else "sample"
    return f"{said}, behind {counted(before, unit)} of the stages before" if before else said


def _print_packed(rows: Sequence[LedgerRow], here: LedgerRow) -> None:
    """What packing made of the documents of this stage, `here` its sum; of stages before it their own ledgers tell."""
    policies = {(row.source, row.long_documents) for row in rows if row.long_documents}
    if policies or here.padding or here.documents_cut or here.documents_dropped:
        filled = 100 * (1 - here.padding / max(1, here.read))
        print(
            f"packed: {filled:.2f} % filled, {here.padding:,} positions of padding; "
            f"{here.documents_cut:,} long documents cut, {here.truncated + here.trimmed:,} tokens of them; "
            f"{here.documents_dropped:,} dropped, {here.dropped:,} tokens"
        )
    if any(policy in ("drop", "trim-thinking") for _, policy in policies):
        print("dropped documents count when the last row of their window is read: none of a window read in part")
    if any(policy == "trim-thinking" for _, policy in policies):
        untold = sorted(source for source, policy in policies if policy == "split")
        if untold:
            print(f"long documents of {', '.join(untold)}: split, since no thinking is recorded of them")


def _by_domain(rows: Sequence[LedgerRow]) -> dict[str, list[LedgerRow]]:
    """The rows of each domain; of a source that mixes domains the share of each, documents unknown."""
    found: dict[str, list[LedgerRow]] = {}
    for row in rows:
        for domain, share in row.domain_shares.items():
            tokens = {name: getattr(row, name) for name in ("planned", "read", "first", "repeated")}
            parts: dict[str, Any] = {
                name: None if count is None else round(share * count) for name, count in tokens.items()
            }
            part = replace(row, domain=domain, documents_first=None, documents_repeated=None, **parts)
            found.setdefault(domain, []).append(part)
        if not row.domain_shares:
            found.setdefault(row.domain, []).append(row)
    return found


def _add(table: Any, phase: str, source: str, domain: str, row: LedgerRow, *, is_trained_known: bool = True) -> None:
    def known(count: int | None) -> str:
        return "unknown" if count is None else format_exact(count)

    table.add_row(
        phase,
        source,
        domain,
        format_exact(row.planned),
        format_exact(row.read),
        known(row.trained if is_trained_known else None),
        f"{row.epochs:.3g}" if source and source != "everything" else "",
        known(row.first),
        known(row.repeated),
        known(row.documents_first),
        known(row.documents_repeated),
    )
