"""How the matrix products of a stage are made in fp8."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from data_tools.schema import Count, Section

Fp8Scaling = Literal["tensorwise", "blockwise"]


class Fp8Recipe(Section):
    """Products of the `te` backend's layers in 8 bits; weights, sums and all else stay as `precision` says.

    The scalings are those of Transformer Engine that keep no state between steps, so a resumed run is exact in any
    layout: docs/explanation/decisions/0009-fp8-without-state.md.
    """

    recipe: Fp8Scaling = Field(
        description="What shares a scale: a whole tensor (tensorwise), or blocks of 1 x 128 and 128 x 128 numbers "
        "(blockwise: Hopper or later, CUDA 12.9 or later)."
    )
    format: Literal["hybrid", "e4m3"] = Field(
        default="hybrid", description="hybrid: gradients in e5m2, all else in e4m3; e4m3: everything."
    )
    bf16_edge_layers: Count = Field(
        default=0, ge=0, description="First layers, and as many last ones, whose products stay in bf16."
    )
