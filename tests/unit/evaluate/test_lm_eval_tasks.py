"""Tasks of the harness: what cannot be asked is refused by name, before torch is imported."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import pytest
from lm_eval.tasks import TaskManager

from data_tools.errors import DataError, UsageError
from megatron_ext.evaluate.lm_eval_tasks import load_tasks, require_known
from tests.support.harness_tasks import write_tasks


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tasks(tmp_path_factory.mktemp("harness"))


def test_names_below_the_include_path_are_known_without_the_harness_own_index(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[bool] = []

    class Recorded(TaskManager):
        def __init__(self, *, include_path: Path | None, include_defaults: bool) -> None:
            made.append(include_defaults)
            super().__init__(include_path=include_path, include_defaults=include_defaults)

    monkeypatch.setattr("lm_eval.tasks.TaskManager", Recorded)
    require_known(["add_choice", "add"], write_tasks(tmp_path))
    assert made == [False]


def test_a_group_loads_all_its_tasks(tasks: Path) -> None:
    loaded = load_tasks("add", tasks, asked_as="sums")
    assert sorted(loaded.tasks) == ["add_choice", "add_words"]
    assert list(loaded.groups) == ["add"]
    assert [len(task.eval_docs) for task in loaded.tasks.values()] == [12, 12]
    assert loaded.sources["add_words"] == str(tasks / "add_words.yaml")


def test_two_requests_of_one_task_do_not_share_its_settings(tasks: Path) -> None:
    first = load_tasks("add_choice", tasks, asked_as="few").tasks["add_choice"]
    second = load_tasks("add_choice", tasks, asked_as="many").tasks["add_choice"]
    first.set_config(key="num_fewshot", value=5)
    assert second.get_config("num_fewshot") is None


@pytest.mark.slow  # reads the harness's own index of tasks
def test_an_unknown_name_is_refused_with_the_nearest(tasks: Path) -> None:
    with pytest.raises(UsageError) as caught:
        require_known(["add_choise", "hellasvag", "arcc"], tasks)
    first, second, third = str(caught.value).splitlines()
    assert first.startswith("--tasks lm-eval:add_choise: unknown task: neither lm-eval nor ")
    assert "did you mean add_choice" in first
    assert "did you mean hellaswag" in second
    assert "arc_challenge" in third


@pytest.mark.parametrize(("exists", "said"), [(False, "no such folder"), (True, "holds no .yaml file")])
def test_an_include_path_without_tasks_is_refused(tmp_path: Path, exists: bool, said: str) -> None:
    folder = tmp_path / "tasks"
    if exists:
        folder.mkdir()
    with pytest.raises(UsageError, match=f"--include-path {folder}: {said}"):
        require_known(["add"], folder)


HUB_TASK = """\
task: of_the_hub
dataset_path: nobody/nothing
dataset_name: part
output_type: multiple_choice
test_split: test
doc_to_text: q
doc_to_target: a
doc_to_choice: [a, b]
"""


def test_data_of_the_hub_are_refused_offline_without_torch(tmp_path: Path) -> None:
    (tmp_path / "of_the_hub.yaml").write_text(HUB_TASK)
    code = (
        "import sys; from pathlib import Path\n"
        "from megatron_ext.evaluate.lm_eval_tasks import load_tasks\n"
        "try: load_tasks('of_the_hub', Path(sys.argv[1]), asked_as='x')\n"
        "except Exception as error: print(type(error).__name__, error)\n"
        "print('torch' in sys.modules)"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    environment = {"HF_HUB_OFFLINE": "1", "PATH": "/usr/bin", "PYTHONPATH": ":".join(sys.path)}
    output = subprocess.run(command, capture_output=True, text=True, check=True, env=environment, timeout=120).stdout
    lines = output.splitlines()
    assert lines[0] == (
        "DataError lm-eval:of_the_hub: its data are of the Hugging Face hub (nobody/nothing part), and neither in the "
        "local cache nor reachable (HF_HUB_OFFLINE forbids the network)."
    )
    assert "`megatron-ext evaluate --tasks lm-eval:of_the_hub --write-items DIR` loads all of them once" in lines[1]
    assert lines[-1] == "False"


def test_a_damaged_file_of_ones_own_is_named(tmp_path: Path) -> None:
    folder = write_tasks(tmp_path)
    (tmp_path / "test.jsonl").write_text("{no json\n")
    with pytest.raises(DataError, match=r"lm-eval:add_choice: its data cannot be read: "):
        load_tasks("add_choice", folder, asked_as="damaged")


def test_changed_data_or_definitions_are_another_question(tmp_path: Path) -> None:
    folder = write_tasks(tmp_path)
    first = load_tasks("add", folder, asked_as="first").content_id
    assert load_tasks("add", folder, asked_as="again").content_id == first
    definition = folder / "add_words.yaml"
    definition.write_text(definition.read_text() + "target_delimiter: '='\n")
    second = load_tasks("add", folder, asked_as="definition").content_id
    with (tmp_path / "train.jsonl").open("a") as file:
        file.write((tmp_path / "test.jsonl").read_text())
    assert len({first, second, load_tasks("add", folder, asked_as="data").content_id}) == 3


def test_a_task_that_shuffles_its_documents_loads_alike_every_time(tmp_path: Path) -> None:
    folder = write_tasks(tmp_path)
    (folder / "shuffling.py").write_text(SHUFFLING)
    definition = folder / "add_choice.yaml"
    definition.write_text(definition.read_text() + "process_docs: !function shuffling.shuffled\n")
    orders = []
    for other in ("add_words", "add_prose"):
        load_tasks(other, folder, asked_as=f"before {other}")
        random.random()  # what else has drawn before does not matter
        task = load_tasks("add_choice", folder, asked_as=f"behind {other}").tasks["add_choice"]
        orders.append([document["question"] for document in task.eval_docs])
    assert orders[0] == orders[1]


SHUFFLING = """\
import random

def shuffled(documents):
    order = list(range(len(documents)))
    random.shuffle(order)
    return documents.select(order)
"""


def test_a_changed_file_that_a_definition_includes_or_calls_is_another_question(tmp_path: Path) -> None:
    folder = write_tasks(tmp_path)
    definition = folder / "add_prose.yaml"
    definition.rename(folder / "shared_part")
    definition.write_text("include: shared_part\ntask: add_prose\nprocess_docs: !function shuffling.shuffled\n")
    (folder / "shuffling.py").write_text(SHUFFLING)
    first = load_tasks("add_prose", folder, asked_as="first").content_id
    assert load_tasks("add_prose", folder, asked_as="again").content_id == first
    (folder / "shuffling.py").write_text(SHUFFLING + "# another rule\n")
    second = load_tasks("add_prose", folder, asked_as="code").content_id
    part = folder / "shared_part"
    part.write_text(part.read_text() + "description: 'Read this.'\n")
    assert len({first, second, load_tasks("add_prose", folder, asked_as="included").content_id}) == 3


def test_an_identity_does_not_depend_on_the_process(tmp_path: Path) -> None:
    folder = write_tasks(tmp_path)
    definition = folder / "add_prose.yaml"
    definition.write_text(definition.read_text() + "process_docs: !function partly.shuffled\n")
    (folder / "partly.py").write_text(f"import functools\n{SHUFFLING}\nshuffled = functools.partial(shuffled)\n")
    code = (
        "import sys; from pathlib import Path; from megatron_ext.evaluate.lm_eval_tasks import load_tasks\n"
        "print(load_tasks('add_prose', Path(sys.argv[1]), asked_as='x').content_id)"
    )
    command = [sys.executable, "-c", code, str(folder)]
    environment = {"PATH": "/usr/bin", "PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment, timeout=120)
    assert done.stdout.strip() == load_tasks("add_prose", folder, asked_as="here").content_id
