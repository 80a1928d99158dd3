"""A lineage in the terminal: the checkpoint on top, what it was made of below it, and what is not known at the end."""

from __future__ import annotations

from collections.abc import Iterator

from rich.tree import Tree

from data_tools.quantities import counted, format_exact
from megatron_ext.evaluate.results import METRIC_UNITS
from megatron_ext.plan.render import terminal
from megatron_ext.study.lineage.record import (
    EvaluationFacts,
    Lineage,
    RunFacts,
    SourceFacts,
    StageFacts,
    TaskFacts,
)

_SHOWN = 12
"""Digits of a hash."""
_PACKAGES = ("megatron-core", "torch", "transformer-engine", "mamba-ssm")


def print_lineage(lineage: Lineage) -> None:
    """Prints the tree, what was verified, and what is not known."""
    console = terminal()
    checkpoint = lineage.last.checkpoint
    weights = f": weights {checkpoint.weights[:_SHOWN]}, {counted(len(checkpoint.files), 'file')}" if checkpoint else ""
    tree = Tree(f"{lineage.checkpoint}{weights}", guide_style="dim")
    branch = tree
    for stage in reversed(lineage.stages):
        branch = branch.add(_heading(stage))
        for line, below in _lines(stage):
            node = branch.add(line)
            for text in below:
                node.add(text)
    console.print(tree)
    if lineage.checks is not None:
        _print_checks(lineage)
    if lineage.unknown:
        print("\nNot known:")
        for sentence in lineage.unknown:
            print(f"  {sentence}")


def _print_checks(lineage: Lineage) -> None:
    checks = lineage.checks or ()
    kinds = [
        counted(sum(check.what == kind for check in checks), kind) for kind in dict.fromkeys(c.what for c in checks)
    ]
    print(f"\nVerified: {', '.join(kinds)}")
    wrong = [check for check in checks if check.damage]
    for check in wrong:
        print(f"  DAMAGED {check.what} {check.path}")
        for line in check.damage:
            print(f"    {line}")
    if not wrong:
        print("  all as they were written")


def _heading(stage: StageFacts) -> str:
    gives = {None: "", "everything": "goes on from ", "weights": "began with the weights of "}[stage.gives]
    ended = {None: "not in this run root", True: "finished", False: "not finished"}[stage.is_finished]
    step = f"step {stage.checkpoint.step:,} of " if stage.checkpoint else ""
    return f"{gives}{stage.stage_id}  {stage.recipe}  {ended}, {step}{counted(stage.planned_steps, 'step')}"


Line = tuple[str, tuple[str, ...]]


def _lines(stage: StageFacts) -> Iterator[Line]:
    if stage.folder is None and stage.meaning is None:
        yield f"{format_exact(stage.planned_tokens)} tokens planned; nothing else is known here", ()
        return
    fits = "makes its id" if stage.is_id_of_meaning else "DOES NOT MAKE ITS ID"
    yield f"meaning {(stage.meaning_sha256 or '')[:_SHOWN]} ({fits}), seed {stage.seed}, {stage.precision}", ()
    yield f"model {stage.model}, {format_exact(stage.parameters or 0)} parameters", ()
    if (checkpoint := stage.checkpoint) is not None:
        sampled = f", {format_exact(checkpoint.sampled_tokens)} sampled" if checkpoint.sampled_tokens else ""
        yield (
            (
                f"tokens {format_exact(checkpoint.processed_tokens)} processed, "
                f"{format_exact(checkpoint.trained_tokens)} trained{sampled}"
            ),
            (),
        )
    if stage.tokenizer is not None:
        tokenizer = stage.tokenizer
        template = tokenizer.chat_template_sha256
        chat = f", chat template {template[:_SHOWN]}" if template else ""
        yield f"tokenizer {tokenizer.folder} {tokenizer.fingerprint[:_SHOWN]}, {tokenizer.vocab_size:,} ids{chat}", ()
    yield from ((_run(run), ()) for run in stage.runs)
    yield from map(_source, stage.sources)
    yield from map(_evaluation, stage.evaluations)
    for export in stage.exports:
        yield f"exported {export.created}: step {export.step:,} to {export.to} in {export.dtype}", ()


def _run(run: RunFacts) -> str:
    code = f"code {run.code.sha256[:_SHOWN]}"
    if run.code.commit is not None:
        changed = f" and {counted(len(run.code.changed), 'changed file')}" if run.code.changed else ""
        code += f" (commit {run.code.commit[:_SHOWN]}{changed})"
    packages = ", ".join(f"{name} {run.versions[name]}" for name in _PACKAGES if name in run.versions)
    gpus = run.hardware.get("gpus") or [run.hardware.get("cpu") or run.hardware.get("machine")]
    ranks = counted(int(run.layout.get("world_size", 1)), "rank")
    where = f"{ranks}, {run.backend}, {gpus[0]}"
    return f"run {run.started} from step {run.begins_at_step:,}: {code}; {packages}; {where}"


def _source(source: SourceFacts) -> Line:
    read = "amount not known" if source.read_tokens is None else f"{format_exact(source.read_tokens)} tokens read"
    if source.epochs:
        read += f" ({source.epochs:.3g} passes)"
    terms = source.licence or ("terms not recorded" if source.licence is None else "terms not stated")
    revision = f", revision {source.revision}" if source.revision else ""
    where = f", from {source.available_at}" if source.available_at else ""
    state = "" if source.state == "as read" else f"  {source.state.upper()}"
    line = (
        f"source {source.source} ({source.domain}) {source.data_id[:_SHOWN]}: {read}; {terms}{revision}{where}{state}"
    )
    if source.file_sha256:
        return line, (f"prompts {source.prefix} {source.file_sha256[:_SHOWN]}",)
    return line, tuple(_made(source))


def _made(source: SourceFacts) -> Iterator[str]:
    """How the content of a source was made: of shards the first one, with how many there are."""
    for dataset in source.datasets[:1]:
        files = [file for one in source.datasets for file in one.inputs]
        made = f" of {files[0].path} {files[0].sha256[:_SHOWN]}" if files else ""
        more = f" and {counted(len(files) - 1, 'more file')}" if len(files) > 1 else ""
        shards = f", {counted(len(source.datasets), 'shard')}" if len(source.datasets) > 1 else ""
        yield f"{dataset.prefix}{shards}: adapter {dataset.adapter}, made {dataset.created}{made}{more}"


def _evaluation(evaluation: EvaluationFacts) -> Line:
    other = "" if evaluation.is_of_this_checkpoint else ", of other weights than these"
    suite = f", suite {evaluation.suite}" if evaluation.suite else ""
    line = f"evaluation {evaluation.name}{suite}, step {evaluation.step:,}{other}, {evaluation.created}"
    return line, tuple(_task(task) for task in evaluation.tasks)


def _task(task: TaskFacts) -> str:
    unit = METRIC_UNITS.get(task.metric)
    scale, after = (1, f" {unit}") if unit else (100, " %") if 0 <= task.value <= 1 else (1, "")
    numbers = [task.value, *([task.low, task.high] if task.low is not None and task.high is not None else [])]
    value, *ends = (f"{scale * number:.4g}" for number in numbers)
    interval = f" [{', '.join(ends)}], this evaluation alone," if ends else ""
    of = f"of {task.n:,} {'tokens' if unit else 'items'}"
    return f"{task.name}: {task.metric} {value}{after}{interval} {of}; contamination {task.contamination}"
