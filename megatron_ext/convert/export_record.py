"""`exports.jsonl` of a stage: a line for each export of its checkpoints, so that lineages can name them.

    {"created": "2026-01-31T12:00:00+00:00", "step": 200, "to": "/models/one", "dtype": "bf16", "weights": "9f2c…"}

`weights` is the fingerprint of the checkpoint's weights (`file_list.weights_fingerprint`); `difference` is the largest
one between logits, null where it was not asked for. What became of the folder since is not known.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

from megatron_ext.convert.export import Exported
from megatron_ext.plan.lineage import EXPORTS_FILE
from megatron_ext.training.file_list import weights_fingerprint


def record_export(checkpoint: Path, done: Exported) -> str | None:
    """Adds a line to the stage of a checkpoint.

    Args:
        checkpoint: A `step_N` folder of a stage.
        done: What was written.

    Returns:
        A sentence where it cannot be recorded: the checkpoint lies in no stage's folder, or that cannot be written.
    """
    stage = checkpoint.resolve().parents[1]
    if not (stage / "plan.json").is_file():
        return f"{checkpoint} lies in no stage's folder, so `megatron-ext lineage` will not know of this export"
    line = {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "step": int(checkpoint.name.removeprefix("step_")),
        "to": str(done.path.resolve()),
        "dtype": done.dtype,
        "weights": weights_fingerprint(checkpoint),
        "difference": done.difference,
    }
    try:
        with (stage / EXPORTS_FILE).open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
    except OSError as error:
        return f"{stage / EXPORTS_FILE}: {error.strerror}; `megatron-ext lineage` will not know of this export"
    return None
