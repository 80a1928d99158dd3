"""A stage's id follows its meaning and nothing else; every key of the schema is tried."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from megatron_ext.plan.meaning import canonical_json, stage_id
from megatron_ext.recipe.keys import key_name, leaf_keys, role_of
from megatron_ext.recipe.schema import Recipe
from tests.support.pencil_project import PencilProject, make_pencil_project

RAMP = ["training.ramp_start_batch_size=2", "training.ramp_increment=2", "training.ramp_tokens=320"]
MEANING = {
    "model.hybrid_layer_pattern": ["model.hybrid_layer_pattern=M-M*M"],
    "model.hidden_size": ["model.hidden_size=32"],
    "model.vocab_size": ["model.vocab_size=2000"],
    "model.ffn_hidden_size": ["model.ffn_hidden_size=64"],
    "model.num_attention_heads": ["model.num_attention_heads=8"],
    "model.num_query_groups": ["model.num_query_groups=4"],
    "model.kv_channels": ["model.kv_channels=8"],
    "model.mamba_num_heads": ["model.mamba_num_heads=4"],
    "model.mamba_head_dim": ["model.mamba_head_dim=8"],
    "model.mamba_state_dim": ["model.mamba_state_dim=8"],
    "model.mamba_num_groups": ["model.mamba_num_groups=4"],
    "model.position_embedding_type": ["model.position_embedding_type=rope"],
    "model.share_embeddings_and_output_weights": ["model.share_embeddings_and_output_weights=true"],
    "model.layernorm_epsilon": ["model.layernorm_epsilon=1e-6"],
    "model.init_method_std": ["model.init_method_std=0.01"],
    "data.blend[0].share": ["data.blend[0].share=0.5", "data.blend[1].share=0.5"],
    "data.document_isolation": ["data.document_isolation=full"],
    "data.packing": ["data.packing=best_fit"],
    "data.long_documents": ["data={packing: best_fit, long_documents: truncate}"],
    "budget.tokens": ["budget.tokens=1280"],
    "training.sequence_length": ["training.sequence_length=8", "training.global_batch_size=8"],
    "training.global_batch_size": ["training.global_batch_size=8"],
    "training.ramp_tokens": RAMP,
    "training.ramp_start_batch_size": [*RAMP, "training.ramp_start_batch_size=1", "training.ramp_increment=3"],
    "training.ramp_increment": [*RAMP, "training.ramp_increment=1"],
    "optimizer.lr": ["optimizer.lr=2e-3"],
    "optimizer.min_lr": ["optimizer.min_lr=0"],
    "optimizer.weight_decay": ["optimizer.weight_decay=0"],
    "optimizer.beta1": ["optimizer.beta1=0.8"],
    "optimizer.beta2": ["optimizer.beta2=0.99"],
    "optimizer.eps": ["optimizer.eps=1e-5"],
    "optimizer.clip_grad": ["optimizer.clip_grad=0"],
    "schedule.style": ["schedule={style: cosine, decay_tokens: null}"],
    "schedule.warmup_tokens": ["schedule.warmup_tokens=64"],
    "schedule.warmup_ratio": ["schedule={warmup_tokens: 0, warmup_ratio: 0.5}"],
    "schedule.decay_tokens": ["schedule.decay_tokens=128"],
    "schedule.horizon_tokens": ["schedule.horizon_tokens=1280"],
    "schedule.decay_style": ["schedule.decay_style=cosine"],
    "precision": ["precision=bf16"],
    "seed": ["seed=1"],
}
PLACEMENT = {
    "data.blend[0].max_epochs": ["data.blend[0].max_epochs=2"],
    "data.blend[0].min_epochs": ["data.blend[0].min_epochs=0.2"],
    "model.name": ["model.name=other"],
    "training.micro_batch_size": ["training.micro_batch_size=2"],
    "training.max_steps": ["training.max_steps=2"],
    "training.validation_interval_tokens": ["training.validation_interval_tokens=64"],
    "training.validation_tokens": ["training.validation_tokens=16"],
    "training.backend": ["training.backend=local"],
    "training.recompute": ["training.recompute=full"],
    "training.recompute_modules": ["training={recompute: selective, recompute_modules: [mlp]}"],
    "training.recompute_num_layers": ["training={recompute: full, recompute_num_layers: 2}"],
    "training.cuda_graphs": ["training.cuda_graphs=true"],
    "training.deterministic": ["training.deterministic=true"],
    "training.gc_interval_steps": ["training.gc_interval_steps=100"],
    "training.max_skipped_steps": ["training.max_skipped_steps=3"],
    "parallel.tensor_model_parallel_size": ["parallel.tensor_model_parallel_size=2"],
    "parallel.pipeline_model_parallel_size": ["parallel.pipeline_model_parallel_size=2"],
    "parallel.context_parallel_size": ["parallel.context_parallel_size=2"],
    "parallel.sequence_parallel": ["parallel={tensor_model_parallel_size: 2, sequence_parallel: true}"],
    "parallel.tp_comm_overlap": [
        "parallel={tensor_model_parallel_size: 2, sequence_parallel: true, tp_comm_overlap: true}"
    ],
    "parallel.use_distributed_optimizer": ["parallel.use_distributed_optimizer=true"],
    "parallel.overlap_grad_reduce": ["parallel.overlap_grad_reduce=true"],
    "parallel.overlap_param_gather": [
        "parallel={use_distributed_optimizer: true, overlap_grad_reduce: true, overlap_param_gather: true}"
    ],
    "checkpoint.interval_tokens": ["checkpoint.interval_tokens=64"],
    "checkpoint.keep_last": ["checkpoint.keep_last=1"],
    "checkpoint.keep_every_tokens": ["checkpoint.keep_every_tokens=640"],
    "checkpoint.optimizer_format": [
        "checkpoint.optimizer_format=dp_reshardable",
        "parallel.use_distributed_optimizer=true",
    ],
    "checkpoint.async_save": ["checkpoint.async_save=true"],
    "logging.tensorboard": ["logging.tensorboard=false"],
    "logging.wandb_project": ["logging.wandb_project=x"],
    "logging.norms_interval_steps": ["logging.norms_interval_steps=5"],
    "logging.loss_spike_nats": ["logging.loss_spike_nats=2"],
    "logging.rank_times": ["logging.rank_times=true"],
    "profile.steps": ["profile.steps=5-7"],
}
BESIDE = {"parallel.context_parallel_size": ["training.sequence_length=32"]}
"""What a key of the placement needs: ranks that share a row take none so short."""

UNTRIED = {
    "stage",
    "fp8.recipe",  # with bf16 and widths that fit: test_fp8.py
    "fp8.format",
    "fp8.bf16_edge_layers",
    "resize_vocabulary",  # beside init_from only: test_new_tokens.py
    "budget.examples",  # of stage sft, like the section: test_plan_sft.py
    "sft.draw",
    "sft.passes",
    "sft.overlong",
    "sft.untrained",
    "sft.batch_unit",
    "sft.pad_multiple",
    "sft.loss",
    "sft.loss_switch_tokens",
    "model.activation",  # one value only
    "budget.steps",  # of stage rl, like the section: test_plan_rl.py
    "budget.prompts",
    "budget.epochs",
    "model.rotary_base",  # tried with RoPE below
    "data.tokenizer",  # by content: tried below
    "data.blend[0].source",
    "continue",  # these need a stage before, or a phase: test_chain.py, test_init_from.py
    "init_from",
    "data.blend[0].cursor",
    "data.phases[0].tokens",
    "data.phases[0].blend[0].source",
    "data.phases[0].blend[0].share",
    "data.phases[0].blend[0].cursor",
    "data.phases[0].blend[0].max_epochs",
    "data.phases[0].blend[0].min_epochs",
}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> PencilProject:
    return make_pencil_project(tmp_path_factory.mktemp("meaning"))


@pytest.fixture
def own_project(tmp_path: Path) -> PencilProject:
    return make_pencil_project(tmp_path / "own")


@pytest.fixture(scope="module")
def base_id(project: PencilProject) -> str:
    return project.plan().stage_id


def test_every_key_of_the_schema_is_tried() -> None:
    keys = {key_name(leaf) for leaf in leaf_keys(Recipe) if leaf[0] != "rl"}
    assert keys == MEANING.keys() | PLACEMENT.keys() | UNTRIED


@pytest.mark.parametrize("key", MEANING)
def test_a_key_of_the_meaning_changes_the_id(project: PencilProject, base_id: str, key: str) -> None:
    assert project.plan(*MEANING[key]).stage_id != base_id


@pytest.mark.parametrize("key", PLACEMENT)
def test_a_key_of_the_placement_leaves_the_id(project: PencilProject, base_id: str, key: str) -> None:
    assert project.load(*PLACEMENT[key]).recipe != project.load().recipe
    beside = BESIDE.get(key, [])
    expected = project.plan(*beside).stage_id if beside else base_id
    assert project.plan(*beside, *PLACEMENT[key]).stage_id == expected


def test_what_no_layer_reads_leaves_the_id(own_project: PencilProject) -> None:
    own_project.edit("model.yaml", '"M-M*M-"', '"*-*-"')
    before = own_project.plan().stage_id
    assert own_project.plan("model.mamba_state_dim=8").stage_id == before
    assert own_project.plan("model.ffn_hidden_size=256").stage_id != before
    constant = ("schedule={style: constant, warmup_tokens: 128, decay_tokens: null}",)
    assert own_project.plan(*constant).stage_id == own_project.plan(*constant, "optimizer.min_lr=0").stage_id


def test_explain_and_the_hash_agree_on_every_key() -> None:
    roles = {key_name(leaf): role_of(leaf) for leaf in leaf_keys(Recipe) if leaf[0] != "rl"}  # of rl: test_plan_rl.py
    assert {key for key, role in roles.items() if role == "placement"} == PLACEMENT.keys() | {
        "data.phases[0].blend[0].max_epochs",
        "data.phases[0].blend[0].min_epochs",
        "sft.untrained",
    }
    assert {key for key, role in roles.items() if role == "meaning (by content)"} == {
        "continue",
        "init_from",
        "data.tokenizer",
        "data.blend[0].source",
        "data.phases[0].blend[0].source",
    }


def test_more_ranks_leave_the_id(project: PencilProject, base_id: str) -> None:
    assert project.plan(world_size=4).stage_id == base_id


def test_cuts_of_the_pattern_leave_the_id(project: PencilProject, base_id: str) -> None:
    overrides = ("model.hybrid_layer_pattern=M-|M*M-", "parallel.pipeline_model_parallel_size=2")
    assert project.plan(*overrides).stage_id == base_id


def test_a_vocabulary_of_equal_padding_leaves_the_id(project: PencilProject, base_id: str) -> None:
    assert project.plan("model.vocab_size=1024").stage_id == base_id


def test_the_rope_base_counts_with_rope_only(project: PencilProject, base_id: str) -> None:
    assert project.plan("model.rotary_base=500000").stage_id == base_id
    rope = "model.position_embedding_type=rope"
    assert project.plan(rope, "model.rotary_base=500000").stage_id != project.plan(rope).stage_id


def test_the_shape_of_a_final_decay_counts_with_wsd_only(project: PencilProject) -> None:
    cosine = "schedule={style: cosine, decay_tokens: null}"
    assert project.plan(cosine, "schedule.decay_style=cosine").stage_id == project.plan(cosine).stage_id


def test_budgets_that_round_to_the_same_steps_are_one_stage(project: PencilProject, base_id: str) -> None:
    assert project.plan("budget.tokens=650").stage_id == base_id


def test_moved_data_leaves_the_id(own_project: PencilProject, base_id: str) -> None:
    shutil.move(own_project.root / "data", own_project.root / "elsewhere")
    own_project.edit("site.yaml", "/data\n", "/elsewhere\n")
    assert own_project.plan().stage_id == base_id


def test_renamed_sources_leave_the_id(own_project: PencilProject, base_id: str) -> None:
    own_project.edit("a.yaml", "source: a\n", "source: renamed\n")
    assert own_project.plan().stage_id == base_id


def test_the_order_of_the_blend_changes_the_id(project: PencilProject, base_id: str) -> None:
    a, b = project.root / "a.yaml", project.root / "b.yaml"
    swapped = f"data.blend=[{{source: {b}, share: 0.25}}, {{source: {a}, share: 0.75}}]"
    assert project.plan(swapped).stage_id != base_id


def test_other_tokens_change_the_id(own_project: PencilProject, base_id: str) -> None:
    own_project.write_dataset("a", tokens=1_010)
    assert own_project.plan().stage_id != base_id


def test_other_held_out_tokens_leave_the_id(own_project: PencilProject, base_id: str) -> None:
    own_project.write_dataset("a.validation", tokens=80)
    assert own_project.plan().stage_id == base_id


def test_another_tokenizer_changes_the_id(own_project: PencilProject, base_id: str) -> None:
    file = own_project.root / "data" / "tokenizer" / "tokenizer.json"
    file.write_text(file.read_text() + "\n")
    for name, tokens in {"a": 1000, "b": 400, "a.validation": 64, "b.validation": 64}.items():
        own_project.write_dataset(name, tokens=tokens)
    assert own_project.plan().stage_id != base_id


def test_the_id_can_be_computed_from_a_saved_plan(project: PencilProject, base_id: str) -> None:
    saved = json.loads(project.plan().model_dump_json())
    assert stage_id(saved["meaning"]) == base_id


def test_the_id_is_the_stage_and_16_digits(base_id: str) -> None:
    stage, _, digits = base_id.partition("-")
    assert (stage, len(digits)) == ("pretrain", 16)
    int(digits, 16)


def test_canonical_json_does_not_hang_on_the_order_of_keys() -> None:
    assert canonical_json({"b": 1, "a": {"d": 0.1, "c": None}}) == '{"a":{"c":null,"d":0.1},"b":1}'


def test_a_number_that_is_none_has_no_canonical_form() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical_json({"lr": float("nan")})
