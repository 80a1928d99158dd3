"""Initial parameters, the same in every layout.

Each parameter is drawn in its full size from a generator keyed by (seed, global name), then sliced for
its tensor-parallel rank. The global name counts layers over all pipeline stages, and a tied output layer
goes by the embedding's name. So neither the number of ranks nor the cuts of the pipeline change a weight.

| parameter                              | drawn from                                              |
|----------------------------------------|---------------------------------------------------------|
| embedding, in_proj, linear_qkv, fc1, output layer | normal(0, std)                               |
| out_proj, linear_proj, fc2             | normal(0, std / sqrt(num_layers))                       |
| norms, D                               | 1                                                       |
| conv1d                                 | uniform(-1/2, 1/2): Kaiming with a = sqrt(5), 4 taps    |
| A_log                                  | log of uniform(1, 16)                                   |
| dt_bias                                | inverse softplus of a log-uniform dt in [0.001, 0.1]    |

Source: core 0.19, `transformer_config.py` (a hybrid's residual has one output projection a layer, hence
no factor 2) and `ssm/mamba_mixer.py`. Rows of the padded vocabulary are drawn like the others.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable, Iterator

import torch
from megatron.core.models.hybrid.hybrid_model import HybridModel
from megatron.core.transformer import TransformerConfig
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from megatron_ext.models.limits import UnsupportedError

A_RANGE = (1.0, 16.0)
DT_RANGE = (1e-3, 1e-1)

_Draw = Callable[[Tensor, TransformerConfig, torch.Generator | None], object]


def _ones(full: Tensor, config: TransformerConfig, generator: torch.Generator | None) -> None:
    full.fill_(1.0)


def _embedding(full: Tensor, config: TransformerConfig, generator: torch.Generator | None) -> None:
    config.embedding_init_method(full, generator=generator)


def _into_residual(full: Tensor, config: TransformerConfig, generator: torch.Generator | None) -> None:
    config.output_layer_init_method(full, generator=generator)


def _from_residual(full: Tensor, config: TransformerConfig, generator: torch.Generator | None) -> None:
    config.init_method(full, generator=generator)


def _conv(full: Tensor, config: TransformerConfig, generator: torch.Generator | None) -> None:
    full.uniform_(-0.5, 0.5, generator=generator)


def _A_log(full: Tensor, config: TransformerConfig, generator: torch.Generator | None) -> None:
    full.uniform_(*A_RANGE, generator=generator).log_()


def _dt_bias(full: Tensor, config: TransformerConfig, generator: torch.Generator | None) -> None:
    dt = full.uniform_(*(math.log(bound) for bound in DT_RANGE), generator=generator).exp_()
    full.copy_(dt + torch.log(-torch.expm1(-dt)))  # softplus of it gives dt back


_RULES: tuple[tuple[re.Pattern[str], _Draw], ...] = tuple(
    (re.compile(rf"(^|\.)({pattern})$"), draw)
    for pattern, draw in (
        (r"word_embeddings\.weight", _embedding),
        (r"output_layer\.weight", _from_residual),
        (r"(mixer\.in_proj|linear_qkv|linear_fc1)\.weight", _from_residual),
        (r"(mixer\.out_proj|linear_proj|linear_fc2)\.weight", _into_residual),
        (r"(norm|input_layernorm|pre_mlp_layernorm|final_norm)\.weight|layer_norm_weight", _ones),
        (r"mixer\.conv1d_(weight|bias)", _conv),
        (r"mixer\.A_log", _A_log),
        (r"mixer\.dt_bias", _dt_bias),
        (r"mixer\.D", _ones),
    )
)


def initialise_parameters(model: HybridModel, seed: int) -> None:
    """Fills every parameter of this rank's part of a model.

    Args:
        model: The unwrapped model.
        seed: Seed of the stage.

    Raises:
        UnsupportedError: For a parameter that no rule knows.
    """
    ranks = model.pg_collection.tp.size()
    for name, parameter in global_parameters(model):
        full = draw_full(name, parameter, ranks, config=model.config, generator=_generator(seed, name))
        with torch.no_grad():
            parameter.copy_(local_part(full, parameter, model.pg_collection.tp))


def global_parameters(model: HybridModel) -> Iterator[tuple[str, nn.Parameter]]:
    """Parameters of this rank by global name: layers counted from 0 over all pipeline stages."""
    numbers = [layer.layer_number - 1 for layer in model.decoder.layers]
    for name, parameter in model.named_parameters():
        if model.share_embeddings_and_output_weights and name == "output_layer.weight":
            name = "embedding.word_embeddings.weight"
        yield re.sub(r"^decoder\.layers\.(\d+)", lambda m: f"decoder.layers.{numbers[int(m[1])]}", name), parameter


def draw_full(
    name: str,
    parameter: nn.Parameter,
    num_ranks: int,
    *,
    config: TransformerConfig,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Draws a parameter in its full size, over all tensor-parallel ranks.

    Args:
        name: Its global name, or the end of it.
        parameter: This rank's part, for its shape and its marks.
        num_ranks: Tensor-parallel ranks.
        config: Standard deviations.
        generator: A CPU generator; torch's default one when None.

    Returns:
        float32 on the CPU, so that a GPU starts from the same numbers.
    """
    shape = list(parameter.shape)
    if _is_sharded(parameter):
        shape[parameter.partition_dim] *= num_ranks  # type: ignore[attr-defined]
    for pattern, draw in _RULES:
        if pattern.search(name):
            full = torch.empty(shape)
            draw(full, config, generator)
            return full
    raise UnsupportedError(f"{name}: no rule in megatron_ext/models/initialise.py says how to draw it; add one.")


def local_part(full: Tensor, parameter: nn.Parameter, group: ProcessGroup) -> Tensor:
    """The rows or columns of `full` that belong to this rank of `group`.

    A parameter that packs several matrices lists their local sizes as `partition_sizes`; each is
    split on its own (Source: core 0.19, in_proj and conv1d of `ssm/mamba_mixer.py`).
    """
    if not _is_sharded(parameter):
        return full
    ranks, dim = group.size(), parameter.partition_dim  # type: ignore[attr-defined]
    sizes = getattr(parameter, "partition_sizes", [parameter.shape[dim]])
    packed = full.split([size * ranks for size in sizes], dim=dim)
    return torch.cat([part.chunk(ranks, dim=dim)[group.rank()] for part in packed], dim=dim)


def _is_sharded(parameter: nn.Parameter) -> bool:
    return bool(getattr(parameter, "tensor_model_parallel", False))


def _generator(seed: int, name: str) -> torch.Generator:
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
