"""`verifiable:FILE`: prompts with answers that a scorer can judge; each is answered `samples` times.

FILE is JSONL, or the folder of an rl stage: then the prompts are those that the stage holds out.

An answer's random numbers hang on the seed, the prompt's text and the number of the answer, so it is the same on
whatever rank, beside whatever other prompts, and in a run that goes on where another one was killed. Answers are
scored beside the sampling in processes that may be ended (`objectives/rewards.py`).
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING

from data_tools.errors import DataError, TrainingError
from data_tools.prompts import ADAPTER as PROMPT_ADAPTER
from data_tools.prompts import PromptFile, PromptRow
from data_tools.scoring import final_answer
from megatron_ext.evaluate.contamination import Benchmark, contamination_of, require_clean
from megatron_ext.evaluate.kept_items import Key, Line, runs_of_missing
from megatron_ext.evaluate.results import Contamination
from megatron_ext.evaluate.tasks import TaskRequest
from megatron_ext.evaluate.verifiable_prompts import prompts_of, rl_plan_of

if TYPE_CHECKING:
    from megatron_ext.evaluate.evaluation import Evaluation
    from megatron_ext.evaluate.results import TaskResult
    from megatron_ext.objectives.rewards import RewardParts
    from megatron_ext.rollout.protocol import Completion, Prompt


def check(requests: Sequence[TaskRequest], checkpoint: Path) -> None:
    """Refuses files that are not there, prompts that nobody can judge, and models that were not taught to answer."""
    for request in requests:
        file, _ = prompts_of(request, checkpoint / "tokenizer")
        unusable = sum(file.unusable.values())
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in file.unusable.items())
        if not file.rows:
            raise DataError(f"{request.argument}: holds no prompt with an answer that can be judged ({reasons}).")
        if unusable and request.options.unusable == "refuse":
            raise DataError(
                f"{request.argument}: {unusable:,} of {unusable + len(file.rows):,} prompts are unusable: {reasons}.\n"
                f"  The first: {file.first_unusable}\n"
                "  Mend or remove them, name another scorer with --set scorer=…, or leave them out, counted: "
                "--set unusable=leave-out."
            )
        require_clean(request, _contamination(request, file, checkpoint), len(file.rows[: request.options.limit]))


def _contamination(request: TaskRequest, file: PromptFile, checkpoint: Path) -> Contamination:
    rows, path = file.rows[: request.options.limit], Path(request.argument)
    apart = frozenset(source.data_id for source in rl_plan_of(path).data.sources) if path.is_dir() else frozenset()
    ids = frozenset(row.id for row in rows)
    how = f"data-tools overlap SOURCE.yaml --against {path} --adapter {PROMPT_ADAPTER} --out NAME.overlap.jsonl"
    benchmark = Benchmark(
        str(path),
        file.sha256,
        ids,
        PROMPT_ADAPTER,
        how="" if path.is_dir() else how,
        copies={file.sha256: ids},
        reports=path.parent,
        apart_from=apart,
    )
    return contamination_of(benchmark, checkpoint, request.options)


def run(requests: Sequence[TaskRequest], evaluation: Evaluation) -> list[TaskResult]:
    """Answers and judges. All ranks must call this."""
    return [_run(request, evaluation) for request in requests]


def _run(request: TaskRequest, evaluation: Evaluation) -> TaskResult:
    from megatron_ext.evaluate.shared_lines import lines_of_all_ranks
    from megatron_ext.evaluate.verifiable_result import result_of

    file, stop_ids = prompts_of(request, evaluation.opened.tokenizer_folder)
    rows = file.rows[: request.options.limit]
    contamination = _contamination(request, file, evaluation.opened.path)  # a running stage may remove its checkpoint
    longest = max(len(row.ids) for row in rows)

    def find(there: Mapping[Key, Line]) -> list[Line]:
        wanted = [(row, runs_of_missing(row.id, there, request.options.samples)) for row in rows]
        asked = [(row, first, count) for row, runs in wanted for first, count in runs]
        return _sample(request, evaluation, asked, longest=longest, stop_ids=stop_ids)

    there = lines_of_all_ranks(evaluation.items, request.name, find)
    answers = [[there[row.id, sample] for sample in range(request.options.samples)] for row in rows]
    learned_length = evaluation.opened.plan.batch.sequence_length
    return result_of(request, file, rows, answers, contamination, learned_length)


def _sample(
    request: TaskRequest,
    evaluation: Evaluation,
    asked: Sequence[tuple[PromptRow, int, int]],
    *,
    longest: int,
    stop_ids: frozenset[int],
) -> list[Line]:
    """Samples and scores this rank's share; of tensor-parallel ranks, which have the same answers, the first scores."""
    from data_tools.progress import shown
    from data_tools.tokenizer import Tokenizer
    from megatron_ext.datasets.prompts import sample_seed
    from megatron_ext.objectives.rewards import RewardOptions, RewardPool
    from megatron_ext.rollout.inprocess import InProcessEngine
    from megatron_ext.rollout.protocol import Prompt, Sampling
    from megatron_ext.rollout.sampling_run import NonFiniteLogitsError

    opened, options = evaluation.opened, request.options
    prompts = [
        Prompt(row.ids, count, sample_seed(options.seed, f"evaluate {row.id}"), first_sample=first)
        for row, first, count in asked
    ]
    if not prompts:
        return []
    sampling = Sampling(
        options.max_new_tokens,
        temperature=options.temperature,
        top_k=options.top_k,
        top_p=options.top_p,
        stop_ids=stop_ids,
    )
    tokenizer = Tokenizer.load(opened.tokenizer_folder, special_tokens="parse")
    engine = InProcessEngine(
        opened.model,
        opened.plan,
        opened.groups,
        num_slots=min(options.slots, sum(prompt.num_samples for prompt in prompts)),
        tokens_per_slot=longest + options.max_new_tokens,
        decode=tokenizer.decode,
    )
    kept: list[Future[Line]] = []
    workers = max(1, min(4, (os.cpu_count() or 1) // opened.plan.layout.world_size))
    pool = RewardPool(
        RewardOptions(weights={"accuracy": 1.0}, on_error="count"),
        num_workers=workers,
        time_limit_s=options.scoring_timeout_s,
    )
    scores = opened.groups.tp.rank() == 0

    def keep(completion: Completion) -> None:
        progress.advance(1)
        if not scores:
            return
        row = asked[completion.prompt_index][0]
        ids = completion.token_ids
        text = tokenizer.decode(ids[:-1] if ids[-1] in stop_ids else ids)
        kept.append(_kept(pool.submit(row.record, row.opening + text), request, evaluation, row, completion, text))

    share = _num_samples_of_rank(prompts, evaluation, options.max_new_tokens)
    with pool, shown(f"{request.name}: answers", share, unit="answers") as progress:
        try:
            engine.generate(prompts, sampling, on_finished=keep)
        except NonFiniteLogitsError as error:
            name = asked[error.sample.prompt_index][0].record.get("id")
            raise TrainingError(f"{request.task}: prompt {name}: the model's logits are not finite.") from None
        return [future.result() for future in kept]


def _num_samples_of_rank(prompts: Sequence[Prompt], evaluation: Evaluation, max_new_tokens: int) -> int:
    from megatron_ext.rollout.share import share_prompts

    dp = evaluation.opened.groups.dp
    shares = share_prompts(prompts, dp.size(), max_new_tokens=max_new_tokens)
    return sum(prompts[index].num_samples for index in shares[dp.rank()])


def _kept(
    scored: Future[RewardParts],
    request: TaskRequest,
    evaluation: Evaluation,
    row: PromptRow,
    completion: Completion,
    text: str,
) -> Future[Line]:
    """The line of an answer, kept as soon as it has been scored."""
    line: Future[Line] = Future()

    def keep(done: Future[RewardParts]) -> None:
        try:
            line.set_result(evaluation.items.add(request.name, row.id, **_line(row, completion, text, done.result())))
        except BaseException as error:  # of the scorer, or the disk; raised where the line is asked for
            line.set_exception(error)

    scored.add_done_callback(keep)
    return line


def _line(row: PromptRow, completion: Completion, text: str, reward: RewardParts) -> Line:
    record = row.record
    return {
        "sample": completion.sample_index,
        "name": str(record.get("id") or row.id),
        "domain": row.domain,
        "family": row.family,
        "prompt": record["prompt"],
        "truth": record["reward_model"]["ground_truth"],
        "scorer": record["meta_data"]["scorer"],
        "text": text,
        "answer": final_answer(row.opening + text),
        "score": reward.parts["accuracy"],
        "is_well_formed": reward.parts["format"] > 0,
        "outcome": reward.outcome,
        "tokens": len(completion.token_ids),
        "finish": completion.finish,
    }
