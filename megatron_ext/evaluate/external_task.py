"""Benchmarks that run generated code, or exist in NeMo-Skills alone: their own programs judge the exported checkpoint.

Nothing of theirs is rewritten here. A task says the commands that answer it, and reads what they have written:

    evaluations/NAME/external/commands-KIND.sh                          export, generate, judge
    evaluations/NAME/external/evalplus/DATASET/*_eval_results.json      of EvalPlus
    evaluations/NAME/external/nemo-skills/eval-results/BENCHMARK/metrics.json
    evaluations/NAME/external/TASK.json                                 {"value": 0.41, "items": 500}, of anything else

The same `evaluate` command, run again, takes up what has come since.

Source: EvalPlus 0.3.1, `evaluate.py`, `codegen.py`; NeMo-Skills' docs/evaluation/index.md (metrics of `BENCHMARK:k` are
those of `pass@1[avg-of-k]`, in percent).
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_tools.atomic_files import write_atomically
from data_tools.errors import DataError, UsageError
from megatron_ext.evaluate.results import Contamination, Metric, Results, TaskResult, sampling_used
from megatron_ext.evaluate.tasks import TaskRequest

if TYPE_CHECKING:
    from megatron_ext.evaluate.evaluation import Evaluation, Question

EVALPLUS, NEMO_SKILLS, EXTERNAL = "evalplus", "nemo-skills", "external"
KINDS_OF_OTHERS = frozenset({EVALPLUS, NEMO_SKILLS, EXTERNAL})
_DATASETS = ("humaneval", "mbpp")
_EXTRA = ("metric", "arguments")
_NEMO_METRICS = ("symbolic_correct", "accuracy", "average_score", "prompt_strict_accuracy")
"""The first that is there, where a task names none."""


def check(requests: Sequence[TaskRequest], checkpoint: Path) -> None:
    """Refuses data sets that EvalPlus does not have, and keys that are not read."""
    for request in requests:
        if request.kind == EVALPLUS and request.argument not in _DATASETS:
            raise UsageError(f"task {request.task}: EvalPlus has {' and '.join(_DATASETS)}.")
        if unknown := sorted(set(request.extra) - set(_EXTRA)):
            raise UsageError(f"task {request.task}: {', '.join(unknown)}: no such key; there are {', '.join(_EXTRA)}.")


def run(requests: Sequence[TaskRequest], evaluation: Evaluation) -> list[TaskResult]:
    """What has been judged so far; the commands for the rest go to a file. All ranks may call this."""
    say = evaluation.say if evaluation.is_main else None
    return found_so_far(requests, evaluation.opened.path, evaluation.folder, say=say)


def found_so_far(
    requests: Sequence[TaskRequest], checkpoint: Path, evaluation_folder: Path, *, say: Callable[[str], None] | None
) -> list[TaskResult]:
    """What has been judged so far of tasks of one kind.

    Args:
        requests: Of the kind.
        checkpoint: That is exported for its program.
        evaluation_folder: Of the evaluation.
        say: Writes a line for people; where it is given, the commands for the rest go to a file.

    Raises:
        DataError: As `read_result`.
    """
    folder = external_folder(evaluation_folder)
    found = [result for request in requests if (result := read_result(request, folder)) is not None]
    names = {result.name for result in found}
    missing = [request for request in requests if request.name not in names]
    if missing and say is not None:
        say(_how_to_get(missing, checkpoint, folder))
    return found


def _how_to_get(missing: Sequence[TaskRequest], checkpoint: Path, folder: Path) -> str:
    """Writes the commands for tasks of one kind, and says where."""
    kind, names = missing[0].kind, ", ".join(request.name for request in missing)
    folder.mkdir(parents=True, exist_ok=True)
    if kind == EXTERNAL:
        files = ", ".join(str(folder / f"{request.name}.json") for request in missing)
        form = '{"value": 0.41, "items": 500}'
        return f"{names}: bring their numbers as {form} in {files}, then run this command again"
    file = folder / f"commands-{kind}.sh"
    write_atomically(file, commands(missing, checkpoint, folder).encode())
    return f"{names}: judged by {kind} on the exported checkpoint: run {file}, then this command again"


def read_all(requests: Sequence[TaskRequest], folder: Path) -> list[TaskResult]:
    """What other programs have found so far, of tasks of all kinds.

    Raises:
        DataError: As `read_result`.
    """
    asked = [one for one in requests if one.kind in KINDS_OF_OTHERS]
    return [result for one in asked if (result := read_result(one, external_folder(folder))) is not None]


def external_folder(folder: Path) -> Path:
    """Where the programs of others leave what they found, in an evaluation's folder."""
    return folder / "external"


def taken_up(results: Results, question: Question, folder: Path) -> Results:
    """The results with what has come since they were written; the same object where nothing has.

    Args:
        results: Of a finished evaluation.
        question: That it answers.
        folder: Of the evaluation.
    """
    names = {result.name for result in results.tasks}
    asked = [one for one in question.tasks if one.kind in KINDS_OF_OTHERS and one.name not in names]
    new = [result for one in asked if (result := read_result(one, external_folder(folder))) is not None]
    if not new:
        return results
    order = {request.name: index for index, request in enumerate(question.tasks)}
    tasks = sorted((*results.tasks, *new), key=lambda result: order.get(result.name, -1))
    aggregates = tuple(question.aggregate(tasks)) if question.aggregate is not None else ()
    return results.model_copy(update={"tasks": tuple(tasks), "aggregates": aggregates})


def commands(requests: Sequence[TaskRequest], checkpoint: Path, folder: Path) -> str:
    """A shell script: the export, then what generates and judges.

    Args:
        requests: Of one kind.
        checkpoint: That is exported.
        folder: `external` of the evaluation.
    """
    model = shlex.quote(str(folder / "model"))
    lines = ["set -eu", f"[ -d {model} ] || megatron-ext export {shlex.quote(str(checkpoint))} --to {model}"]
    lines += _evalplus(requests, folder) if requests[0].kind == EVALPLUS else _nemo_skills(requests, folder)
    return "\n".join(lines) + "\n"


def _evalplus(requests: Sequence[TaskRequest], folder: Path) -> list[str]:
    root, model = folder / EVALPLUS, str(folder / "model")
    lines = []
    for dataset, one in {request.argument: request for request in requests}.items():
        temperature = one.options.temperature
        generated = model.strip("./").replace("/", "--") + f"_vllm_temp_{temperature}.jsonl"  # codegen's name for it
        generate = ["evalplus.codegen", "--model", model, "--dataset", dataset, "--root", str(root)]
        generate += ["--backend", "vllm", "--n_samples", str(one.options.samples), "--temperature", str(temperature)]
        judge = ["evalplus.evaluate", "--dataset", dataset, "--samples", str(root / dataset / generated)]
        lines += [shlex.join([*generate, *shlex.split(str(one.extra.get("arguments", "")))]), shlex.join(judge)]
    return lines


def _nemo_skills(requests: Sequence[TaskRequest], folder: Path) -> list[str]:
    lines = [f"ns prepare_data {' '.join(request.argument for request in requests)}"]
    alike: dict[tuple[str, ...], list[str]] = {}
    for one in requests:
        options = one.options
        said = (
            f"++inference.temperature={options.temperature}",
            f"++inference.top_p={options.top_p}",
            f"++inference.tokens_to_generate={options.max_new_tokens}",
            *shlex.split(str(one.extra.get("arguments", ""))),
        )
        alike.setdefault(said, []).append(f"{one.argument}:{options.samples}")
    for said, benchmarks in alike.items():
        lines.append(
            f"ns eval --cluster=local --server_type=vllm --server_gpus=1 --model={shlex.quote(str(folder / 'model'))} "
            f"--output_dir={shlex.quote(str(folder / NEMO_SKILLS))} --benchmarks={','.join(benchmarks)} "
            f'--server_args="--mamba_ssm_cache_dtype float32" {shlex.join(said)}'
        )
    return lines


def read_result(request: TaskRequest, folder: Path) -> TaskResult | None:
    """What a program has found of a task; None while it has not.

    Raises:
        DataError: Its file is not of the known form, or says what no share of items can be.
    """
    for file, read in _places(request, folder):
        if file.is_file():
            try:
                metric, details = read(request, json.loads(file.read_bytes()))
                _require_ratio(metric)
            except (ValueError, KeyError, TypeError, StopIteration) as error:
                raise DataError(f"{file}: not of the form that {request.kind} writes ({error!r}).") from None
            return _result(request, metric, file, details)
    return None


def _places(request: TaskRequest, folder: Path) -> list[tuple[Path, Any]]:
    own = [(folder / f"{request.name}.json", _read_own)]
    if request.kind == NEMO_SKILLS:
        return [*own, (folder / NEMO_SKILLS / "eval-results" / request.argument / "metrics.json", _read_nemo_skills)]
    found = sorted((folder / EVALPLUS / request.argument).glob("*_eval_results.json"))
    return own if request.kind == EXTERNAL else [*own, *((file, _read_evalplus) for file in found)]


def _read_own(request: TaskRequest, found: Mapping[str, Any]) -> tuple[Metric, dict[str, Any]]:
    name = str(found.get("metric", request.extra.get("metric", "pass@1")))
    return Metric(name=name, value=found["value"], n=found["items"]), dict(found)


def _require_ratio(metric: Metric) -> None:
    if not 0 <= metric.value <= 1:
        raise ValueError(f"value {metric.value:g}: must be a share in [0, 1], not a percentage")
    if metric.n < 1:
        raise ValueError(f"items {metric.n}: must be at least 1")


def _read_evalplus(request: TaskRequest, found: Mapping[str, Any]) -> tuple[Metric, dict[str, Any]]:
    """The mean over problems of the share of programs that pass: `base` tests, or with `plus` those too."""
    from megatron_ext.evaluate.estimators import mean_metric

    wanted = ("base_status", "plus_status") if request.extra.get("metric") == "plus" else ("base_status",)
    counts = {len(programs) for programs in found["eval"].values()}
    if counts != {request.options.samples}:
        raise ValueError(f"{sorted(counts)} programs a problem, {request.options.samples} were asked for")
    shares = [
        sum(all(program[key] == "pass" for key in wanted) for program in programs) / len(programs)
        for programs in found["eval"].values()
    ]
    name = f"avg@{request.options.samples}"
    metric = mean_metric(name, shares, num_samples=request.options.samples, seed=request.options.seed)
    return metric, {"date": found.get("date"), "hash": found.get("hash")}


def _read_nemo_skills(request: TaskRequest, found: Mapping[str, Any]) -> tuple[Metric, dict[str, Any]]:
    samples = request.options.samples
    numbers = found.get(request.argument, found)["pass@1" if samples == 1 else f"pass@1[avg-of-{samples}]"]
    wanted = [request.extra["metric"]] if "metric" in request.extra else _NEMO_METRICS
    key = next(key for key in wanted if key in numbers)
    items = numbers.get("num_entries", numbers.get("num_prompts"))
    return Metric(name=f"avg@{samples}", value=numbers[key] / 100, n=items), {"metric": key, "numbers": dict(numbers)}


def _result(request: TaskRequest, metric: Metric, file: Path, details: Mapping[str, Any]) -> TaskResult:
    return TaskResult(
        task=request.task,
        kind=request.kind,
        name=request.name,
        domain=request.domain,
        headline=metric.name,
        metrics=(metric,),
        items=metric.n,
        data=request.argument,
        method=f"judged by another program ({request.kind}); read from {file.name}",
        sampling=sampling_used(request.options),
        seed=request.options.seed,
        contamination=Contamination(status="unknown", note="not compared with what was trained on"),
        details={"file": str(file), **details},
    )
