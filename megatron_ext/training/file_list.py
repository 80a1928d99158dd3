"""files.json: the files of a checkpoint with their sizes and hashes, written last.

    {"__0_0.distcp": {"bytes": 8721345, "sha256": "9f2c…"}, "state.json": {…}, …}

A folder without it is half written; a file that differs from it was changed behind our back, and so was
a list that leaves out a file without which no checkpoint is written, or a `.distcp` that lies there. Names
are relative to the checkpoint, the list does not name itself. docs/how-to/resume-in-another-layout.md
has what hashing costs.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypedDict

from pydantic import ValidationError

from data_tools.atomic_files import write_atomically
from data_tools.errors import DataError
from megatron_ext.plan.lineage import STAGE_FILE
from megatron_ext.plan.stage_plan import StagePlan

FILE_LIST = "files.json"

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")
ALWAYS_LISTED = (
    *("plan.json", "state.json", "ledger.json", "metadata.json", ".metadata"),
    *(f"tokenizer/{name}" for name in TOKENIZER_FILES),
)
_SHOWN = 5


class FileFacts(TypedDict):
    """What is remembered of one file."""

    bytes: int
    sha256: str


def checkpoints_of(folder: Path) -> list[Path]:
    """Lists the checkpoints in a `checkpoints` folder, oldest first."""
    if not folder.is_dir():
        return []
    numbered = {
        int(match[1]): child for child in folder.iterdir() if (match := re.fullmatch(r"step_(\d+)", child.name))
    }
    return [numbered[step] for step in sorted(numbered)]


def describe_files(folder: Path, files: Iterable[Path]) -> dict[str, FileFacts]:
    """Measures and hashes files below `folder`; a rank does it for what it wrote."""
    return {str(file.relative_to(folder)): {"bytes": file.stat().st_size, "sha256": _sha256(file)} for file in files}


def write_file_list(folder: Path, described: dict[str, FileFacts]) -> None:
    """Writes files.json; after this the checkpoint must not change."""
    write_atomically(folder / FILE_LIST, json.dumps(described, indent=1, sort_keys=True).encode())


def read_file_list(path: Path) -> dict[str, FileFacts]:
    """The files of a checkpoint, as its list has them; OSError or ValueError where there is none that can be read."""
    return dict(json.loads((path / FILE_LIST).read_bytes()))


def weights_fingerprint(path: Path) -> str:
    """Sha256 over the names and hashes of a checkpoint's files of weights, as its file list has them."""
    listed = read_file_list(path)
    lines = [f"{name} {listed[name]['sha256']}\n" for name in sorted(listed) if name.endswith((".distcp", ".metadata"))]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def damage_of(path: Path, *, rank: int = 0, world_size: int = 1) -> list[str]:
    """Compares a checkpoint with its list; each rank reads its share of the bytes.

    Args:
        path: A `step_N` folder.
        rank: This process among `world_size` that look at the checkpoint together.
        world_size: Their number.

    Returns:
        One line for each file of this rank's share that is not as written.
    """
    try:
        listed = read_file_list(path)
        by_size = sorted(listed, key=lambda name: (-listed[name]["bytes"], name))
        lines = [_damage_of_file(path / name, listed[name]) for name in by_size[rank::world_size]]
        return [*(line for line in lines if line), *(_left_out(path, listed) if rank == 0 else [])]
    except FileNotFoundError:
        return [f"{FILE_LIST}: missing; it is written last, so the checkpoint is half written"]
    except OSError as error:
        return [f"{FILE_LIST}: cannot be read ({error})"]
    except (ValueError, KeyError, TypeError, AttributeError):
        return [f"{FILE_LIST}: not a list of files"]


def require_whole(path: Path, *, look: Callable[[Path], list[str]] = damage_of) -> None:
    """Refuses a checkpoint that is not as it was written.

    Args:
        path: A `step_N` folder.
        look: Finds the damage of a checkpoint; all ranks together where there are several.

    Raises:
        DataError: Lists the damage, the newest checkpoint that is whole, and the command that gives way to it.
    """
    damage = look(path)
    if not damage:
        return
    more = [f"… and {len(damage) - _SHOWN} files more"] if len(damage) > _SHOWN else []
    lines = "".join(f"  {line}\n" for line in [*damage[:_SHOWN], *more])
    raise DataError(f"{path}: this checkpoint is damaged; nothing was loaded.\n{lines}{_way_out(path, look)}")


def read_plan(path: Path) -> StagePlan:
    """Reads the plan that wrote a checkpoint.

    Raises:
        DataError: `path` is not a checkpoint of this project, is damaged, or was written by another version.
    """
    file = path / "plan.json"
    if not file.is_file():
        raise DataError(f"{path}: not a checkpoint: it has no plan.json. Name a folder …/checkpoints/step_N.")
    try:
        return StagePlan.model_validate_json(file.read_bytes())
    except ValidationError as error:
        require_whole(path)
        first = error.errors()[0]
        raise DataError(
            f"{file}: {'.'.join(map(str, first['loc']))}: {first['msg']}: it was written by another version of this "
            "project; take the one that wrote it."
        ) from None


def _way_out(path: Path, look: Callable[[Path], list[str]]) -> str:
    """The newest checkpoint that is whole, and the commands that give way to it."""
    siblings = checkpoints_of(path.parent)
    is_one_of_them = path in siblings
    others = siblings[: siblings.index(path)] if is_one_of_them else siblings
    whole = next((other for other in reversed(others) if not look(other)), None)
    if not is_one_of_them:
        return f"  Take a whole one: {whole}" if whole else "  There is no whole checkpoint beside it."
    in_the_way = [*others[others.index(whole) + 1 if whole else 0 :], path]
    moves = "".join(f"    mv {other} {other.with_name(f'damaged_{other.name}')}\n" for other in in_the_way)
    next_run = "the next run"
    if (finished := path.parents[1] / STAGE_FILE).is_file():
        moves += f"    rm {finished}\n"
        next_run = f"the next run of the recipe of {finished.parent.name}"
    if whole:
        then = f"The newest whole checkpoint before it is {whole} (every file verified): {next_run} goes on from there."
    else:
        then = f"There is no whole checkpoint before it: {next_run} begins at step 1, and what was trained is lost."
    return f"  Move away what is damaged:\n{moves}  {then}"


def _left_out(path: Path, listed: dict[str, FileFacts]) -> list[str]:
    """Files that every list names, and this one does not."""
    expected = {*ALWAYS_LISTED, *(file.name for file in path.glob("*.distcp"))}
    return [f"{name}: not named in {FILE_LIST}, so nothing vouches for it" for name in sorted(expected - listed.keys())]


def _damage_of_file(file: Path, listed: FileFacts) -> str | None:
    """What is wrong with one file; an error of the disk too, as a rank that raised would leave the others waiting."""
    try:
        if not file.is_file():
            return f"{file.name}: missing"
        size = file.stat().st_size
        if size != listed["bytes"]:
            return f"{file.name}: {size:,} bytes, was written with {listed['bytes']:,}"
        if _sha256(file) != listed["sha256"]:
            return f"{file.name}: of the right size, but its content changed since it was written (sha256)"
    except OSError as error:
        return f"{file.name}: cannot be read ({error})"
    return None


def _sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
