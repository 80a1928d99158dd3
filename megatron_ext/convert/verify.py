"""Whether a written Hugging Face model computes what the checkpoint computes.

Both models are built whole, in float32 and with the exported weights: the checkpoint's, through Megatron-Core's own
names of its parameters, and the folder's, through `transformers`. They read random tokens and, where the tokenizer
makes some of them, sentences. Lengths lie below, at and far above the chunks in which either scans (64 and 128).

Memory: twice the model in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import ShardedTensor, apply_factories
from torch import Tensor

from data_tools.errors import DataError, SetupError
from data_tools.tokenizer import Tokenizer
from megatron_ext.convert.giver import Giver
from megatron_ext.convert.hf_config import NO_FLOOR
from megatron_ext.convert.imported_plan import plan_of
from megatron_ext.convert.torch_dist import TorchDistWeights
from megatron_ext.models.build import build_model
from megatron_ext.models.weights import sharded_weights
from megatron_ext.runtime.device import device
from megatron_ext.runtime.launch import Launch
from megatron_ext.runtime.parallel import process_groups

TOLERANCE, TOLERANCE_PER_LAYER = 1e-5, 1e-6
"""Of the largest logit, or of 1 where all are smaller; the larger of the two, the second times the layers. Float32 has
6e-8, and both models add up the same products in another order: 4e-7 was measured with 6 fresh layers, 5e-6 with 52
whose matrices were eight times larger than fresh ones. A wrong row, norm or epsilon moves logits by 1e-3 and more."""

LENGTHS = (5, 128, 700)
SENTENCES = (
    "The quick brown fox jumps over the lazy dog.",
    "To find 17 * 24, first compute 17 * 20 = 340, then 17 * 4 = 68, and add them: 408.",
    "def add(a, b):\n    return a + b\n",
)


def verify_export(
    giver: Giver, folder: Path, *, dtype: torch.dtype, say: Callable[[str], None], has_floor: bool = True
) -> float:
    """Compares logits of a checkpoint and of the Hugging Face model that was written of it.

    Args:
        giver: The checkpoint.
        folder: The model.
        dtype: To which weights were rounded when they were written.
        say: Takes a line for each prompt.
        has_floor: Whether transformers' `time_step_min` stays as config.json has it; without it an imported model
            computes what it does here.

    Returns:
        The largest difference, as a share of the largest logit (of 1 where all are smaller).

    Raises:
        DataError: It is above what is allowed.
        SetupError: transformers is not installed.
    """
    theirs = _transformers_model(folder, has_floor=has_floor)
    worst = 0.0
    with process_groups(Launch(rank=0, local_rank=0, world_size=1)) as groups, torch.no_grad():
        plan = plan_of(giver.model, giver.padded_vocab_size, giver.tokenizer, giver.facts, sequence_length=max(LENGTHS))
        ours = build_model(plan, groups, backend="local").eval()
        put_rounded(ours, groups, giver.weights, dtype)
        theirs = theirs.to(device())
        for what, tokens in _prompts(giver):
            tokens = tokens.to(device())
            mine = ours(tokens, torch.arange(tokens.shape[1], device=device())[None], None)
            other = theirs(tokens, use_cache=False).logits
            mine = mine[..., : other.shape[-1]]  # an imported vocabulary may have been padded
            difference, size = float((mine - other).abs().max()), max(1.0, float(other.abs().max()))
            say(f"verify: {what}, {tokens.shape[1]} tokens: logits up to {size:.3g} differ by {difference:.2e} at most")
            worst = max(worst, difference / size)
    allowed = max(TOLERANCE, TOLERANCE_PER_LAYER * len(plan.layout.hybrid_layer_pattern))
    say(f"verify: largest difference {worst:.2e} of the largest logit, allowed {allowed:.1e}")
    if not worst <= allowed:  # NaN too
        raise DataError(
            f"{giver.path}: transformers' logits differ from this project's by {worst:.2e} of the largest logit, "
            f"allowed are {allowed:.1e}; nothing was put in place. Do not use an export of this checkpoint: report "
            "its model and the versions that `megatron-ext doctor` prints."
        )
    return worst


def put_rounded(model: Any, groups: Any, weights: TorchDistWeights, dtype: torch.dtype) -> None:
    """Fills a model from a checkpoint, each weight rounded to `dtype`, under the names that core gives them."""
    sharded = sharded_weights(model, groups)
    apply_factories(sharded)
    for part in nested_values(sharded):
        if isinstance(part, ShardedTensor):
            part.data.copy_(weights.read(part.key).to(dtype))


def _transformers_model(folder: Path, *, has_floor: bool) -> Any:
    try:
        from transformers import AutoConfig, AutoModelForCausalLM
    except ImportError:
        raise SetupError("transformers is not installed; install the extra: pip install 'megatron-ext[hf]'") from None
    config = AutoConfig.from_pretrained(folder)
    if not has_floor and hasattr(config, "time_step_min"):
        config.time_step_min = NO_FLOOR
    model, info = AutoModelForCausalLM.from_pretrained(
        folder, config=config, dtype=torch.float32, output_loading_info=True
    )
    problems = {key: sorted(map(str, value)) for key, value in info.items() if value}
    if problems:
        raise DataError(f"{folder}: transformers does not load it as it is: {problems}")
    return model.eval()


def _prompts(giver: Giver) -> Iterator[tuple[str, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    for length in LENGTHS:
        yield "random tokens", torch.randint(giver.facts.vocab_size, (1, length), generator=generator)
    tokenizer = Tokenizer.load(giver.tokenizer)
    for sentence in SENTENCES:
        if ids := tokenizer.encode(sentence):
            yield repr(f"{sentence[:20]}…"), torch.tensor([ids])
