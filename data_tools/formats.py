"""What a file is, told by its first bytes and never by its name, and its bytes unpacked while they are hashed.

| format    | first bytes   | unpacked with |
|-----------|---------------|---------------|
| jsonl     | anything else | |
| jsonl.gz  | 1f 8b         | zlib, which checks CRC and length of each member |
| jsonl.zst | 28 b5 2f fd   | zstandard, which checks a frame's checksum if it has one |
|           | 5x 2a 4d 18   | the same: a skippable frame may stand first |
| parquet   | `PAR1`        | pyarrow |

A packed file that ends inside a member or frame, or goes on with other bytes, is an error with the place.

Source: RFC 1952 (gzip), RFC 8878 (zstd), the Parquet format's file layout.
"""

from __future__ import annotations

import hashlib
import io
import stat
import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Literal, Protocol

from data_tools.errors import DataError, SetupError

Format = Literal["jsonl", "jsonl.gz", "jsonl.zst", "parquet"]

STDIN = Path("-")

_PACKED_BYTES = 1 << 16
"""Packed bytes unpacked at once: zlib makes at most 1032 times as many of them, zstd usually 3 to 10."""

_READ_BYTES = 1 << 20

_MAGIC: dict[bytes, Format] = {
    b"\x1f\x8b": "jsonl.gz",
    b"\x28\xb5\x2f\xfd": "jsonl.zst",
    b"PAR1": "parquet",
    **{bytes([low]) + b"\x2a\x4d\x18": "jsonl.zst" for low in range(0x50, 0x60)},
}
_REFUSED = {
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"PK\x03\x04": "zip",
    b"\xff\xfe": "UTF-16 text",
    b"\xfe\xff": "UTF-16 text",
}
_PROMISED: dict[str, Format] = {
    ".gz": "jsonl.gz",
    ".zst": "jsonl.zst",
    ".parquet": "parquet",
}
_SPOKEN: dict[Format, str] = {
    "jsonl": "JSON lines or empty",
    "jsonl.gz": "gzip",
    "jsonl.zst": "zstd",
    "parquet": "Parquet",
}


def format_of(path: Path) -> Format:
    """The format of a file, or of stdin without taking anything from it.

    Raises:
        DataError: If the file cannot be read, is none of the formats, or is not what its name promises.
    """
    start = _first_bytes(path)
    found: Format = next((form for magic, form in _MAGIC.items() if start.startswith(magic)), "jsonl")
    if refused := next((name for magic, name in _REFUSED.items() if start.startswith(magic)), None):
        raise DataError(f"{path}: is {refused}, not JSON lines; unpack or convert it first")
    promised = _PROMISED.get(path.suffix)
    if promised and found != promised:
        raise DataError(
            f"{path}: is {_SPOKEN[found]}, its name says {_SPOKEN[promised]}; copy it again, or give it its right name"
        )
    return found


def _first_bytes(path: Path) -> bytes:
    if path == STDIN:
        start: bytes = sys.stdin.buffer.peek(8)[:8]  # type: ignore[union-attr]  # typed as a BinaryIO
        return start
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # reading its first bytes would take them from it
            raise DataError(f"{path}: is no regular file; pipe it in and name it -")
        with path.open("rb", buffering=0) as file:
            return file.read(8)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None


class HashedFile(io.RawIOBase):
    """Bytes of a file as they lie on the disk, hashed and counted as they are read.

    Attributes:
        bytes_read: How many were handed out.
    """

    def __init__(self, file: BinaryIO | io.FileIO, *, limit: int | None = None) -> None:
        """Reads from where `file` stands.

        Args:
            file: Open for reading, unbuffered or stdin's.
            limit: Bytes after which the end is reported; None: as many as there are.
        """
        self._file = file
        self._limit = limit
        self._hash = hashlib.sha256()
        self.bytes_read = 0

    def readable(self) -> bool:
        """Always."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fills `buffer` from its start; returns the bytes read, 0 at the end."""
        view = memoryview(buffer)
        if self._limit is not None:
            view = view[: self._limit - self.bytes_read]
        count: int = self._file.readinto(view) or 0  # type: ignore[union-attr]
        self._hash.update(view[:count])
        self.bytes_read += count
        return count

    @property
    def sha256(self) -> str:
        """Of what was handed out so far, in hex."""
        return self._hash.hexdigest()


@contextmanager
def opened(path: Path, *, start: int = 0, limit: int | None = None) -> Iterator[HashedFile]:
    """A file, or stdin for `-`, from byte `start`.

    Raises:
        DataError: If it cannot be read, now or in the course of reading.
    """
    try:
        if path == STDIN:
            yield HashedFile(sys.stdin.buffer)
            return
        with path.open("rb", buffering=0) as file:
            file.seek(start)
            yield HashedFile(file, limit=limit)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from None


class _Decoder(Protocol):
    """Unpacks one gzip member or zstd frame."""

    @property
    def eof(self) -> bool: ...

    @property
    def unused_data(self) -> bytes: ...

    def decompress(self, data: bytes, /) -> bytes: ...


class _Unpacked(io.RawIOBase):
    """What a packed file holds, one member or frame after the other."""

    def __init__(self, file: HashedFile, path: Path, form: Format) -> None:
        self._file = file
        self._path = path
        self._form = form
        self._new_decoder, self._error = _decoder_of(form)
        self._decoder = self._new_decoder()
        self._is_inside = False  # a member or frame that has not ended
        self._ready = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._ready:
            packed = self._file.read(_PACKED_BYTES)
            if not packed:
                if self._is_inside:
                    raise self._damage("ends too early")
                return 0
            self._ready = memoryview(self._unpack(packed))
        count = min(len(buffer), len(self._ready))
        buffer[:count] = self._ready[:count]
        self._ready = self._ready[count:]
        return count

    def _unpack(self, packed: bytes) -> bytes:
        pieces = []
        while packed:
            if self._decoder.eof:
                self._decoder = self._new_decoder()
            try:
                pieces.append(self._decoder.decompress(packed))
            except self._error as error:
                raise self._damage(str(error)) from None
            packed = self._decoder.unused_data
            self._is_inside = not self._decoder.eof
        return b"".join(pieces)

    def _damage(self, what: str) -> DataError:
        return DataError(
            f"{self._path}: damaged {_SPOKEN[self._form]} near byte {self._file.bytes_read:,}: {what}; copy it again"
        )


def _decoder_of(form: Format) -> tuple[Callable[[], _Decoder], type[Exception]]:
    if form == "jsonl.gz":
        return lambda: zlib.decompressobj(wbits=31), zlib.error
    try:
        import zstandard
    except ImportError:
        raise SetupError(
            "zstandard is not installed, and .zst files are read with it: pip install 'megatron-ext[zstd]'"
        ) from None
    return lambda: zstandard.ZstdDecompressor().decompressobj(), zstandard.ZstdError


def unpacked(file: HashedFile, path: Path, form: Format) -> io.BufferedReader:
    """The lines of a JSONL file in any of its packings.

    Args:
        file: The file as it lies on the disk.
        path: For messages.
        form: Not `parquet`.

    Raises:
        SetupError: If the library that unpacks it is not installed.
    """
    raw = file if form == "jsonl" else _Unpacked(file, path, form)
    return io.BufferedReader(raw, _READ_BYTES)
