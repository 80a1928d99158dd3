"""An rl stage in the words of verl, trained there by Megatron-Core and sampled by vLLM.

Source of keys and meanings: verl 0.9.0, `verl/trainer/config/_generated_ppo_megatron_trainer.yaml`,
`verl/trainer/ppo/core_algos.py`, `verl/workers/rollout/vllm_rollout/vllm_async_server.py`.
"""

from __future__ import annotations

from megatron_ext.handoff.facts import StageFacts
from megatron_ext.handoff.settings import Lost, Setting

CHECKED_VERSION = "verl v0.9.0"
CONFIG, TRAIN, VALIDATION, REWARDS, SCRIPT = "verl.yaml", "train.parquet", "validation.parquet", "rewards.py", "run.sh"

HEAD = (
    "hydra:",
    "  searchpath: [pkg://verl.trainer.config]",
    "defaults:",
    "  - ppo_trainer",
    "  - override model_engine: megatron",
    "  - _self_",
)

_KL = {"k1": "kl", "k2": "mse", "k3": "low_var_kl"}
_AGGREGATION = {"token": "token-mean", "sequence": "seq-mean-token-mean", "group-sum": "seq-mean-token-sum-norm"}
_NO_CLIP = 1e9
"""Above exp(20), where verl cuts every ratio: its second clip never acts."""

_ACTOR, _ROLLOUT, _MEGATRON = "actor_rollout_ref.actor", "actor_rollout_ref.rollout", "actor_rollout_ref.actor.megatron"


def verl_settings(facts: StageFacts) -> list[Setting]:
    """Every value of verl's configuration that the stage decides, and those that our models need.

    Args:
        facts: The stage.
    """
    return [*_data(facts), *_model(facts), *_loss(facts), *_optimizer(facts), *_rollout(facts), *_run(facts)]


def _data(facts: StageFacts) -> list[Setting]:
    rl, folder = facts.rl, facts.folder
    return [
        Setting("data.train_files", str(folder / TRAIN), "rl.prompts", "in the order in which our stage draws them"),
        Setting("data.val_files", str(folder / VALIDATION), "rl.prompts[0].validation_prompts"),
        Setting("data.shuffle", False, "seed", "the order of the rows is the seed's"),
        Setting("data.validation_shuffle", False, "", "as here"),
        Setting("data.train_batch_size", facts.plan.batch.global_batch_size, "training.global_batch_size", "prompts"),
        Setting("data.max_prompt_length", rl.max_prompt_tokens, "rl.max_prompt_tokens"),
        Setting("data.max_response_length", rl.max_new_tokens, "rl.max_new_tokens"),
        Setting("data.filter_overlong_prompts", False, "rl.overlong_prompts", "left out of the rows already"),
        Setting("data.truncation", "error", "rl.overlong_prompts"),
    ]


def _model(facts: StageFacts) -> list[Setting]:
    layout, recompute = facts.plan.layout, facts.plan.execution.recompute
    override = f"{_MEGATRON}.override_transformer_config"
    full = recompute == "full"
    layers = facts.plan.execution.recompute_num_layers if full else None
    return [
        Setting("actor_rollout_ref.model.path", str(facts.folder / "model"), "init_from"),
        Setting(
            "actor_rollout_ref.model.use_remove_padding",
            False,
            "data.document_isolation",
            "in a packed row, SSM states would pass from one completion to the next",
        ),
        Setting(f"{_MEGATRON}.use_remove_padding", False, "data.document_isolation", "the same"),
        Setting(f"{_MEGATRON}.use_mbridge", True, "", "reads the HF checkpoint"),
        Setting(f"{_MEGATRON}.vanilla_mbridge", False, "", "Megatron-Bridge, which has Nemotron-H"),
        Setting(
            f"{_MEGATRON}.tensor_model_parallel_size",
            layout.tensor_model_parallel_size,
            "parallel.tensor_model_parallel_size",
        ),
        Setting(f"{_MEGATRON}.pipeline_model_parallel_size", 1, "parallel.pipeline_model_parallel_size"),
        Setting(f"{_MEGATRON}.context_parallel_size", 1, "parallel.context_parallel_size"),
        Setting(f"{_MEGATRON}.sequence_parallel", layout.sequence_parallel, "parallel.sequence_parallel"),
        Setting(
            f"{_MEGATRON}.use_distributed_optimizer",
            layout.use_distributed_optimizer,
            "parallel.use_distributed_optimizer",
        ),
        Setting(f"{_MEGATRON}.dtype", "bfloat16", "precision"),
        Setting(f"{_MEGATRON}.seed", facts.plan.seed, "seed"),
        Setting(f"{override}.recompute_granularity", None if recompute == "none" else recompute, "training.recompute"),
        Setting(f"{override}.recompute_method", "uniform" if full else None, "training.recompute"),
        Setting(f"{override}.recompute_num_layers", layers, "training.recompute_num_layers"),
    ]


def _loss(facts: StageFacts) -> list[Setting]:
    rl = facts.rl
    estimator = "rloo" if rl.advantage == "leave-one-out" else "grpo"
    kl = _KL[rl.kl.estimator] + ("+" if rl.kl.weighted and rl.kl.estimator != "k2" else "")
    is_capped = rl.importance_cap is not None
    correction = "algorithm.rollout_correction"
    return [
        Setting("algorithm.adv_estimator", estimator, "rl.advantage"),
        Setting("algorithm.norm_adv_by_std_in_grpo", rl.advantage == "mean-std", "rl.advantage"),
        Setting("algorithm.use_kl_in_reward", False, "rl.kl.coefficient", "our KL stands in the loss"),
        Setting("algorithm.filter_groups.enable", rl.dynamic_sampling, "rl.dynamic_sampling"),
        Setting("algorithm.filter_groups.metric", "score" if rl.dynamic_sampling else None, "rl.dynamic_sampling"),
        Setting(f"{correction}.rollout_is", "token" if is_capped else None, "rl.importance_cap"),
        Setting(f"{correction}.rollout_is_threshold", rl.importance_cap or 2.0, "rl.importance_cap"),
        Setting(
            f"{_ACTOR}.ppo_mini_batch_size",
            rl.mini_batch_prompts or facts.plan.batch.global_batch_size,
            "rl.mini_batch_prompts",
            "verl counts prompts too",
        ),
        Setting(f"{_ACTOR}.ppo_epochs", rl.epochs, "rl.epochs"),
        Setting(f"{_ACTOR}.shuffle", False, "rl.epochs", "the same mini-batches in each of them"),
        Setting(f"{_ACTOR}.ppo_micro_batch_size_per_gpu", 1, "training.micro_batch_size", "one completion: no packing"),
        Setting(f"{_ACTOR}.clip_ratio", rl.clip_low, "rl.clip_low"),
        Setting(f"{_ACTOR}.clip_ratio_low", rl.clip_low, "rl.clip_low"),
        Setting(f"{_ACTOR}.clip_ratio_high", rl.clip_high, "rl.clip_high"),
        Setting(f"{_ACTOR}.clip_ratio_c", _NO_CLIP, "", "verl's second clip, which ours does not have, never acts"),
        Setting(f"{_ACTOR}.loss_agg_mode", _AGGREGATION[rl.aggregation], "rl.aggregation"),
        Setting(
            f"{_ACTOR}.loss_scale_factor",
            rl.max_new_tokens if rl.aggregation == "group-sum" else None,
            "rl.aggregation",
        ),
        Setting(f"{_ACTOR}.entropy_coeff", 0, "", "our loss has no entropy term"),
        Setting(f"{_ACTOR}.use_kl_loss", rl.kl.coefficient > 0, "rl.kl.coefficient"),
        Setting(f"{_ACTOR}.kl_loss_coef", float(rl.kl.coefficient), "rl.kl.coefficient"),
        Setting(f"{_ACTOR}.kl_loss_type", kl, "rl.kl.estimator"),
    ]


def _optimizer(facts: StageFacts) -> list[Setting]:
    optimizer, optim, core = facts.plan.optimizer, f"{_ACTOR}.optim", f"{_ACTOR}.optim.override_optimizer_config"
    return [
        Setting(f"{optim}.optimizer", "adam", "", "core's name of AdamW"),
        Setting(f"{optim}.lr", float(optimizer.lr), "optimizer.lr"),
        Setting(f"{optim}.min_lr", float(optimizer.min_lr), "optimizer.min_lr"),
        Setting(f"{optim}.weight_decay", float(optimizer.weight_decay), "optimizer.weight_decay"),
        Setting(f"{optim}.clip_grad", float(optimizer.clip_grad), "optimizer.clip_grad"),
        Setting(f"{core}.adam_beta1", optimizer.beta1, "optimizer.beta1", "verl does not pass `betas` to core"),
        Setting(f"{core}.adam_beta2", optimizer.beta2, "optimizer.beta2", "the same"),
        Setting(f"{core}.adam_eps", float(optimizer.eps), "optimizer.eps"),
        Setting(f"{optim}.lr_decay_style", facts.plan.schedule.style, "schedule.style"),
        Setting(f"{optim}.lr_warmup_steps", facts.warmup_steps, "schedule.warmup_ratio"),
        Setting(f"{optim}.lr_decay_steps", facts.plan.batch.total_steps, "budget.steps", "as planned"),
    ]


def _rollout(facts: StageFacts) -> list[Setting]:
    rl = facts.rl
    sampling = {
        "temperature": (float(rl.temperature), "rl.temperature"),
        "top_p": (float(rl.top_p), "rl.top_p"),
        "top_k": (rl.top_k or -1, "rl.top_k"),
    }
    vllm = f"{_ROLLOUT}.engine_kwargs.vllm"
    return [
        Setting(f"{_ROLLOUT}.name", "vllm", "", "has Nemotron-H"),
        Setting(f"{_ROLLOUT}.n", rl.samples_per_prompt, "rl.samples_per_prompt"),
        *(Setting(f"{_ROLLOUT}.{name}", *value) for name, value in sampling.items()),
        Setting(f"{_ROLLOUT}.max_model_len", facts.longest, "rl.max_new_tokens", "and rl.max_prompt_tokens"),
        Setting(f"{_ROLLOUT}.dtype", "bfloat16", "precision"),
        Setting(f"{_ROLLOUT}.seed", facts.plan.seed, "seed"),
        Setting(
            f"{_ROLLOUT}.tensor_model_parallel_size",
            facts.plan.layout.tensor_model_parallel_size,
            "parallel.tensor_model_parallel_size",
        ),
        Setting(f"{_ROLLOUT}.calculate_log_probs", True, "rl.mismatch_threshold", "verl logs the mismatch"),
        Setting(f"{_ROLLOUT}.enable_prefix_caching", False, "", "states of M layers are not made of blocks of tokens"),
        Setting(f"{vllm}.mamba_ssm_cache_dtype", "float32", "", "as our engine keeps SSM states"),
        Setting(f"{_ROLLOUT}.log_prob_micro_batch_size_per_gpu", 1, "training.micro_batch_size"),
        Setting("actor_rollout_ref.ref.log_prob_micro_batch_size_per_gpu", 1, "training.micro_batch_size"),
        Setting(f"{_ROLLOUT}.val_kwargs.n", rl.validation_samples, "rl.validation_samples"),
        Setting(f"{_ROLLOUT}.val_kwargs.do_sample", True, "rl.validation_samples", "held-out answers are sampled"),
        *(Setting(f"{_ROLLOUT}.val_kwargs.{name}", *value) for name, value in sampling.items()),
        Setting("reward.custom_reward_function.path", str(facts.folder / REWARDS), "rl.rewards"),
        Setting("reward.custom_reward_function.name", "compute_score", "rl.rewards"),
    ]


def _run(facts: StageFacts) -> list[Setting]:
    plan, (nodes, gpus) = facts.plan, facts.nodes
    return [
        Setting("trainer.project_name", "megatron_ext", "", "ours"),
        Setting("trainer.experiment_name", plan.stage_id, "", "the id of our stage"),
        Setting("trainer.logger", ["console"], "logging", "add what is there, such as wandb"),
        Setting("trainer.nnodes", nodes, "", "the planned number of processes: --world-size"),
        Setting("trainer.n_gpus_per_node", gpus, "", "the same"),
        Setting("trainer.total_epochs", 1, "budget.epochs", "passes are written out as rows"),
        Setting("trainer.total_training_steps", plan.batch.total_steps, "budget.steps", "as planned"),
        Setting("trainer.val_before_train", True, "", "as here"),
        Setting(
            "trainer.test_freq",
            plan.cadence.validation_interval_steps,
            "training.validation_interval_tokens",
            "steps",
        ),
        Setting(
            "trainer.save_freq",
            plan.cadence.checkpoint_interval_steps,
            "checkpoint.interval_tokens",
            facts.when_saved,
        ),
        Setting("trainer.max_actor_ckpt_to_keep", plan.cadence.checkpoint_keep_last, "checkpoint.keep_last"),
        Setting("trainer.default_local_dir", str(facts.folder / "checkpoints"), "", "ours"),
    ]


def lost_in_verl(facts: StageFacts) -> list[Lost]:
    """What the stage asks for and verl does not do.

    Args:
        facts: The stage.
    """
    rl, lost = facts.rl, []
    if facts.plan.precision == "fp32":
        lost.append(Lost("precision", "fp32: verl trains in bfloat16 with fp32 masters, and samples in bfloat16"))
    if rl.overlong == "mask":
        lost.append(Lost("rl.overlong", "mask: verl learns from completions that were cut off as from any other"))
    if rl.overlong == "soft-penalty":
        what = f"soft-penalty over {rl.overlong_penalty_tokens:,} tokens: the reward function sees text, not tokens"
        lost.append(Lost("rl.overlong", f"{what}; verl's reward manager dapo has such a penalty"))
    if rl.kl.weighted and rl.kl.estimator != "k2":
        lost.append(
            Lost("rl.kl.weighted", "true: verl's `+` gives the gradient of k2, which on policy has the same mean")
        )
    if rl.kl.coefficient and rl.kl.estimator == "k3":
        lost.append(Lost("rl.kl.estimator", "k3: verl cuts it to at most 10, and its logarithm to 20"))
    if rl.dynamic_sampling:
        what = "true: verl draws until a step is full, and never learns from what is flat; ours gives up and counts it"
        lost.append(Lost("rl.dynamic_sampling", what))
    return lost
