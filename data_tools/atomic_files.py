"""Files that are whole or absent, whatever is killed when."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, BinaryIO

from data_tools.errors import DataError, SetupError


def beside(prefix: str | Path, suffix: str) -> Path:
    """The file `PREFIX<suffix>`; unlike `Path.with_suffix` it keeps the dots of PREFIX.

    >>> str(beside("tokens/base.validation", ".bin"))
    'tokens/base.validation.bin'
    """
    return Path(f"{prefix}{suffix}")


def write_atomically(path: Path, content: bytes) -> None:
    """Writes a file so that a reader sees the old content, the new content, and nothing between.

    Args:
        path: The file; its folder must exist.
        content: All of it.
    """
    partial = beside(path, ".partial")
    try:
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        error.filename = str(path)  # writing to an open file does not name it
        raise
    os.replace(partial, path)
    sync_folder(path.parent)


def close_unwritten(file: BinaryIO) -> None:
    """Closes a file that is about to be removed: on a full disk what is still buffered cannot be written."""
    with suppress(OSError):
        file.close()


def sync_folder(folder: Path) -> None:
    """Makes the renames in `folder` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """Makes everything in `folder` survive a power cut, before a rename says that it is whole."""
    for path in (folder, *folder.rglob("*")):
        sync_folder(path)


@contextmanager
def only_writer(prefix: str | Path) -> Iterator[None]:
    """Holds `PREFIX.lock` so that two commands never write the same dataset at once.

    The kernel drops the lock with its process, so a killed command blocks nobody.

    Raises:
        DataError: If another process holds the lock.
    """
    path = beside(prefix, ".lock")
    with path.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DataError(f"{prefix}: another process is writing it; wait for it, or choose another output") from None
        # Removed while still held: whoever opened this file before the removal holds a lock on a
        # file that no longer has a name, and is told so here.
        if not path.exists() or os.fstat(file.fileno()).st_ino != path.stat().st_ino:
            raise DataError(f"{prefix}: another process has just written it; run the command again")
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def take_folder(folder: Path, *, busy: str) -> IO[str]:
    """Makes a folder and takes it for this process, by the lock of its file `.lock`.

    Args:
        folder: That one process at a time may write.
        busy: What another one is doing with it, and the remedy, for the error.

    Returns:
        The lock; the folder is free again when it is closed or the process ends.

    Raises:
        SetupError: Another process has the folder, or the disk has no locks by which that could be told.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = (folder / ".lock").open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        raise SetupError(f"{folder}: {busy}") from None
    except OSError as error:
        lock.close()
        raise SetupError(
            f"{lock.name}: {error.strerror}: without locks two processes could write this folder at once. Take one on "
            "a disk with locks; Lustre is mounted with -o flock."
        ) from None
    return lock


def is_being_written(prefix: str | Path) -> bool:
    """Whether a process of this machine holds `PREFIX.lock`. The kernel is asked, so no writer is disturbed."""
    try:
        inode = beside(prefix, ".lock").stat().st_ino
    except FileNotFoundError:
        return False
    locks = (line.split() for line in Path("/proc/locks").read_text().splitlines())
    return any(lock[1] == "FLOCK" and lock[5].rpartition(":")[2] == str(inode) for lock in locks)
