"""From a plan to this rank's part of a model."""

from __future__ import annotations

from megatron.core import tensor_parallel
from megatron.core.models.hybrid.hybrid_layer_specs import hybrid_stack_spec
from megatron.core.models.hybrid.hybrid_model import HybridModel
from megatron.core.process_groups_config import ProcessGroupCollection

from megatron_ext.models.backends import BackendName, choose_backend
from megatron_ext.models.config import transformer_config
from megatron_ext.models.initialise import initialise_parameters
from megatron_ext.models.specs import local_hybrid_stack_spec
from megatron_ext.plan.stage_plan import StagePlan
from megatron_ext.runtime.device import device

_SPECS = {"local": local_hybrid_stack_spec, "te": hybrid_stack_spec}


def build_model(
    plan: StagePlan, pg_collection: ProcessGroupCollection, *, backend: BackendName | None = None
) -> HybridModel:
    """Builds and initialises this rank's layers.

    All ranks must call this, inside `device_scope()`: tied embeddings are compared over the pipeline.

    Args:
        plan: Model, layout, precision and seed.
        pg_collection: Process groups of the layout.
        backend: Whose layers; None takes what `choose_backend` says.

    Returns:
        The model on `device()`, in the plan's precision (A_log and D are built float32), neither wrapped in
        Float16Module nor in DDP. Its logits have one column for each row of the padded vocabulary.

    Raises:
        SetupError: The backend that was asked for cannot run here.
    """
    backend = backend or choose_backend(plan).name
    if backend == "te" and not tensor_parallel.get_cuda_rng_tracker().is_initialized():
        tensor_parallel.model_parallel_cuda_manual_seed(plan.seed)  # core's mixer draws from it, then we overwrite
    model = bare_model(plan, pg_collection, backend=backend).to(device())
    initialise_parameters(model, plan.seed)
    return model


def bare_model(plan: StagePlan, pg_collection: ProcessGroupCollection, *, backend: BackendName) -> HybridModel:
    """This rank's layers as core leaves them: no weights are drawn."""
    stage, num_stages = pg_collection.pp.rank(), pg_collection.pp.size()
    return HybridModel(
        transformer_config(plan, backend),
        _SPECS[backend],
        vocab_size=plan.model_size.padded_vocab_size,
        max_sequence_length=plan.batch.sequence_length,
        hybrid_layer_pattern=plan.layout.hybrid_layer_pattern,
        pre_process=stage == 0,
        post_process=stage == num_stages - 1,
        share_embeddings_and_output_weights=plan.model.share_embeddings_and_output_weights,
        position_embedding_type=plan.model.position_embedding_type,
        rotary_base=plan.model.rotary_base,
        pg_collection=pg_collection,
    )
