"""The completions of one step, kept: `STAGE/rollouts/step_N.jsonl.zst`, one JSON object a completion.

| field | holds |
|-------|-------|
| step, place | the step, from 1; the prompt's place among all that the stage has drawn |
| prompt_id, name | of the prompt's content; the file's own id, or the same |
| source, domain, family | of the prompt |
| prompt | the turns, [{role, content}] |
| truth | the right answer |
| sample | number of the completion in its group, from 0 |
| text | the completion, without the token that ended it |
| tokens, finish | its tokens, that one included; stop or length |
| reward, parts | the weighted sum, and each part of it |
| outcome, detail | how the scorer ended; what it raised, where it failed |
| penalty | for its length, at most 0; advantages are taken of reward and penalty together |
| advantage | what it is learned with |
| log_prob | mean log-probability of its tokens when they were sampled, in nats |
| is_trained | false of a group that dynamic sampling has replaced |

A step of 1,024 completions of 1,000 tokens comes to about 1 MB. The file is written before the step's first update
and appears whole; a run that resumes writes those of its steps again.

Where sampling or scoring fails, what had ended by then stands in `failed_step_N.jsonl.zst`, `advantage` 0 and
`is_trained` false: step N, or the validation before it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from data_tools.atomic_files import write_atomically
from data_tools.errors import DataError, SetupError

FOLDER = "rollouts"
_FAILED = "failed_"


def rollout_file(stage_folder: Path, step: int, *, has_failed: bool = False) -> Path:
    """Where the completions of a step lie, or of one whose sampling or scoring has failed."""
    return stage_folder / FOLDER / f"{_FAILED if has_failed else ''}step_{step}.jsonl.zst"


def write_rollouts(
    stage_folder: Path, step: int, records: Iterable[dict[str, Any]], *, has_failed: bool = False
) -> Path:
    """Writes the completions of a step; those of an attempt that failed before give way to a whole step.

    Returns:
        The file.

    Raises:
        SetupError: zstandard is not installed, or the file cannot be written.
    """
    file = rollout_file(stage_folder, step, has_failed=has_failed)
    lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    content = _zstandard().ZstdCompressor().compress(lines.encode())
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, content)
        if not has_failed:
            rollout_file(stage_folder, step, has_failed=True).unlink(missing_ok=True)
    except OSError as error:
        raise SetupError(
            f"{file}: cannot be written: {error.strerror}; nothing was learned from its step, and the newest "
            "checkpoint is whole. Make room, and run again to go on from it."
        ) from None
    return file


def read_rollouts(stage_folder: Path, step: int | None) -> tuple[int, list[dict[str, Any]]]:
    """The step and its completions, those of a failed attempt where there are no others; None takes the newest step.

    Raises:
        DataError: There is none, or it is damaged.
    """
    names = (f"{_FAILED}step_*.jsonl.zst", "step_*.jsonl.zst")
    files = {_step_of(file): file for name in names for file in (stage_folder / FOLDER).glob(name)}
    if not files:
        raise DataError(f"{stage_folder / FOLDER}: no rollouts; name the folder of an rl stage that has begun a step")
    step = max(files) if step is None else step
    if step not in files:
        file = rollout_file(stage_folder, step)
        raise DataError(f"{file}: no such file; there are steps {min(files)} to {max(files)}")
    file = files[step]
    try:
        reader = _zstandard().ZstdDecompressor().decompressobj()
        content = reader.decompress(file.read_bytes())
        if not reader.eof:
            raise ValueError("it ends too early")
        return step, [json.loads(line) for line in content.splitlines()]
    except (_zstandard().ZstdError, ValueError, OSError) as error:
        raise DataError(f"{file}: damaged ({error}); run the stage again from an earlier checkpoint") from None


def _step_of(file: Path) -> int:
    return int(file.name.removeprefix(_FAILED).removeprefix("step_").removesuffix(".jsonl.zst"))


def zstandard_of_extra(why: str) -> Any:
    """The module zstandard.

    Args:
        why: What it is needed for, for people.

    Raises:
        SetupError: It is not installed.
    """
    try:
        import zstandard
    except ImportError:
        raise SetupError(f"zstandard is not installed, and {why}: pip install 'megatron-ext[rl]'") from None
    return zstandard


def _zstandard() -> Any:
    return zstandard_of_extra("rollouts are kept with it")


def require_zstandard() -> None:
    """Refuses to begin what could not be kept.

    Raises:
        SetupError: zstandard is not installed.
    """
    _zstandard()
