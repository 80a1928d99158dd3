"""A model's weights as a checkpoint sees them: the same keys whatever backend the model has.

Layers of Transformer Engine, and core's own projections, also save an `_extra_state`, which is empty
without fp8. Which layers have one differs between the backends and between versions of Transformer
Engine, so it is neither asked of a checkpoint nor missed.
"""

from __future__ import annotations

from typing import Any

from megatron.core.process_groups_config import ProcessGroupCollection

_EXTRA_STATE = "_extra_state"


def sharded_weights(model: Any, groups: ProcessGroupCollection) -> dict[str, Any]:
    """The sharded parameters of this rank under upstream's keys, without extra states.

    Args:
        model: A `HybridModel`, in `Float16Module` or not.
        groups: Process groups of the model.
    """
    sharded = model.sharded_state_dict(metadata={"dp_cp_group": groups.dp_cp})
    return {name: value for name, value in sharded.items() if not name.endswith(_EXTRA_STATE)}


def put_weights(model: Any, loaded: dict[str, Any]) -> None:
    """Copies what was loaded for `sharded_weights` into the model."""
    absent = [name for name in model.state_dict() if not name.endswith(_EXTRA_STATE) and name not in loaded]
    assert not absent, f"not loaded: {', '.join(absent)}"
    model.load_state_dict(loaded, strict=False)
