"""CUDA graphs of a stage's layers (`training.cuda_graphs`), taken away behind it.

Core 0.19 makes them itself: with `cuda_graph_impl: local` each layer notes its kernels in the first step, the
schedule captures them at that step's end, and later steps replay them. The other ways it has do not fit: Transformer
Engine's helper asks a global calculator of microbatches, and a graph of the whole iteration wants data in dictionaries
and a loss without a look at it (`transformer/cuda_graphs.py`, `full_cuda_graph.py`). **No GPU has run it here.**
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from megatron_ext.plan.stage_plan import StagePlan


@contextlib.contextmanager
def layer_graphs(plan: StagePlan) -> Iterator[None]:
    """Takes the stage's graphs away when left: an arm's next stage has another model at other addresses."""
    try:
        yield
    finally:
        if plan.has_layer_graphs:
            from megatron.core.transformer.cuda_graphs import delete_cuda_graphs

            delete_cuda_graphs()
