"""Everything that is wrong with a recipe is said at once, with place, key, value, rule and remedy."""

from __future__ import annotations

import pytest

from megatron_ext.recipe.checks import ELSEWHERE
from megatron_ext.recipe.keys import field_at, parse_key
from megatron_ext.recipe.schema import Recipe
from tests.support.pencil_project import PencilProject, refused


def refusal(project: PencilProject, *overrides: str) -> str:
    return refused(lambda: project.load(*overrides))


def test_an_unknown_key_names_the_nearest_and_the_allowed_ones(project: PencilProject) -> None:
    project.edit("pretrain.yaml", "min_lr", "minlr")
    assert refusal(project).splitlines()[1:] == [
        "pretrain.yaml:14: optimizer.min_lr: required and not set; Learning rate at the end of the decay.",
        "pretrain.yaml:14: optimizer.minlr: unknown key; did you mean min_lr? "
        "allowed here: beta1, beta2, clip_grad, eps, lr, min_lr, weight_decay",
    ]


def test_a_missing_section_names_the_keys_that_it_cannot_do_without(project: PencilProject) -> None:
    project.edit("pretrain.yaml", "checkpoint:", "logging:")
    assert "checkpoint: required and not set; it needs interval_tokens\n" in refusal(project) + "\n"


def test_a_key_of_another_section_is_shown_where_it_belongs(project: PencilProject) -> None:
    assert "did you mean training.sequence_length? " in refusal(project, "optimizer.sequence_length=8")


def test_a_word_of_megatrons_command_line_is_translated(project: PencilProject) -> None:
    assert "unknown key; here it is budget.tokens; " in refusal(project, "training.train_iters=8")


@pytest.mark.parametrize("key", ELSEWHERE.values())
def test_a_translation_leads_to_a_key_that_is_there(key: str) -> None:
    assert field_at(Recipe, parse_key(key)) is not None


def test_the_name_of_a_source_has_plain_characters(project: PencilProject) -> None:
    project.edit("a.yaml", "source: a", "source: a/b")
    assert refusal(project) == (
        "a.yaml:1: source: 'a/b' is not allowed; Name of the source, for people: letters, digits, '_' and '-'."
    )


def test_all_problems_come_sorted_by_file_and_line(project: PencilProject) -> None:
    project.edit("model.yaml", "hidden_size: 64", "hidden_size: 0")
    project.edit("pretrain.yaml", "precision: fp32", "precision: fp16")
    project.edit("pretrain.yaml", "tokens: 640", "tokens: -1")
    project.edit("a.yaml", "domain: math", "domain: poetry")
    assert refusal(project).splitlines() == [
        "4 problems",
        "a.yaml:4: domain: 'poetry' is not allowed; use one of: code, general, math, science",
        "model.yaml:3: model.hidden_size: 0 is out of range; it must be greater than 0",
        "pretrain.yaml:8: budget.tokens: -1 is negative; a count is 0 or more",
        "pretrain.yaml:16: precision: 'fp16' is not allowed; use one of: bf16, fp32",
    ]


def test_a_wrong_layer_symbol_has_a_caret_and_its_line(project: PencilProject) -> None:
    project.edit("model.yaml", "M-M*M-", "M-X*M-")
    assert refusal(project).splitlines() == [
        "model.yaml:2: model.hybrid_layer_pattern: 'X' is no layer symbol; "
        "use M Mamba-2, * attention, - MLP, | pipeline cut",
        "    M-X*M-",
        "      ^",
    ]


def test_a_value_in_the_place_of_a_section_is_refused_with_its_keys(project: PencilProject) -> None:
    assert refusal(project, "logging=3") == (
        "--set logging=3: logging: 3 is no section; write its keys below it: loss_spike_nats, "
        "norms_interval_steps, rank_times, tensorboard, wandb_project"
    )


def test_a_boolean_is_not_made_from_a_word(project: PencilProject) -> None:
    assert refusal(project, "logging.tensorboard=yes") == (
        "--set logging.tensorboard=yes: logging.tensorboard: 'yes' is not allowed; write true or false"
    )


def test_a_number_is_not_taken_for_text(project: PencilProject) -> None:
    assert refusal(project, "logging.wandb_project=3").endswith(
        "logging.wandb_project: 3 is no text; put it in quotes; Weights & Biases project; needs the wandb extra."
    )


def test_an_element_of_a_list_is_refused_with_what_the_list_takes(project: PencilProject) -> None:
    assert refusal(project, "training.recompute_modules=[mlp,norm]").endswith(
        "'norm' is not allowed; use a list, each one of: core_attn, mlp"
    )


def test_a_blend_that_is_no_list_is_refused(project: PencilProject) -> None:
    assert refusal(project, "data.blend=all").endswith(
        "data.blend: 'all' is no list; write one element a line, each after '- '"
    )


def test_an_empty_blend_is_refused(project: PencilProject) -> None:
    assert refusal(project, "data.blend=[]").endswith("data.blend: an empty list; it needs at least one element")


@pytest.mark.parametrize(
    ("entry", "wrong"), [("share: 1.2", "share: 1.2 is out"), ("share: 1, cursor: fress", "cursor: 'fress' is not")]
)
def test_a_blend_whose_only_entry_is_wrong_is_not_called_empty(project: PencilProject, entry: str, wrong: str) -> None:
    text = refusal(project, f"data.blend=[{{source: a.yaml, {entry}}}]")
    assert f"data.blend[0].{wrong}" in text
    assert "problems" not in text


def test_a_missing_source_of_an_option_is_sought_from_the_working_directory(project: PencilProject) -> None:
    text = refusal(project, "data.blend=[{source: nope.yaml, share: 1}]")
    assert text.endswith("nope.yaml: no such file; write a path relative to the working directory")
    assert refusal(project, "continue=nope.yaml").endswith("of a stage recipe relative to the working directory")


def test_shares_must_sum_to_one(project: PencilProject) -> None:
    assert refusal(project, "data.blend[0].share=0.5") == (
        "--set data.blend[0].share=0.5: data.blend: "
        "shares 0.5 + 0.25 sum to 0.75, must sum to 1; raise them by 0.25 in all"
    )


def test_one_source_may_not_stand_in_a_blend_twice(project: PencilProject) -> None:
    assert refusal(project, "data.blend[1].source=a.yaml") == (
        "--set data.blend[1].source=a.yaml: data.blend[1].source: a.yaml stands in blend[0] already; "
        "give one entry both shares"
    )


def test_a_missing_source_file_has_the_line_that_names_it(project: PencilProject) -> None:
    (project.root / "b.yaml").unlink()
    assert refusal(project) == (
        "pretrain.yaml:7: data.blend[1].source: b.yaml: no such file; write a path relative to the file it stands in"
    )


def test_a_source_file_that_is_no_yaml_joins_the_other_problems(project: PencilProject) -> None:
    (project.root / "b.yaml").write_text("source: b\nsource: c\n")
    text = refusal(project, "precision=fp16")
    assert "--set precision=fp16: precision" in text
    assert 'b.yaml:2: key "source" stands twice' in text


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ("model.mamba_num_groups=3", "model.mamba_num_groups: 3 does not divide mamba_num_heads 8; legal: 1, 2, 4, 8"),
        ("model.num_query_groups=3", "model.num_query_groups: 3 does not divide num_attention_heads 4; legal: 1, 2, 4"),
        ("model.mamba_num_heads=0", "model.mamba_num_heads: 0, but the pattern has Mamba-2 layers (M)"),
        ("model.ffn_hidden_size=0", "model.ffn_hidden_size: 0, but the pattern has MLP layers (-)"),
        ("optimizer.min_lr=1", "optimizer.min_lr: 1.0 is above lr 0.003"),
        ("schedule.decay_tokens=null", "schedule.decay_tokens: not set, but style wsd ends in a decay"),
        ("schedule.style=cosine", "schedule.decay_tokens: 256 is read with style wsd only, and style is cosine"),
        ("parallel.sequence_parallel=true", "parallel.sequence_parallel: true, but tensor_model_parallel_size is 1"),
    ],
)
def test_keys_that_contradict_each_other_are_refused(project: PencilProject, override: str, problem: str) -> None:
    assert problem in refusal(project, override)


def test_rope_needs_an_even_head_width(project: PencilProject) -> None:
    text = refusal(project, "model.position_embedding_type=rope", "model.kv_channels=15")
    assert "model.kv_channels: 15 is odd" in text


def test_rules_of_sound_sections_are_checked_beside_a_broken_one(project: PencilProject) -> None:
    text = refusal(project, "precision=fp16", "model.num_query_groups=3")
    assert text.startswith("2 problems\n")
    assert "does not divide num_attention_heads 4" in text


def test_a_step_of_more_tokens_than_core_counts_is_refused(project: PencilProject) -> None:
    """2^27 rows of 16 tokens are 2^31, one more than an int32 holds."""
    assert (
        "training.global_batch_size: 134,217,728 x training.sequence_length 16 tokens = 2,147,483,648 divide the "
        "gradient of a step, and core counts to 2,147,483,647; lower it to 134,217,727 or less"
    ) in refusal(project, "training.global_batch_size=134217728")
    project.load("training.global_batch_size=134217727")
