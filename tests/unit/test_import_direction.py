"""Imports go one way only: from what is decided to what is done, and never back.

    data_tools <- recipe <- plan <- {models, datasets, objectives} <- rollout <- training <- run

Read with `ast`, so that an import inside a function counts as well.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
FILES = sorted(
    path.relative_to(REPOSITORY)
    for room in ("data_tools", "megatron_ext")
    for path in (REPOSITORY / room).rglob("*.py")
)
DEVICE_FILE = Path("megatron_ext/runtime/device.py")

ABOVE_PLAN = {"recipe", "plan", "runtime"}
ROOMS = {
    "recipe": set[str](),
    "plan": {"recipe"},
    "runtime": set[str](),
    "models": ABOVE_PLAN,
    "datasets": ABOVE_PLAN,
    "objectives": ABOVE_PLAN | {"datasets"},  # a loss reads a Batch
    "rollout": ABOVE_PLAN | {"models", "datasets", "objectives"},
    "training": ABOVE_PLAN | {"models", "datasets", "objectives", "rollout"},
    "convert": ABOVE_PLAN | {"models", "datasets", "training"},  # checkpoints are training's, ledgers datasets'
    "evaluate": ABOVE_PLAN | {"models", "datasets", "objectives", "rollout", "training", "convert"},
    "handoff": ABOVE_PLAN | {"datasets", "objectives", "training", "convert"},
    "study": {"recipe", "plan"},
    "cli": set[str](),  # its files are commands
}
"""The rooms of megatron_ext that each of them may import, beside itself."""

READERS = {
    "rollout": {"convert.live_folder"},  # writes a model in memory; reads nothing of training
    "study": {
        *("evaluate.suite", "evaluate.results", "evaluate.kept_items", "evaluate.estimators", "datasets.ledger"),
        *("evaluate.compare", "evaluate.options", "training.intervals"),  # of results' items; how they were asked
        "evaluate.tasks",  # what a task's file holds
        "evaluate.foreseen",  # what a task needs
        "runtime.code_version",
        "training.file_list",  # what lists a checkpoint's files, and finds their damage
    },
}
"""Modules of rooms above that a room may import beside. What study may import reads finished files, or this code's
version, and loads no torch."""

ENTRIES = {Path("megatron_ext/__main__.py"), Path("megatron_ext/run.py"), Path("megatron_ext/rollout/cli.py")}
ENTRIES |= {Path("megatron_ext", room, "cli.py") for room in ("convert", "evaluate", "study")}
ENTRIES |= {Path("megatron_ext/study/arguments.py"), Path("megatron_ext/study/run_verbs.py")}
ENTRIES |= {Path("megatron_ext/study/report_verbs.py"), Path("megatron_ext/study/compare_verbs.py")}
ENTRIES |= {file for file in FILES if file.parts[:2] == ("megatron_ext", "cli")}
"""Commands: they join the rooms, so they may import all, and only other commands may import them."""

PURE_DATA_TOOLS = {
    "errors",
    "strict_yaml",
    "quantities",
    "manifest",
    "dataset",
    "tokenizer",
    "tokenizer_extension",
    "blend_plan",
    "blend_floors",
    "packing",
    "document_view",
    "indexed",
    "loss_mask",
    "progress",
    "drawing",
    "pack_rows",
    "chat_template_files",
    "schema",
    "blend_files",
    "permutation",
    "prompts",
}
DATA_TOOLS_OF = {"recipe": PURE_DATA_TOOLS, "plan": PURE_DATA_TOOLS, "runtime": {"errors"}}
"""What a room may import of data_tools, where that is not everything but its commands, engines and samples."""

CLOSED_DATA_TOOLS = {"__main__", "engines", "samples"}
TORCH_FREE = {"recipe", "plan", "study", "cli"}
HEAVY = {"torch", "megatron", "transformers", "triton"}


def imports_of(source: str) -> Iterator[str]:
    """Dotted names of everything that a file imports; `from a import b` gives a.b."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def wrong_imports(file: Path, source: str) -> list[str]:
    return [name for name in imports_of(source) if not _may_import(file, name.split("."))]


def _may_import(file: Path, name: list[str]) -> bool:
    package, rest = name[0], [*name[1:], ""]
    if package == "megatron" and rest[0] in ("training", "bridge", "rl"):
        return False
    if file.parts[0] == "data_tools":
        return package not in {"megatron_ext", *HEAVY}
    room = file.parts[1] if len(file.parts) > 2 else ""
    if package in HEAVY:
        return room not in TORCH_FREE
    if package == "data_tools":
        return rest[0] in DATA_TOOLS_OF[room] if room in DATA_TOOLS_OF else rest[0] not in CLOSED_DATA_TOOLS
    if package != "megatron_ext" or file in ENTRIES:
        return True
    entry = Path("megatron_ext", *rest[:2])
    if {entry.with_suffix(".py"), Path("megatron_ext", f"{rest[0]}.py")} & ENTRIES:
        return False
    if ".".join(rest[:2]) in READERS.get(room, set()):
        return True
    return rest[0] == room or rest[0] in ROOMS.get(room, set())


def named_cuda(source: str) -> list[int]:
    """Lines of code, not prose, that name cuda: an attribute, a name, an import, or a string."""
    tree = ast.parse(source)
    prose = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    lines = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant):
            is_named = isinstance(node.value, str) and id(node) not in prose and re.search(r"\bcuda\b", node.value)
        else:
            words = [getattr(node, "attr", ""), getattr(node, "id", ""), getattr(node, "name", "")]
            words.append(getattr(node, "module", "") or "")
            is_named = any("cuda" in str(word).split(".") for word in words)
        if is_named:
            lines.append(getattr(node, "lineno", 0))
    return lines


@pytest.mark.parametrize("file", FILES, ids=str)
def test_a_file_imports_in_the_right_direction(file: Path) -> None:
    assert wrong_imports(file, (REPOSITORY / file).read_text()) == []


@pytest.mark.parametrize("file", [file for file in FILES if file != DEVICE_FILE], ids=str)
def test_only_the_device_file_names_cuda(file: Path) -> None:
    assert named_cuda((REPOSITORY / file).read_text()) == []


def test_every_room_has_its_place_in_the_order() -> None:
    rooms = {file.parts[1] for file in FILES if file.parts[0] == "megatron_ext" and len(file.parts) > 2}
    assert rooms <= ROOMS.keys()


def test_every_command_that_may_import_all_is_there() -> None:
    assert sorted(ENTRIES - set(FILES)) == []


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("data_tools/manifest.py", "from megatron_ext.plan import make"),
        ("data_tools/manifest.py", "import torch"),
        ("megatron_ext/recipe/load.py", "from megatron_ext.plan.make import make_stage_plan"),
        ("megatron_ext/recipe/load.py", "def f():\n    import torch.nn"),
        ("megatron_ext/plan/make.py", "from data_tools.tokenize import tokenize"),
        ("megatron_ext/plan/make.py", "from megatron_ext.models.build import build_model"),
        ("megatron_ext/runtime/seed.py", "from megatron_ext.plan.stage_plan import StagePlan"),
        ("megatron_ext/models/build.py", "from megatron_ext.training.state import State"),
        ("megatron_ext/models/build.py", "from megatron_ext.datasets.batch import Batch"),
        ("megatron_ext/datasets/cursor.py", "from data_tools.samples.base import write"),
        ("megatron_ext/rollout/generate.py", "from megatron_ext.training.checkpoint import load_weights"),
        ("megatron_ext/training/loop.py", "from megatron_ext.run import main"),
        ("megatron_ext/training/loop.py", "from megatron_ext.rollout.cli import main_generate"),
        ("megatron_ext/training/loop.py", "from megatron_ext.cli.verb import Verb"),
        ("megatron_ext/cli/plan.py", "def f():\n    import torch"),
        ("megatron_ext/study/cli.py", "def f():\n    import torch"),
        ("megatron_ext/training/loop.py", "from megatron.training import get_args"),
    ],
)
def test_a_wrong_import_is_found(file: str, line: str) -> None:
    assert len(wrong_imports(Path(file), line)) == 1


@pytest.mark.parametrize(
    "line",
    [
        "torch.cuda.synchronize()",
        'device = "cuda"',
        'device = f"cuda:{rank}"',
        "import torch.cuda",
        "from torch import cuda",
    ],
)
def test_a_named_cuda_is_found(line: str) -> None:
    assert named_cuda(line)


@pytest.mark.parametrize("line", ['"""Not on cuda."""', "get_cuda_rng_tracker()", "# cuda"])
def test_prose_and_cores_own_names_are_no_naming(line: str) -> None:
    assert not named_cuda(line)
