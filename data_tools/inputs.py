"""From what people name to the files and records that are read.

| named         | read |
|---------------|------|
| a file        | itself, whatever its name |
| a folder      | the files below it whose names end in `INPUT_SUFFIXES`, by path; the rest is left out and listed |
| a glob        | what it matches, sorted, each as if it had been named; `**` goes down any number of folders |
| `-`           | stdin: JSON lines, plain or packed |

Every file is opened and its format told before any is read, so a missing one ends a job at its start.
"""

from __future__ import annotations

import glob
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from data_tools.errors import DataError, UsageError
from data_tools.formats import STDIN, format_of
from data_tools.parts import InputFile, Part

if TYPE_CHECKING:
    from data_tools.readers import Columns, Reader

INPUT_SUFFIXES = tuple(
    [f"{name}{packing}" for name in (".jsonl", ".ndjson") for packing in ("", ".gz", ".zst")]
    + [".json.gz", ".json.zst", ".parquet"]
)


@dataclass(frozen=True)
class Inputs:
    """What is to be read.

    Attributes:
        files: In order, each once.
        left_out: Files of named folders that are no inputs by their names.
    """

    files: tuple[InputFile, ...]
    left_out: tuple[Path, ...] = ()

    @property
    def size(self) -> int:
        """Bytes on the disk; stdin counts nothing."""
        return sum(file.size for file in self.files)


def find_inputs(names: Sequence[str | Path]) -> Inputs:
    """The files that were named, in the order of naming.

    Args:
        names: Files, folders, globs, `-`.

    Raises:
        UsageError: If one file is reached twice: its documents would be repeated.
        DataError: If one is missing or unreadable, no input format, or not what its name promises.
    """
    paths: list[Path] = []
    left_out: list[Path] = []
    for name in names:
        for path in _expanded(Path(name)):
            if path.is_dir():
                inside = _files_below(path)
                paths += [file for file in inside if file.name.endswith(INPUT_SUFFIXES)]
                left_out += [file for file in inside if not file.name.endswith(INPUT_SUFFIXES)]
            else:
                paths.append(path)
    _refuse_repeated(paths)
    return Inputs(files=tuple(_input_file(path) for path in paths), left_out=tuple(left_out))


def _expanded(path: Path) -> list[Path]:
    if path == STDIN or not glob.has_magic(str(path)) or path.exists():
        return [path]
    found = sorted(glob.glob(str(path), recursive=True))
    if not found:
        raise DataError(f"{path}: matches no file; mend the pattern, or name files or their folder")
    # `**` matches folders too, and all that they hold besides.
    return [Path(match) for match in found if "**" not in path.parts or not Path(match).is_dir()]


def _files_below(folder: Path) -> list[Path]:
    """Files of a folder and the folders below it; hidden ones are nobody's data."""
    found = [
        path
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    ]
    if not any(path.name.endswith(INPUT_SUFFIXES) for path in found):
        raise DataError(f"{folder}: holds no file that ends in {', '.join(INPUT_SUFFIXES)}")
    return found


def _refuse_repeated(paths: Sequence[Path]) -> None:
    known: set[Path] = set()
    for path in paths:
        resolved = path if path == STDIN else path.resolve()
        if resolved in known:
            raise UsageError(f"--input: {resolved} is given twice; its documents would be repeated")
        known.add(resolved)


def _input_file(path: Path) -> InputFile:
    form = format_of(path)
    if path == STDIN and form == "parquet":
        raise DataError("stdin: Parquet is read from its end, so it cannot be piped; name the file")
    return InputFile(path=path, format=form, size=0 if path == STDIN else path.stat().st_size)


def open_part(part: Part, columns: Columns | None = None) -> Reader:
    """The reader of a part.

    Args:
        part: As from `split_inputs`.
        columns: The columns to take from Parquet; None: all. JSON lines come whole.
    """
    from data_tools.lines import JsonLines  # whoever only finds inputs needs no reader
    from data_tools.parquet import ParquetRows

    return ParquetRows(part, columns) if part.file.format == "parquet" else JsonLines(part)
