"""Which rows of which Hugging Face tensor are which rows of which Megatron-Core tensor.

Every weight of a dense hybrid is the same numbers on both sides; only rows are cut and ordered otherwise. So one
table, read in either direction, is the whole conversion:

| layer     | Hugging Face                  | Megatron-Core checkpoint            | rows                         |
|-----------|-------------------------------|-------------------------------------|------------------------------|
| Mamba-2   | mixer.in_proj.weight          | mixer.in_proj.weight.{z,x,B,C,dt}   | laid one after the other     |
|           | mixer.conv1d.{weight,bias}    | mixer.conv1d.{weight,bias}.{x,B,C}  | laid one after the other     |
|           | mixer.{A_log,D,dt_bias}       | the same                            | as they are                  |
|           | mixer.{norm,out_proj}.weight  | the same                            | as they are                  |
| attention | mixer.{q,k,v}_proj.weight     | self_attention.linear_qkv.weight    | a group's queries, key, value |
|           | mixer.o_proj.weight           | self_attention.linear_proj.weight   | as they are                  |
| MLP       | mixer.{up,down}_proj.weight   | mlp.linear_{fc1,fc2}.weight         | as they are                  |
| each      | norm.weight                   | layer_norm_weight of the projection | as they are                  |

Source: megatron-core 0.19, `ssm/mamba_mixer.py` and `transformer/attention.py`; transformers 5.23,
`models/nemotron_h` and `models/arcee`. docs/reference/checkpoint-names.md is this table with shapes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import accumulate
from typing import NamedTuple

from megatron_ext.plan.sizes import CONV_KERNEL, mamba_inner_size
from megatron_ext.recipe.layer_pattern import ATTENTION, MAMBA, MLP, parse_pattern
from megatron_ext.recipe.schema import ModelRecipe

NEMOTRON_H, ARCEE = "nemotron_h", "arcee"
"""Model types of transformers. Nemotron-H's attention knows no positions, so what has RoPE is Arcee's: the same MLP
and norms, one block for an attention and an MLP layer."""


class Piece(NamedTuple):
    """Rows that are equal on both sides."""

    hf: str
    hf_row: int
    core: str
    core_row: int
    rows: int
    tail: tuple[int, ...] = ()  # sizes of the dimensions behind the rows


def pieces_of(model: ModelRecipe, padded_vocab_size: int) -> list[Piece]:
    """Every row of a model, embedding first, in the order of its layers.

    A tied output layer is no tensor of Megatron-Core's; Hugging Face's `lm_head.weight` then repeats the embedding,
    since transformers 5.23 does not tie the two of Nemotron-H itself.

    Args:
        model: The model; `architecture_of` must have one for it.
        padded_vocab_size: Rows of embedding and output layer.
    """
    name = _NAMES[architecture_of(model)]
    vocabulary = (padded_vocab_size, (model.hidden_size,))
    output = "embedding.word_embeddings" if model.share_embeddings_and_output_weights else "output_layer"
    pieces = [_whole(name("embeddings.weight"), "embedding.word_embeddings.weight", *vocabulary)]
    for number, symbol in enumerate(parse_pattern(model.hybrid_layer_pattern).symbols):
        for piece in _LAYERS[symbol](model):
            hf, core = name(f"layers.{number}.{piece.hf}"), f"decoder.layers.{number}.{piece.core}"
            pieces.append(piece._replace(hf=hf, core=core))
    pieces.append(_whole(name("norm_f.weight"), "decoder.final_norm.weight", model.hidden_size))
    pieces.append(_whole("lm_head.weight", f"{output}.weight", *vocabulary))
    return pieces


def architecture_of(model: ModelRecipe) -> str | None:
    """The model type of transformers that computes the same; None where there is none."""
    symbols = parse_pattern(model.hybrid_layer_pattern).symbols
    if model.position_embedding_type == "none":
        return NEMOTRON_H
    is_transformer = symbols == (ATTENTION + MLP) * (len(symbols) // 2)
    return ARCEE if is_transformer else None


def hf_shapes(pieces: Iterable[Piece]) -> dict[str, tuple[int, ...]]:
    """Shape of every Hugging Face tensor, in the order of the pieces."""
    return _shapes((piece.hf, piece.hf_row + piece.rows, piece.tail) for piece in pieces)


def core_shapes(pieces: Iterable[Piece]) -> dict[str, tuple[int, ...]]:
    """Whole shape of every Megatron-Core tensor, in the order of the pieces."""
    return _shapes((piece.core, piece.core_row + piece.rows, piece.tail) for piece in pieces)


def _shapes(ends: Iterable[tuple[str, int, tuple[int, ...]]]) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for name, end, tail in ends:
        shapes[name] = (max(end, *shapes.get(name, (0,))[:1]), *tail)
    return shapes


def _whole(hf: str, core: str, rows: int, tail: tuple[int, ...] = ()) -> Piece:
    return Piece(hf, 0, core, 0, rows, tail)


def _mamba(model: ModelRecipe) -> Iterator[Piece]:
    hidden, heads, inner = model.hidden_size, model.mamba_num_heads, mamba_inner_size(model)
    grouped = model.mamba_num_groups * model.mamba_state_dim
    convolved = {"x": inner, "B": grouped, "C": grouped}
    yield _whole("norm.weight", "mixer.in_proj.layer_norm_weight", hidden)
    yield from _laid("mixer.in_proj.weight", {"z": inner, **convolved, "dt": heads}, (hidden,))
    yield from _laid("mixer.conv1d.weight", convolved, (1, CONV_KERNEL))
    yield from _laid("mixer.conv1d.bias", convolved, ())
    for one in ("dt_bias", "A_log", "D"):
        yield _whole(f"mixer.{one}", f"mixer.{one}", heads)
    yield _whole("mixer.norm.weight", "mixer.norm.weight", inner)
    yield _whole("mixer.out_proj.weight", "mixer.out_proj.weight", hidden, (inner,))


def _laid(name: str, parts: dict[str, int], tail: tuple[int, ...]) -> Iterator[Piece]:
    """Parts that Megatron-Core stores one by one, so that each is split over ranks on its own."""
    begins = accumulate(parts.values(), initial=0)
    for (part, rows), begin in zip(parts.items(), begins, strict=False):
        yield Piece(name, begin, f"{name}.{part}", 0, rows, tail)


def _attention(model: ModelRecipe) -> Iterator[Piece]:
    hidden, groups, width = model.hidden_size, model.num_query_groups, model.kv_channels
    queries = model.num_attention_heads // groups * width
    yield _whole("norm.weight", "self_attention.linear_qkv.layer_norm_weight", hidden)
    for projection, rows, begin in (("q", queries, 0), ("k", width, queries), ("v", width, queries + width)):
        for group in range(groups):
            at = group * (queries + 2 * width) + begin
            qkv = "self_attention.linear_qkv.weight"
            yield Piece(f"mixer.{projection}_proj.weight", group * rows, qkv, at, rows, (hidden,))
    inner = model.num_attention_heads * width
    yield _whole("mixer.o_proj.weight", "self_attention.linear_proj.weight", hidden, (inner,))


def _mlp(model: ModelRecipe) -> Iterator[Piece]:
    hidden, inner = model.hidden_size, model.ffn_hidden_size
    yield _whole("norm.weight", "mlp.linear_fc1.layer_norm_weight", hidden)
    yield _whole("mixer.up_proj.weight", "mlp.linear_fc1.weight", inner, (hidden,))
    yield _whole("mixer.down_proj.weight", "mlp.linear_fc2.weight", hidden, (inner,))


_LAYERS: dict[str, Callable[[ModelRecipe], Iterator[Piece]]] = {MAMBA: _mamba, ATTENTION: _attention, MLP: _mlp}


def _nemotron_h(name: str) -> str:
    """`backbone.` is what transformers writes and NVIDIA's checkpoints have; in memory it says `model.`."""
    return f"backbone.{name}"


def _arcee(name: str) -> str:
    """Two layers are one block: an even one its attention, an odd one its MLP."""
    if not name.startswith("layers."):
        return {"embeddings.weight": "model.embed_tokens.weight", "norm_f.weight": "model.norm.weight"}[name]
    _, number, rest = name.split(".", 2)
    is_mlp = int(number) % 2
    norm, mixer = ("post_attention_layernorm", "mlp") if is_mlp else ("input_layernorm", "self_attn")
    rest = rest.replace("mixer.", f"{mixer}.") if rest.startswith("mixer.") else rest.replace("norm.", f"{norm}.")
    return f"model.layers.{int(number) // 2}.{rest}"


_NAMES: dict[str | None, Callable[[str], str]] = {NEMOTRON_H: _nemotron_h, ARCEE: _arcee}
