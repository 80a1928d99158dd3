"""An rl stage in the words of NeMo-RL, trained there by Megatron-Core and sampled by vLLM.

Source of keys and meanings: NeMo-RL 0.7.0, `examples/configs/grpo_math_1B.yaml` and `grpo_math_1B_megatron.yaml`,
`nemo_rl/algorithms/loss/loss_functions.py`, `nemo_rl/data/processors.py`, and for hybrid models
`examples/nemo_gym/grpo_workplace_assistant_nemotron_nano_v2_9b.yaml`.
"""

from __future__ import annotations

from megatron_ext.handoff.facts import StageFacts
from megatron_ext.handoff.settings import Lost, Setting

CHECKED_VERSION = "NeMo-RL v0.7.0"
CONFIG, TRAIN, VALIDATION, SCRIPT, LAUNCHER = (
    "nemo_rl.yaml",
    "train.jsonl",
    "validation.jsonl",
    "run.sh",
    "run_nemo_rl.py",
)

HEAD = ("defaults: grpo_math_1B_megatron.yaml",)

ENVIRONMENT = "megatron_ext"
VERBATIM = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
"""A chat template that adds nothing: the rows hold prompts as our stage renders them."""

_MEGATRON, _GENERATION = "policy.megatron_cfg", "policy.generation"


def nemo_rl_settings(facts: StageFacts, *, stop_ids: frozenset[int], held_out: int) -> list[Setting]:
    """Every value of NeMo-RL's configuration that the stage decides, and those that our models need.

    Args:
        facts: The stage.
        stop_ids: Ids at which an answer ends.
        held_out: Rows of the validation file.
    """
    return [
        *_steps(facts, held_out),
        *_loss(facts),
        *_model(facts),
        *_optimizer(facts),
        *_generation(facts, stop_ids),
        *_data(facts),
        *_run(facts),
    ]


def _steps(facts: StageFacts, held_out: int) -> list[Setting]:
    rl, plan = facts.rl, facts.plan
    is_soft = rl.overlong == "soft-penalty"
    shaping = "grpo.reward_shaping"
    return [
        Setting("grpo.num_prompts_per_step", plan.batch.global_batch_size, "training.global_batch_size", "prompts"),
        Setting("grpo.num_generations_per_prompt", rl.samples_per_prompt, "rl.samples_per_prompt"),
        Setting("grpo.max_num_epochs", 1, "budget.epochs", "passes are written out as rows"),
        Setting("grpo.max_num_steps", plan.batch.total_steps, "budget.steps", "as planned"),
        Setting("grpo.normalize_rewards", rl.advantage == "mean-std", "rl.advantage"),
        Setting("grpo.use_leave_one_out_baseline", rl.advantage == "leave-one-out", "rl.advantage"),
        Setting("grpo.overlong_filtering", rl.overlong == "mask", "rl.overlong"),
        Setting(f"{shaping}.enabled", is_soft, "rl.overlong"),
        Setting(f"{shaping}.overlong_buffer_length", rl.overlong_penalty_tokens, "rl.overlong_penalty_tokens"),
        Setting(f"{shaping}.overlong_buffer_penalty", 1, "rl.overlong", "at most 1, as here"),
        Setting(f"{shaping}.max_response_length", rl.max_new_tokens, "rl.max_new_tokens"),
        Setting("grpo.use_dynamic_sampling", rl.dynamic_sampling, "rl.dynamic_sampling"),
        Setting("grpo.val_period", plan.cadence.validation_interval_steps, "training.validation_interval_tokens"),
        Setting("grpo.val_at_start", True, "", "as here"),
        Setting("grpo.max_val_samples", held_out, "rl.prompts[0].validation_prompts", "times rl.validation_samples"),
        Setting("grpo.val_batch_size", held_out, "rl.validation_samples", "rows of each prompt; all at once"),
        Setting("grpo.seed", plan.seed, "seed"),
    ]


def _loss(facts: StageFacts) -> list[Setting]:
    rl, loss = facts.rl, "loss_fn"
    is_capped = rl.importance_cap is not None
    return [
        Setting(f"{loss}.reference_policy_kl_penalty", float(rl.kl.coefficient), "rl.kl.coefficient"),
        Setting(f"{loss}.reference_policy_kl_type", rl.kl.estimator, "rl.kl.estimator"),
        Setting(f"{loss}.kl_input_clamp_value", None, "", "ours cuts nothing"),
        Setting(f"{loss}.kl_output_clamp_value", None, "", "ours cuts nothing"),
        Setting(f"{loss}.use_kl_in_reward", False, "rl.kl.coefficient", "our KL stands in the loss"),
        Setting(f"{loss}.ratio_clip_min", rl.clip_low, "rl.clip_low"),
        Setting(f"{loss}.ratio_clip_max", rl.clip_high, "rl.clip_high"),
        Setting(f"{loss}.ratio_clip_c", None, "", "ours has no second clip"),
        Setting(f"{loss}.token_level_loss", rl.aggregation == "token", "rl.aggregation"),
        Setting(f"{loss}.use_importance_sampling_correction", is_capped, "rl.importance_cap"),
        Setting(f"{loss}.truncated_importance_sampling_type", "tis" if is_capped else None, "rl.importance_cap"),
        Setting(f"{loss}.truncated_importance_sampling_ratio", rl.importance_cap, "rl.importance_cap"),
    ]


def _model(facts: StageFacts) -> list[Setting]:
    plan, layout, recompute = facts.plan, facts.plan.layout, facts.plan.execution.recompute
    granularity = "full" if recompute == "none" else recompute
    tensor = layout.tensor_model_parallel_size
    return [
        Setting("policy.model_name", str(facts.folder / "model"), "init_from"),
        Setting("policy.tokenizer.chat_template", VERBATIM, "", "prompts are rendered in the rows"),
        Setting("policy.train_global_batch_size", facts.samples_per_update, "rl.mini_batch_prompts", "in completions"),
        Setting("policy.train_micro_batch_size", 1, "training.micro_batch_size", "one completion: no packing"),
        Setting("policy.logprob_batch_size", 1, "training.micro_batch_size", "one completion: no packing"),
        Setting("policy.max_total_sequence_length", facts.longest, "rl.max_new_tokens", "and rl.max_prompt_tokens"),
        Setting("policy.precision", "bfloat16" if plan.precision == "bf16" else "float32", "precision"),
        Setting(
            "policy.sequence_packing.enabled",
            False,
            "data.document_isolation",
            "in a packed row, SSM states would pass from one completion to the next",
        ),
        Setting("policy.make_sequence_length_divisible_by", tensor, "parallel.tensor_model_parallel_size"),
        Setting("policy.max_grad_norm", float(plan.optimizer.clip_grad), "optimizer.clip_grad"),
        Setting(f"{_MEGATRON}.tensor_model_parallel_size", tensor, "parallel.tensor_model_parallel_size"),
        Setting(f"{_MEGATRON}.pipeline_model_parallel_size", 1, "parallel.pipeline_model_parallel_size"),
        Setting(f"{_MEGATRON}.context_parallel_size", 1, "parallel.context_parallel_size"),
        Setting(f"{_MEGATRON}.sequence_parallel", layout.sequence_parallel, "parallel.sequence_parallel"),
        Setting(f"{_MEGATRON}.activation_checkpointing", recompute != "none", "training.recompute"),
        Setting(f"{_MEGATRON}.recompute_granularity", granularity, "training.recompute"),
        Setting(f"{_MEGATRON}.apply_rope_fusion", False, "", "not every model of ours has rotary embeddings"),
    ]


def _optimizer(facts: StageFacts) -> list[Setting]:
    plan, optimizer = facts.plan, facts.plan.optimizer
    adam, scheduler = f"{_MEGATRON}.optimizer", f"{_MEGATRON}.scheduler"
    is_bf16 = plan.precision == "bf16"
    return [
        Setting(f"{adam}.lr", float(optimizer.lr), "optimizer.lr"),
        Setting(f"{adam}.min_lr", float(optimizer.min_lr), "optimizer.min_lr"),
        Setting(f"{adam}.weight_decay", float(optimizer.weight_decay), "optimizer.weight_decay"),
        Setting(f"{adam}.adam_beta1", optimizer.beta1, "optimizer.beta1"),
        Setting(f"{adam}.adam_beta2", optimizer.beta2, "optimizer.beta2"),
        Setting(f"{adam}.adam_eps", float(optimizer.eps), "optimizer.eps"),
        Setting(f"{adam}.bf16", is_bf16, "precision"),
        Setting(f"{adam}.use_precision_aware_optimizer", is_bf16, "precision"),
        Setting(
            f"{adam}.use_distributed_optimizer",
            plan.layout.use_distributed_optimizer,
            "parallel.use_distributed_optimizer",
        ),
        Setting(f"{_MEGATRON}.distributed_data_parallel_config.grad_reduce_in_fp32", True, "precision", "as here"),
        Setting(f"{scheduler}.lr_decay_style", plan.schedule.style, "schedule.style"),
        Setting(f"{scheduler}.lr_decay_iters", plan.batch.total_steps, "budget.steps", "as planned"),
        Setting(f"{scheduler}.lr_warmup_iters", facts.warmup_steps, "schedule.warmup_ratio"),
        Setting(f"{scheduler}.lr_warmup_init", 0.0, "schedule.warmup_ratio", "warmup begins at 0"),
    ]


def _generation(facts: StageFacts, stop_ids: frozenset[int]) -> list[Setting]:
    rl, tensor = facts.rl, facts.plan.layout.tensor_model_parallel_size
    return [
        Setting(f"{_GENERATION}.backend", "vllm", "", "has Nemotron-H"),
        Setting(f"{_GENERATION}.max_new_tokens", rl.max_new_tokens, "rl.max_new_tokens"),
        Setting(f"{_GENERATION}.temperature", float(rl.temperature), "rl.temperature"),
        Setting(f"{_GENERATION}.top_p", float(rl.top_p), "rl.top_p"),
        Setting(f"{_GENERATION}.top_k", rl.top_k or None, "rl.top_k"),
        Setting(f"{_GENERATION}.stop_token_ids", sorted(stop_ids), "data.tokenizer", "its control tokens"),
        Setting(f"{_GENERATION}.vllm_cfg.tensor_parallel_size", tensor, "parallel.tensor_model_parallel_size"),
        Setting(
            f"{_GENERATION}.vllm_cfg.max_model_len", facts.longest, "rl.max_new_tokens", "and rl.max_prompt_tokens"
        ),
        Setting(f"{_GENERATION}.vllm_kwargs.mamba_ssm_cache_dtype", "float32", "", "as our engine keeps SSM states"),
    ]


def _data(facts: StageFacts) -> list[Setting]:
    rewards, folder, environment = facts.rl.rewards, facts.folder, f"env.{ENVIRONMENT}"
    return [
        Setting("data.max_input_seq_length", facts.longest, "rl.max_prompt_tokens", "none of the rows is longer"),
        Setting("data.shuffle", False, "seed", "the order of the rows is the seed's"),
        Setting("data.train.dataset_name", "ResponseDataset", "", "a JSONL file"),
        Setting("data.train.data_path", str(folder / TRAIN), "rl.prompts", "in the order of our draws"),
        Setting("data.train.split_validation_size", 0, "rl.prompts[0].validation_prompts", "held out already"),
        Setting("data.validation.dataset_name", "ResponseDataset", "", "a JSONL file"),
        Setting("data.validation.data_path", str(folder / VALIDATION), "rl.prompts[0].validation_prompts"),
        Setting("data.default.input_key", "input", "", "of the rows"),
        Setting("data.default.output_key", "output", "", "of the rows"),
        Setting("data.default.prompt_file", None, "", "prompts are rendered in the rows"),
        Setting("data.default.system_prompt_file", None, "", "prompts are rendered in the rows"),
        Setting("data.default.processor", "math_hf_data_processor", "", "takes input and output as they are"),
        Setting("data.default.env_name", ENVIRONMENT, "rl.rewards"),
        Setting(f"{environment}.accuracy", float(rewards.accuracy), "rl.rewards.accuracy"),
        Setting(f"{environment}.format", float(rewards.format), "rl.rewards.format"),
        Setting(
            f"{environment}.accuracy_and_format", float(rewards.accuracy_and_format), "rl.rewards.accuracy_and_format"
        ),
        Setting(f"{environment}.timeout_s", float(rewards.timeout_s), "rl.rewards.timeout_s"),
        Setting(f"{environment}.on_error", rewards.on_error, "rl.rewards.on_error"),
    ]


def _run(facts: StageFacts) -> list[Setting]:
    plan, (nodes, gpus) = facts.plan, facts.nodes
    return [
        Setting("checkpointing.checkpoint_dir", str(facts.folder / "checkpoints"), "", "ours"),
        Setting("checkpointing.enabled", True, "checkpoint.interval_tokens"),
        Setting("checkpointing.metric_name", None, "checkpoint.keep_last", "the newest are kept"),
        Setting("checkpointing.keep_top_k", plan.cadence.checkpoint_keep_last, "checkpoint.keep_last"),
        Setting(
            "checkpointing.save_period",
            plan.cadence.checkpoint_interval_steps,
            "checkpoint.interval_tokens",
            facts.when_saved,
        ),
        Setting("logger.log_dir", str(facts.folder / "logs"), "logging"),
        Setting("cluster.num_nodes", nodes, "", "the planned number of processes: --world-size"),
        Setting("cluster.gpus_per_node", gpus, "", "the same"),
    ]


def lost_in_nemo_rl(facts: StageFacts) -> list[Lost]:
    """What the stage asks for and NeMo-RL does not do.

    Args:
        facts: The stage.
    """
    rl, lost = facts.rl, []
    if rl.aggregation == "group-sum":
        lost.append(Lost("rl.aggregation", "group-sum: NeMo-RL averages each completion, as with sequence"))
    if rl.epochs > 1:
        lost.append(Lost("rl.epochs", f"{rl.epochs}: NeMo-RL reads the completions of a step once"))
    if rl.kl.weighted:
        lost.append(Lost("rl.kl.weighted", "true: NeMo-RL's KL is not multiplied by the ratio"))
    if rl.dynamic_sampling:
        what = "true: NeMo-RL ends with an error behind dynamic_sampling_max_gen_batches; ours goes on"
        lost.append(Lost("rl.dynamic_sampling", what))
    lost.append(Lost("rl.samples_per_prompt", "NeMo-RL tells groups apart by their prompts; equal ones are one"))
    return lost
