"""Options and tasks of an evaluation: what is wrong is named before anything is loaded."""

import pytest

from data_tools.errors import UsageError
from megatron_ext.evaluate.options import Options, read_options
from megatron_ext.evaluate.tasks import read_request, refuse_same_names


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("sampels=4", "--set sampels: no such option; did you mean samples"),
        ("samples", "--set samples: write --set key=value"),
        ("samples=0", "samples=0: Input should be greater than or equal to 1"),
        ("samples=4", "samples: 4: at temperature 0 all answers to an item are the same; set temperature=0.7"),
        ("top_p=1.5", "top_p=1.5: Input should be less than or equal to 1"),
    ],
)
def test_a_wrong_option_is_refused_with_key_and_rule(override: str, said: str) -> None:
    with pytest.raises(UsageError) as refused:
        read_options([override])
    assert said in str(refused.value)


@pytest.mark.parametrize(
    ("task", "said"),
    [
        ("held_out", "'held_out' is no kind of task; there are held-out, verifiable, lm-eval"),
        ("verifiable", "write verifiable:FILE"),
    ],
)
def test_a_wrong_task_is_refused_with_the_right_ones(task: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        read_request(task, Options())


def test_two_files_of_one_name_are_not_mixed_up() -> None:
    requests = [read_request(f"verifiable:{folder}/sums.jsonl", Options()) for folder in "ab"]
    with pytest.raises(UsageError, match="would be named sums alike"):
        refuse_same_names(requests)


def test_a_suite_sets_options_of_one_task() -> None:
    request = read_request("lm-eval:gsm8k", Options(seed=7), extra={"limit": 3, "metric": "acc"})
    assert (request.options.limit, request.options.seed, request.extra) == (3, 7, {"metric": "acc"})
