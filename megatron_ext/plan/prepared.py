"""The store of what is computed once from a dataset and read by every run: `RUN_ROOT/prepared/KIND-KEY/`.

A key is a mapping of plain values that says what the content depends on: data ids, lengths, policies, versions.
The folder is named by its hash, so content of other data is never taken up. It appears with a rename when it is
whole, and ends with `prepared.json`:

| field | meaning |
|-------|---------|
| key   | the whole key; a folder with another one is not taken up |
| files | of each file: bytes, sha256 |

Runs and `megatron-ext prepare` put into the store what is not there (`prepare`); whoever only looks, as `plan`, takes
what is there and changes nothing (`read_prepared`). Whoever comes first builds, on whatever rank or job; the others
wait for its lock. Where locks do not reach from one machine to the next, or a disk has none (Lustre without `-o
flock`; a warning says so), several may build at once, and one of the equal folders stays.

A folder that is damaged, or has another key, is built again by `prepare`, with a warning, and refused by
`read_prepared`. A build that was killed leaves `.KIND-KEY.MACHINE.*` behind; the next build of that key on that
machine removes it.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from data_tools.errors import DataError

KEY_FILE = "prepared.json"
_READ_BYTES = 1 << 20


def prepared_folder(root: Path, kind: str, key: Mapping[str, Any]) -> Path:
    """Where the content of a key lies, whether it is there or not.

    Args:
        root: The run root.
        kind: What it is, a word.
        key: What it depends on; JSON-able.
    """
    digest = hashlib.sha256(_canonical(key).encode()).hexdigest()
    return root / "prepared" / f"{kind}-{digest[:16]}"


def read_prepared(folder: Path, key: Mapping[str, Any]) -> bool:
    """Whether the content of a key is in its folder, whole; False where nothing is there.

    Raises:
        DataError: If what is there is damaged or belongs to another key.
    """
    try:
        return _read(folder, key)
    except DataError as error:
        raise DataError(f"{error}; remove {folder}") from None


def _read(folder: Path, key: Mapping[str, Any]) -> bool:
    try:
        said = json.loads((folder / KEY_FILE).read_bytes())
        found, files = said["key"], said["files"]
    except (FileNotFoundError, NotADirectoryError):
        if folder.exists():
            raise DataError(f"{folder}: has no {KEY_FILE}, so it is damaged") from None
        return False
    except (OSError, ValueError, KeyError, TypeError):
        raise DataError(f"{folder / KEY_FILE}: damaged") from None
    if _canonical(found) != _canonical(key):
        raise DataError(f"{folder / KEY_FILE}: key: {found} is not {dict(key)}")
    for name, facts in files.items():
        if _facts(folder / name) != facts:
            raise DataError(f"{folder / name}: is not the file that {KEY_FILE} names")
    return True


def prepare(root: Path, kind: str, key: Mapping[str, Any], build: Callable[[Path], None]) -> tuple[Path, bool]:
    """The folder with the content of a key, built if it is not there.

    Args:
        root: The run root.
        kind: What it is, a word.
        key: What it depends on; JSON-able.
        build: Writes the files into an empty folder, the same ones at every call. No subfolders.

    Returns:
        The folder, and whether it was built now.

    Raises:
        OSError: If the store cannot be written.
    """
    folder = prepared_folder(root, kind, key)
    if _is_whole(folder, key, says_damage=True):
        return folder, False
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _locked(folder) as has_lock:
        if _is_whole(folder, key):
            return folder, False
        if has_lock:  # then no process of this machine is building
            for leftover in folder.parent.glob(f"{_partial_prefix(folder)}*"):
                shutil.rmtree(leftover, ignore_errors=True)
        _build(folder, key, build)
    return folder, True


def _is_whole(folder: Path, key: Mapping[str, Any], *, says_damage: bool = False) -> bool:
    try:
        return _read(folder, key)
    except DataError as error:
        if says_damage:
            print(f"WARNING: {error}. It is built again.", file=sys.stderr, flush=True)
        return False


@contextmanager
def _locked(folder: Path) -> Iterator[bool]:
    """Holds `FOLDER.lock`, where the disk has locks; the kernel drops it with its process: a killed one blocks nobody.

    Yields:
        Whether it is held. Without it all are right and do the same work.
    """
    with Path(f"{folder}.lock").open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            has_lock = True
        except OSError as error:
            has_lock = False
            print(
                f"WARNING: {file.name}: no lock ({error.strerror}): all that start at once compute the same.",
                file=sys.stderr,
                flush=True,
            )
        yield has_lock  # the file stays: removed, a third one would lock a new file while the second holds the old one


def _partial_prefix(folder: Path) -> str:
    return f".{folder.name}.{platform.node()}."


def _build(folder: Path, key: Mapping[str, Any], build: Callable[[Path], None]) -> None:
    partial = Path(tempfile.mkdtemp(prefix=_partial_prefix(folder), dir=folder.parent))
    try:
        build(partial)
        files = {path.name: _facts(path) for path in sorted(partial.iterdir())}
        (partial / KEY_FILE).write_text(json.dumps({"key": dict(key), "files": files}, indent=1))
        for path in [*partial.iterdir(), partial]:
            _sync(path)
        partial.chmod(0o755)  # mkdtemp makes it this user's alone
        _replace(partial, folder, key)
        _sync(folder.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _replace(partial: Path, folder: Path, key: Mapping[str, Any]) -> None:
    """Moves a whole folder into its place; what is damaged there goes first."""
    while True:
        try:
            os.rename(partial, folder)
            return
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        if _is_whole(folder, key):  # built meanwhile, where locks do not reach
            return
        aside = Path(tempfile.mkdtemp(prefix=_partial_prefix(folder), dir=folder.parent))
        with suppress(FileNotFoundError):  # another one has moved it
            os.rename(folder, aside / folder.name)
        shutil.rmtree(aside, ignore_errors=True)


def _facts(path: Path) -> dict[str, Any] | None:
    """Size and hash of a file; None where there is none."""
    digest, size = hashlib.sha256(), 0
    try:
        with path.open("rb") as file:
            while piece := file.read(_READ_BYTES):
                digest.update(piece)
                size += len(piece)
    except OSError:
        return None
    return {"bytes": size, "sha256": digest.hexdigest()}


def _canonical(key: Mapping[str, Any]) -> str:
    return json.dumps(dict(key), sort_keys=True, separators=(",", ":"), allow_nan=False)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
