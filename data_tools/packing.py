"""Packs: which pieces of which conversations share one row of fixed length. Lengths in, indices out, no tokens.

| algorithm  | what it does |
|------------|--------------|
| bfd        | best fit, longest first: each piece into the fullest pack that still holds it |
| bf-shuffle | best fit in a random order: a pack's contents do not depend on their lengths |
| concat     | one after the other in their order; what crosses a pack's end goes on in the next |

Of conversations longer than a pack, `overlong` decides:

| overlong      | what becomes of it |
|---------------|--------------------|
| error         | nothing is packed |
| drop          | it is left out |
| truncate      | its first tokens stay |
| split         | it becomes pieces of a pack's length, which do not see each other, and a rest |
| trim-thinking | the tail of its longest trace of thinking goes; without the trace it must fit, else it is left out |

Each piece is padded to a multiple of `pad_multiple` (context parallelism wants 2 x its size), and only
padded lengths count against the capacity. Packs come out in random order, seeded, save with `concat`:
best fit makes packs of long conversations first.

Source: the grouping of equal lengths is ours; 1e6 lengths take 0.3 s where a pack at a time takes 5 s
(tests/benchmarks/pack.py).
"""

from __future__ import annotations

from bisect import bisect_left, insort
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from data_tools.errors import DataError, UsageError

Algorithm = Literal["bfd", "bf-shuffle", "concat"]
Overlong = Literal["error", "drop", "truncate", "split", "trim-thinking"]
Ints = npt.NDArray[np.int64]

_FEW = 4096
"""Pieces that are faster placed one by one than in groups of equal length: 16 take 28 us where groups take 89, 512 take
0.3 ms where they take 1.2 (one core of a Xeon)."""


@dataclass(frozen=True)
class Pieces:
    """Parts of conversations: tokens [start, stop) without [skip_start, skip_stop), which is empty unless trimmed.

    Attributes:
        conversation: [pieces] number of the conversation.
        start: [pieces] first token.
        stop: [pieces] token after the last.
        skip_start: [pieces] first token left out; `stop` where none is.
        skip_stop: [pieces] token after the last one left out.
    """

    conversation: Ints
    start: Ints
    stop: Ints
    skip_start: Ints
    skip_stop: Ints

    def __len__(self) -> int:
        """Number of pieces."""
        return len(self.conversation)

    @property
    def lengths(self) -> Ints:
        """[pieces] tokens of each."""
        return self.stop - self.start - (self.skip_stop - self.skip_start)

    def take(self, order: npt.NDArray[Any]) -> Pieces:
        """Some of the pieces, in this order."""
        columns = (self.conversation, self.start, self.stop, self.skip_start, self.skip_stop)
        return Pieces(*(column[order] for column in columns))


@dataclass(frozen=True)
class Changed:
    """Conversations that did not go into packs as they are, and tokens of theirs that are in none."""

    conversations: int = 0
    tokens: int = 0


@dataclass(frozen=True)
class Packing:
    """All packs.

    Attributes:
        length: Capacity of a pack, in tokens.
        pad_multiple: What the length of each piece is padded to a multiple of.
        first_piece: [packs + 1] number of the first piece of each pack.
        pieces: In the order of the packs.
        conversations: Conversations that were to be packed.
        tokens: Their tokens = tokens in packs + `dropped.tokens` + `truncated.tokens` + `trimmed.tokens`.
        dropped: Left out.
        truncated: Cut at their end.
        trimmed: Without the tail of their thinking.
        split: In several packs; no token of theirs is missing.
    """

    length: int
    pad_multiple: int
    first_piece: Ints
    pieces: Pieces
    conversations: int
    tokens: int
    dropped: Changed
    truncated: Changed
    trimmed: Changed
    split: Changed

    @property
    def packs(self) -> int:
        """Number of packs."""
        return len(self.first_piece) - 1

    @property
    def packed_tokens(self) -> int:
        """Tokens in packs."""
        return int(self.pieces.lengths.sum())

    @property
    def padding(self) -> int:
        """Positions of all packs that hold no token."""
        return self.packs * self.length - self.packed_tokens

    @property
    def fill_ratio(self) -> float:
        """Part of all positions that holds a token."""
        return self.packed_tokens / (self.packs * self.length) if self.packs else 0.0


class OverlongError(DataError):
    """Conversations that no row holds, where nobody said what becomes of them.

    Args:
        lengths: [conversations] tokens of each.
        length: Capacity of a pack, in tokens.

    Attributes:
        longest: Which is the longest of them.
    """

    def __init__(self, lengths: Ints, length: int) -> None:
        self.longest = int(lengths.argmax())
        super().__init__(
            f"--length: {int((lengths > length).sum()):,} of {len(lengths):,} conversations have more than {length:,} "
            f"tokens, the longest {int(lengths[self.longest]):,}; raise --length, or give --overlong drop, truncate, "
            "split or trim-thinking"
        )


def pack(
    lengths: npt.NDArray[Any],
    *,
    length: int,
    algorithm: Algorithm = "bfd",
    overlong: Overlong = "error",
    pad_multiple: int = 1,
    thinking: npt.NDArray[Any] | None = None,
    seed: int = 0,
) -> Packing:
    """Packs conversations.

    Args:
        lengths: [conversations] tokens of each.
        length: Capacity of a pack, in tokens; a multiple of `pad_multiple`.
        algorithm: How.
        overlong: What becomes of conversations above `length`; `concat` cuts them at pack ends whatever this says.
        pad_multiple: Each piece is padded to a multiple of this many tokens.
        thinking: [conversations, 2] range of thinking that may be trimmed; needed for `trim-thinking`.
        seed: Of the orders.

    Raises:
        UsageError: If `length` is no multiple of `pad_multiple`.
        OverlongError: If a conversation is too long and `overlong` is `error`.

    >>> packing = pack(np.array([6, 5, 4, 3]), length=9)
    >>> packing.packs, packing.fill_ratio, sorted(packing.pieces.conversation.tolist())
    (2, 1.0, [0, 1, 2, 3])
    """
    if length < 1 or pad_multiple < 1 or length % pad_multiple:
        below = length - length % pad_multiple if pad_multiple > 0 else 0
        raise UsageError(
            f"--length: {length} is no multiple of --pad-multiple {pad_multiple}; give {below or pad_multiple}"
        )
    lengths = lengths.astype(np.int64)
    if algorithm == "concat":
        pieces, packs = _concatenated(lengths, length, pad_multiple)
        outcome = {"dropped": Changed(), "truncated": Changed(), "trimmed": Changed()}
    else:
        pieces, outcome = fit_pieces(lengths, length, overlong, thinking)
        padded = -(-pieces.lengths // pad_multiple) * pad_multiple
        generator = np.random.default_rng(seed)
        packs = (
            best_fit_decreasing(padded, length)
            if algorithm == "bfd"
            else _one_by_one(padded, generator.permutation(len(padded)), length, newest_first=True)
        )
        packs = generator.permutation(int(packs.max(initial=-1)) + 1)[packs]
    counts = np.bincount(packs)
    copies = np.bincount(pieces.conversation, minlength=len(lengths))
    return Packing(
        length=length,
        pad_multiple=pad_multiple,
        first_piece=np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)]),
        pieces=pieces.take(_order_of(packs)),
        conversations=len(lengths),
        tokens=int(lengths.sum()),
        split=Changed(conversations=int((copies > 1).sum())),
        **outcome,
    )


def _whole(conversation: Ints, stop: Ints, start: Ints | None = None) -> Pieces:
    return Pieces(conversation, np.zeros_like(stop) if start is None else start, stop, stop, stop)


def fit_pieces(
    lengths: Ints, length: int, overlong: Overlong, thinking: npt.NDArray[Any] | None
) -> tuple[Pieces, dict[str, Changed]]:
    """Pieces that each fit a pack, and what became of the conversations that did not.

    Args:
        lengths: [conversations] tokens of each.
        length: Capacity of a pack, in tokens.
        overlong: What becomes of longer ones.
        thinking: [conversations, 2] range of thinking that may be trimmed; needed for `trim-thinking`.

    Returns:
        The pieces in the order of their conversations, and `dropped`, `truncated` and `trimmed` of a `Packing`.

    Raises:
        OverlongError: If a conversation is too long and `overlong` is `error`.
    """
    outcome = {"dropped": Changed(), "truncated": Changed(), "trimmed": Changed()}
    every = np.arange(len(lengths))
    too_long = np.flatnonzero(lengths > length)
    if not len(too_long):
        return _whole(every, lengths), outcome
    if overlong == "error":
        raise OverlongError(lengths, length)
    surplus = lengths[too_long] - length
    if overlong == "drop":
        outcome["dropped"] = Changed(len(too_long), int(lengths[too_long].sum()))
        kept = lengths <= length
        return _whole(every[kept], lengths[kept]), outcome
    if overlong == "truncate":
        outcome["truncated"] = Changed(len(too_long), int(surplus.sum()))
        return _whole(every, np.minimum(lengths, length)), outcome
    if overlong == "split":
        copies = -(-lengths // length)
        conversation = np.repeat(every, copies)
        start = (np.arange(len(conversation)) - np.repeat(np.cumsum(copies) - copies, copies)) * length
        return _whole(conversation, np.minimum(start + length, lengths[conversation]), start), outcome
    return _trimmed(lengths, length, thinking)


def _trimmed(lengths: Ints, length: int, thinking: npt.NDArray[Any] | None) -> tuple[Pieces, dict[str, Changed]]:
    """Cuts the tail of thinking of what is too long; drops what is too long without its thinking."""
    if thinking is None:
        raise UsageError(
            "--overlong trim-thinking: the dataset does not say where conversations think; make it with chat"
        )
    surplus = np.maximum(lengths - length, 0)
    start, end = thinking[:, 0].astype(np.int64), thinking[:, 1].astype(np.int64)
    fits = surplus <= end - start
    is_trimmed = fits & (surplus > 0)
    skip_stop = np.where(is_trimmed, end, lengths)
    pieces = Pieces(
        np.arange(len(lengths)), np.zeros_like(lengths), lengths, skip_stop - surplus * is_trimmed, skip_stop
    )
    return pieces.take(np.flatnonzero(fits)), {
        "dropped": Changed(int((~fits).sum()), int(lengths[~fits].sum())),
        "truncated": Changed(),
        "trimmed": Changed(int(is_trimmed.sum()), int(surplus[is_trimmed].sum())),
    }


def _concatenated(lengths: Ints, length: int, pad_multiple: int) -> tuple[Pieces, Ints]:
    """Pieces cut where packs end, and the pack of each."""
    padded = -(-lengths // pad_multiple) * pad_multiple
    begins = np.cumsum(padded) - padded
    first, last = begins // length, (begins + padded - 1) // length
    copies = np.where(lengths > 0, last - first + 1, 0)
    conversation = np.repeat(np.arange(len(lengths)), copies)
    pack_of = np.arange(len(conversation)) - np.repeat(np.cumsum(copies) - copies, copies) + first[conversation]
    start = np.maximum(pack_of * length - begins[conversation], 0)
    stop = np.minimum((pack_of + 1) * length - begins[conversation], lengths[conversation])
    return _whole(conversation, stop, start), pack_of


def best_fit_decreasing(lengths: Ints, length: int) -> Ints:
    """The pack of each piece: longest first, each into the fullest pack that holds it.

    Pieces of one length are placed together: packs with equal room are one group, a group takes as many
    of them a pack as fit, and what it cannot take goes to the group with the next larger room.

    Args:
        lengths: [pieces] none above `length`.
        length: Capacity.

    Returns:
        [pieces] numbers of packs, 0 and up.
    """
    order = _order_of(length - lengths)
    if len(lengths) <= _FEW:
        return _one_by_one(lengths, order, length, newest_first=False)
    ordered = lengths[order]
    cuts = (np.flatnonzero(np.diff(ordered)) + 1).tolist()
    packs = np.empty(len(lengths), np.int64)
    rooms = _Rooms()
    opened = 0
    for first, end in zip([0, *cuts], [*cuts, len(ordered)], strict=True) if len(ordered) else ():
        size, at = int(ordered[first]), first
        while at < end:
            room, group = rooms.take(size)
            if group is None:
                needed = -(-(end - at) // (length // size))
                room, group = length, np.arange(opened, opened + needed)
                opened += needed
            at = _fill(packs, at, end, size, room, group, rooms)
    result = np.empty(len(lengths), np.int64)
    result[order] = packs
    return result


def _order_of(keys: Ints) -> Ints:
    """The stable order of whole numbers from 0, 16 bits at a time: numpy sorts such by radix, five times as fast.

    >>> _order_of(np.array([70_000, 3, 70_000, 1])).tolist()
    [3, 1, 0, 2]
    """
    order = np.argsort(keys.astype(np.uint16), kind="stable")  # the cast keeps the lowest 16 bits
    for shift in range(16, int(keys.max(initial=0)).bit_length(), 16):
        order = order[np.argsort((keys[order] >> shift).astype(np.uint16), kind="stable")]
    return order


def _fill(packs: Ints, at: int, end: int, size: int, room: int, group: Ints, rooms: _Rooms) -> int:
    """Puts pieces at..end of one size into packs of equal room; gives the first piece that is left over."""
    each = room // size
    full = min(len(group), (end - at) // each)
    packs[at : at + full * each] = np.repeat(group[:full], each)
    rooms.put(room - each * size, group[:full])
    at, rest = at + full * each, group[full:]
    left = end - at
    if len(rest) and left:  # fewer than `each`
        packs[at:end] = rest[0]
        rooms.put(room - left * size, rest[:1])
        at, rest = end, rest[1:]
    rooms.put(room, rest)
    return at


class _Rooms:
    """Packs by the room that they have left."""

    def __init__(self) -> None:
        self._sizes: list[int] = []
        self._groups: dict[int, list[Ints]] = {}

    def put(self, room: int, packs: Ints) -> None:
        if room == 0 or not len(packs):
            return
        if room in self._groups:
            self._groups[room].append(packs)
        else:
            self._groups[room] = [packs]
            insort(self._sizes, room)

    def take(self, size: int) -> tuple[int, Ints | None]:
        """Takes away the packs of the least room that is enough; None where no pack has any."""
        at = bisect_left(self._sizes, size)
        if at == len(self._sizes):
            return 0, None
        room = self._sizes.pop(at)
        groups = self._groups.pop(room)
        return room, groups[0] if len(groups) == 1 else np.concatenate(groups)


def _one_by_one(lengths: Ints, order: Ints, length: int, *, newest_first: bool) -> Ints:
    """The pack of each piece, in some order, each into the fullest pack that holds it.

    Args:
        lengths: [pieces] none above `length`.
        order: [pieces] which piece is the next.
        length: Capacity.
        newest_first: Of packs with equal room, whether the one that came to it last is taken.
    """
    sizes = lengths.tolist()
    packs = [0] * len(sizes)
    rooms: list[int] = []
    with_room: dict[int, list[int]] = {}
    opened = 0
    for piece in order.tolist():
        size = sizes[piece]
        at = bisect_left(rooms, size)
        if at == len(rooms):
            pack, room, opened = opened, length, opened + 1
        else:
            room = rooms[at]
            pack = with_room[room].pop(-1 if newest_first else 0)
            if not with_room[room]:
                del with_room[room], rooms[at]
        packs[piece] = pack
        if room > size:
            if room - size not in with_room:
                insort(rooms, room - size)
            with_room.setdefault(room - size, []).append(pack)
    return np.array(packs, np.int64)
