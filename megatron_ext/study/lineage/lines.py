"""Files of JSON that may be missing or cut by a kill: of one object, and of one a line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError


def read_object(file: Path) -> dict[str, Any]:
    """The object of a file; {} where there is none, or it cannot be read."""
    try:
        found = json.loads(file.read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def read_lines[Line: BaseModel](file: Path, kind: type[Line], unknown: list[str]) -> tuple[Line, ...]:
    """The lines of a file, () where there is none.

    Args:
        file: A `.jsonl` file.
        kind: What a line holds.
        unknown: Takes a sentence for each line that cannot be read.
    """
    found = []
    for number, line in enumerate(file.read_bytes().splitlines() if file.is_file() else (), start=1):
        try:
            found.append(kind.model_validate_json(line))
        except ValidationError:
            unknown.append(f"{file}:{number}: cannot be read: cut by a kill, or of another version")
    return tuple(found)
