"""Whether an input is still the file that was read, told without reading it again.

With every input its size, inode and time of change (ctime) are recorded. If all three are as they were, the
file is taken as read; else it is read and its sha256 decides, so a file that was only moved or touched
still counts as the same. What can happen to a file, and where it shows:

| what happens to it                                     | shows in |
|--------------------------------------------------------|----------|
| written to, appended to, cut                           | ctime: the kernel sets it, no call sets it back |
| its mtime set back (`cp -p`, `rsync -t`, `touch -d`)   | ctime |
| another file put in its place                          | inode, ctime |
| changed again in the tick of the clock in which it was read | a ctime younger than `_SETTLED_NS` is not recorded |
| changed while it is read                               | size, mtime or inode before and after: the job ends |

What does not show: the clock of the machine set back and met again to the nanosecond; pages that another program
holds mapped for writing while the job reads them; and, on a network file system, whatever the machine has not
heard of yet (NFS: up to a minute). `touch FILE` has it read in full. Inode 0 stands for "not recorded".
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from data_tools.errors import DataError
from data_tools.formats import STDIN, opened
from data_tools.manifest import SourceFile
from data_tools.parts import Part

_SETTLED_NS = 2_000_000_000
_HASH_BYTES = 1 << 18


@dataclass(frozen=True)
class FileState:
    """A file at one moment; all zero for stdin."""

    bytes: int = 0
    mtime_ns: int = 0
    ctime_ns: int = 0
    inode: int = 0


def state_of(path: Path) -> FileState:
    """The state of a file.

    Raises:
        DataError: If it cannot be looked at.
    """
    if path == STDIN:
        return FileState()
    try:
        found = path.stat()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None
    return FileState(found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino)


def source_of(part: Part, before: FileState, *, size: int, sha256: str) -> SourceFile:
    """The record of a part that has been read to its end.

    Args:
        part: What was read.
        before: State of its file before that.
        size: Bytes that were read.
        sha256: Of them.

    Raises:
        DataError: If the file was changed meanwhile.
    """
    path = part.file.path
    after = state_of(path)
    if (before.bytes, before.mtime_ns, before.inode) != (after.bytes, after.mtime_ns, after.inode):
        raise DataError(f"{path}: was changed while it was read; run the command again")
    is_settled = time.time_ns() - before.ctime_ns > _SETTLED_NS
    return SourceFile(
        path=str(path),
        bytes=size,
        sha256=sha256,
        mtime_ns=before.mtime_ns,
        ctime_ns=before.ctime_ns if is_settled else 0,
        inode=before.inode if is_settled else 0,
        start=part.start,
    )


def changes_of(part: Part, source: SourceFile) -> list[tuple[str, object, object]]:
    """What tells a part of the input from what was read of it: name, then, now.

    Args:
        part: Of the input as it is now.
        source: What a manifest says of it.
    """
    path = part.file.path
    if path == STDIN:
        return [("stdin", f"sha256 {source.sha256[:12]}", "what can be read only once, so it cannot be compared")]
    pairs = [(f"first byte of {path}", source.start, part.start), (f"bytes of {path}", source.bytes, part.size)]
    if changed := [pair for pair in pairs if pair[1] != pair[2]]:
        return [*changed]
    now = state_of(path)
    if source.inode and (source.inode, source.ctime_ns) == (now.inode, now.ctime_ns):
        return []
    found = hash_part(part)
    return [] if found == source.sha256 else [(f"sha256 of {path}", source.sha256, found)]


def hash_part(part: Part) -> str:
    """The sha256 of a part, hex.

    Raises:
        DataError: If it cannot be read.
    """
    buffer = bytearray(_HASH_BYTES)
    limit = None if part.end is None else part.end - part.start
    with opened(part.file.path, start=part.start, limit=limit) as raw:
        while raw.readinto(buffer):
            pass
        return raw.sha256
