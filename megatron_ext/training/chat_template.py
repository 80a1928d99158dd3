"""The chat template of an sft or rl stage: what the model was taught, so it goes with its weights."""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path

from data_tools.chat_template_files import template_source
from data_tools.errors import SetupError
from megatron_ext.plan.stage_plan import StagePlan


def chat_template_of(plan: StagePlan) -> str | None:
    """The text of the template; None of a stage without one.

    Raises:
        SetupError: The file is not the one that was planned.
    """
    taught = plan.sft or plan.rl
    if taught is None or not taught.chat_template:
        return None
    return _read(taught.chat_template, taught.chat_template_sha256)


@functools.cache  # read at the first save; later ones do not depend on the file any more
def _read(file: str, sha256: str) -> str:
    path = Path(file)
    is_config = path.name == "tokenizer_config.json"
    text, _ = template_source(path.parent, None if is_config else path)
    if hashlib.sha256(text.encode()).hexdigest() != sha256:
        raise SetupError(
            f"{file}: is not the chat template that made the conversations ({sha256[:12]}…); put that one back, and "
            "run again to go on from the newest checkpoint"
        )
    return text
