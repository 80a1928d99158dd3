"""Our step time beside that of Megatron-LM's own `pretrain_hybrid.py`, with the same settings; one line of JSON.

    MEGATRON_LM=/path/to/Megatron-LM python -m tests.gpu.against_megatron [--model …] [--steps 20]

Needs a checkout of Megatron-LM at core_v0.19.0, whose `pretrain_hybrid.py` no wheel has. Its data is mock data; ours is
random tokens from a file. Its cross entropy is core's compiled one, because it refuses Transformer Engine's, which ours
has. `times_of_megatron_lm` is our median step over its own; the goal is at most 1.02.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from data_tools.strict_yaml import load_yaml
from megatron_ext.recipe.schema import ModelRecipe
from tests.gpu.benchmark import WARMUP_STEPS
from tests.gpu.part import REPOSITORY, module_words, read_json

MODEL = REPOSITORY / "recipes" / "models" / "hybrid_1b.yaml"
STEP_TIME = re.compile(r"elapsed time per iteration \(ms\): ([\d.]+)")


def options_of(model: ModelRecipe, *, rows: int, sequence_length: int, steps: int) -> list[str]:
    """The options of `pretrain_hybrid.py` that mean what our benchmark does: bf16, one GPU, AdamW, no recomputation."""
    numbers: dict[str, Any] = {
        "hybrid-layer-pattern": model.hybrid_layer_pattern,
        "hidden-size": model.hidden_size,
        "ffn-hidden-size": model.ffn_hidden_size,
        "num-attention-heads": model.num_attention_heads,
        "num-query-groups": model.num_query_groups,
        "kv-channels": model.kv_channels,
        "mamba-num-heads": model.mamba_num_heads,
        "mamba-head-dim": model.mamba_head_dim,
        "mamba-state-dim": model.mamba_state_dim,
        "mamba-num-groups": model.mamba_num_groups,
        "norm-epsilon": model.layernorm_epsilon,
        "init-method-std": model.init_method_std,
        "position-embedding-type": model.position_embedding_type,
        "normalization": "RMSNorm",
        "attention-dropout": 0.0,
        "hidden-dropout": 0.0,
        "tokenizer-type": "NullTokenizer",
        "vocab-size": model.vocab_size - 1,  # NullTokenizer adds an end-of-document id
        "make-vocab-size-divisible-by": 1024,
        "seq-length": sequence_length,
        "max-position-embeddings": sequence_length,
        "micro-batch-size": rows,
        "global-batch-size": rows,
        "train-iters": steps + WARMUP_STEPS,
        "lr": 1e-4,
        "min-lr": 1e-5,
        "lr-decay-style": "constant",
        "weight-decay": 0.1,
        "adam-beta1": 0.9,
        "adam-beta2": 0.95,
        "clip-grad": 1.0,
        "log-interval": 1,
        "eval-iters": 0,
        "cross-entropy-fusion-impl": "native",
        "seed": 1234,
    }
    flags = [
        "group-query-attention",
        "squared-relu",
        "disable-bias-linear",
        "bf16",
        "mock-data",
        "calculate-per-token-loss",
    ]
    flags += [
        "cross-entropy-loss-fusion",
        "no-create-attention-mask-in-dataloader",
        "accumulate-allreduce-grads-in-fp32",
    ]
    flags += ["no-save-optim", "no-save-rng"]
    if importlib.util.find_spec("fused_weight_gradient_mlp_cuda") is None:  # of apex; ours asks the same
        flags.append("no-gradient-accumulation-fusion")
    if not model.share_embeddings_and_output_weights:
        flags.append("untie-embeddings-and-output-weights")
    words = [word for name, value in numbers.items() for word in (f"--{name}", str(value))]
    spec = ["--spec", "megatron.core.models.hybrid.hybrid_layer_specs", "hybrid_stack_spec"]
    return [*words, *(f"--{flag}" for flag in flags), *spec]


def step_times(output: str) -> list[float]:
    """Milliseconds of each step that Megatron-LM's log tells."""
    return [float(found) for found in STEP_TIME.findall(output)]


def main() -> None:
    """Runs both, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=MODEL)
    parser.add_argument("--rows", type=int, default=1)
    parser.add_argument("--sequence-length", type=int, default=8192)
    parser.add_argument("--steps", type=int, default=20)
    args = parser.parse_args()
    checkout = Path(os.environ["MEGATRON_LM"])
    size = {"rows": args.rows, "sequence_length": args.sequence_length, "steps": args.steps}
    options = options_of(ModelRecipe(**load_yaml(args.model).data), **size)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=1"]
    alike = os.environ | {"CUDA_DEVICE_MAX_CONNECTIONS": "1"}
    with tempfile.TemporaryDirectory() as folder:
        theirs = subprocess.run(
            [*launcher, str(checkout / "pretrain_hybrid.py"), *options, "--data-cache-path", folder],
            cwd=checkout,
            env=alike | {"PYTHONPATH": str(checkout)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
    if theirs.returncode:
        sys.exit(f"{theirs.stdout[-8000:]}\npretrain_hybrid.py ended with {theirs.returncode}")
    ours = subprocess.run(
        [
            *module_words("benchmark", "--backend", "te", "--model", str(args.model)),
            *(word for name, value in size.items() for word in (f"--{name.replace('_', '-')}", str(value))),
        ],
        cwd=REPOSITORY, env=alike, stdout=subprocess.PIPE, text=True, check=True,
    )  # fmt: skip
    facts = read_json(ours.stdout, None)
    of_megatron = statistics.median(step_times(theirs.stdout)[WARMUP_STEPS:])
    print(json.dumps({**facts, "megatron_lm_ms": of_megatron, "times_of_megatron_lm": facts["step_ms"] / of_megatron}))


if __name__ == "__main__":
    main()
