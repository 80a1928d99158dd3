"""Rows of a fine-tuning stage: drawn conversations of several sources, cut to size, packed, dealt into steps.

| batch unit    | a step is                                                                                |
|---------------|------------------------------------------------------------------------------------------|
| rows          | so many rows; each round is packed as one, its rows come in random order                  |
| conversations | so many conversations exactly, in random order; they are packed among themselves          |

`rows` fills best and its steps hold about equally many tokens; `conversations` takes as many rows as they need.
The last step has what is left. A conversation that is split stays within one step where conversations are
counted; all its pieces stay in one round otherwise.

A piece counts as trained where one of its tokens is a target: the mask marks it and a token of the piece comes
before it. Text without masks trains on every token but each piece's first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from data_tools.drawing import Drawn, Ints
from data_tools.loss_mask import LossMasks
from data_tools.pack_index import target_tokens
from data_tools.packing import Changed, Overlong, Pieces, best_fit_decreasing, fit_pieces
from data_tools.permutation import keyed_permutation
from data_tools.progress import NoProgress, Progress

BatchUnit = Literal["rows", "conversations"]
ROWS_VERSION = 1
"""Raised when the same conversations would give other rows; part of what a stage is."""


@dataclass(frozen=True)
class Conversations:
    """What packing needs to know of one source.

    Attributes:
        lengths: [conversations] tokens of each.
        masks: None where there are no turns and all is trained on.
    """

    lengths: Ints
    masks: LossMasks | None

    @property
    def thinking(self) -> Any:
        """[conversations, 2] range of thinking that may be trimmed."""
        return self.masks.thinking if self.masks is not None else np.zeros((len(self.lengths), 2), np.int32)


@dataclass(frozen=True)
class RowOptions:
    """How rows are made.

    Attributes:
        length: Tokens of a row.
        step: Rows or conversations of a step.
        unit: Which of them.
        overlong: What becomes of conversations longer than a row; see `packing.py`.
        pad_multiple: Each piece is padded to a multiple of this.
        seed: Of the orders.
    """

    length: int
    step: int
    unit: BatchUnit = "rows"
    overlong: Overlong = "error"
    pad_multiple: int = 1
    seed: int = 0


@dataclass(frozen=True)
class SourceCount:
    """What became of the conversations of one source, each counted as often as it was drawn.

    Attributes:
        drawn: Conversations.
        distinct: Those of them that were drawn at least once.
        tokens: Their tokens = `packed` + those of `dropped`, `truncated`, `trimmed` and `untrained`.
        packed: Tokens in rows.
        targets: Those of them that are trained on.
        pieces: Pieces in rows.
        dropped, truncated, trimmed, split: As in a `Packing`.
        untrained: Pieces that hold no target, and are in no row.
    """

    drawn: int
    distinct: int
    tokens: int
    packed: int
    targets: int
    pieces: int
    dropped: Changed
    truncated: Changed
    trimmed: Changed
    split: Changed
    untrained: Changed


@dataclass(frozen=True)
class Rows:
    """All rows of a stage.

    Attributes:
        length: Tokens of a row.
        pad_multiple: What the length of each piece is padded to a multiple of.
        first_row: [steps + 1] number of the first row of each step.
        first_piece: [rows + 1] number of the first piece of each row.
        pieces: In the order of the rows; conversations are counted within their source.
        source: [pieces] place of each one's source.
        targets: [pieces] tokens of each that are trained on.
        cut: [pieces] tokens of its conversation that are in no piece, because they were truncated or trimmed.
        conversations: Conversations of each step, [steps]; in steps of rows a split one counts where its
            first piece with a target lies.
        counts: Of each source.
    """

    length: int
    pad_multiple: int
    first_row: Ints
    first_piece: Ints
    pieces: Pieces
    source: Ints
    targets: Ints
    cut: Ints
    conversations: Ints
    counts: tuple[SourceCount, ...]

    @property
    def rows(self) -> int:
        """Number of rows."""
        return len(self.first_piece) - 1

    @property
    def steps(self) -> int:
        """Number of steps."""
        return len(self.first_row) - 1

    @cached_property
    def is_first(self) -> npt.NDArray[np.bool_]:
        """[pieces] whether the same tokens stand in no row before, nor before it in its own."""
        # One number a piece: where it is split it starts at a multiple of the row's length.
        part = (self.pieces.conversation << 16) + self.pieces.start // self.length
        first = np.unique((self.source << 56) + part, return_index=True)[1]
        is_first = np.zeros(len(self.source), np.bool_)
        is_first[first] = True
        return is_first

    @cached_property
    def is_begin(self) -> npt.NDArray[np.bool_]:
        """[pieces] whether each is its conversation's first that holds a target; every copy has one such piece."""
        return _begins(self.pieces, self.source)

    @cached_property
    def targets_of_conversation(self) -> Ints:
        """[pieces] tokens that are trained on in all pieces of each one's conversation, read once."""
        if not (self.pieces.start > 0).any():
            return self.targets  # none is split
        conversation = np.unique((self.source << 56) + self.pieces.conversation, return_inverse=True)[1]
        sums = np.bincount(conversation, weights=self.targets * self.is_first)
        of_pieces: Ints = sums.astype(np.int64)[conversation]
        return of_pieces


def _begins(pieces: Pieces, source: Ints) -> npt.NDArray[np.bool_]:
    """`Rows.is_begin`: all copies of a conversation are cut alike, so its first piece in rows is known by its start."""
    conversation = np.unique((source << 56) + pieces.conversation, return_inverse=True)[1]
    first = np.full(int(conversation.max(initial=-1)) + 1, np.iinfo(np.int64).max)
    np.minimum.at(first, conversation, pieces.start)
    is_begin: npt.NDArray[np.bool_] = pieces.start == first[conversation]
    return is_begin


_COLUMNS = ("source", "targets", "cut", "place")


@dataclass(frozen=True)
class _Cut:
    """Pieces that fit, with what `Rows` says of them, and the place of their conversation in the reading order."""

    pieces: Pieces
    source: Ints
    targets: Ints
    cut: Ints
    place: Ints

    def take(self, order: Any) -> _Cut:
        return _Cut(self.pieces.take(order), *(getattr(self, name)[order] for name in _COLUMNS))

    @staticmethod
    def joined(cuts: Sequence[_Cut]) -> _Cut:
        names = ("conversation", "start", "stop", "skip_start", "skip_stop")
        columns = [np.concatenate([getattr(cut.pieces, name) for cut in cuts]) for name in names]
        others = [np.concatenate([getattr(cut, name) for cut in cuts]) for name in _COLUMNS]
        return _Cut(Pieces(*columns), *others)


def make_rows(
    sources: Sequence[Conversations],
    rounds: Sequence[Drawn],
    options: RowOptions,
    progress: Progress | None = None,
) -> Rows:
    """Makes the rows of all rounds.

    Args:
        sources: What the rounds were drawn from.
        rounds: At least one conversation in all.
        options: How.
        progress: Is told of each conversation twice: when it is cut, and when it is packed.

    Raises:
        DataError: If a conversation is too long and `overlong` is `error`.

    >>> ten = Conversations(np.full(10, 4), None)
    >>> rows = make_rows([ten], [Drawn(np.zeros(10, int), np.arange(10))], RowOptions(length=8, step=2))
    >>> rows.rows, rows.first_row.tolist(), rows.targets.tolist()[:3], rows.counts[0].targets
    (5, [0, 2, 4, 5], [3, 3, 3], 30)
    """
    progress = progress or NoProgress()
    tallies = [_Tally(source) for source in sources]
    cuts = []
    for number, drawn in enumerate(rounds):
        cuts.append(_cut(drawn, number, tallies, options))
        progress.advance(len(drawn))
    by = _by_rows if options.unit == "rows" else _by_conversations
    cut, row_of, first_row, conversations = by(cuts, options, progress)
    pieces_of_row = np.bincount(row_of, minlength=int(first_row[-1]))
    return Rows(
        length=options.length,
        pad_multiple=options.pad_multiple,
        first_row=first_row,
        first_piece=np.concatenate([np.zeros(1, np.int64), np.cumsum(pieces_of_row)]),
        pieces=cut.pieces,
        source=cut.source,
        targets=cut.targets,
        cut=cut.cut,
        conversations=conversations,
        counts=tuple(tally.count() for tally in tallies),
    )


def _cut(drawn: Drawn, number: int, tallies: Sequence[_Tally], options: RowOptions) -> _Cut:
    """The pieces of a round that hold a target."""
    order = keyed_permutation(len(drawn), key=f"order {options.seed} {number}")
    place_of = np.empty(len(drawn), np.int64)
    place_of[order] = np.arange(len(drawn))
    cuts = []
    for source, tally in enumerate(tallies):
        mine = np.flatnonzero(drawn.source == source)
        pieces, targets, lost = tally.fit(drawn.conversation[mine], options)
        place = place_of[mine[pieces.conversation]]
        pieces = _of_conversations(pieces, drawn.conversation[mine])
        cut = _Cut(pieces, np.full(len(pieces), source), targets, lost, place)
        cuts.append(cut.take(np.flatnonzero(targets > 0)))
    return _Cut.joined(cuts)


def _of_conversations(pieces: Pieces, numbers: Ints) -> Pieces:
    """Pieces that count conversations by `numbers` instead of by their place in it."""
    return Pieces(numbers[pieces.conversation], pieces.start, pieces.stop, pieces.skip_start, pieces.skip_stop)


def _packed(
    cut: _Cut, bounds: Sequence[int], options: RowOptions, progress: Progress, *, name: str
) -> tuple[_Cut, Ints, Ints]:
    """The pieces of some parts, each packed by itself, in the order of rows.

    Args:
        cut: The pieces.
        bounds: [parts + 1] number of the first piece of each part.
        options: How.
        progress: Is told of each conversation.
        name: Of the random order of a part's rows, with its number behind.

    Returns:
        The pieces, the row of each, and [parts + 1] the number of the first row of each part.
    """
    padded = -(-cut.pieces.lengths // options.pad_multiple) * options.pad_multiple
    begins = cut.pieces.start == 0
    row_of = np.empty(len(padded), np.int64)
    first_row = [0]
    for number, (begin, end) in enumerate(pairwise(bounds)):
        packs = best_fit_decreasing(padded[begin:end], options.length)
        num_rows = int(packs.max(initial=-1)) + 1
        row_of[begin:end] = first_row[-1] + keyed_permutation(num_rows, key=f"{name}{number}")[packs]
        first_row.append(first_row[-1] + num_rows)
        progress.advance(int(begins[begin:end].sum()))
    order = np.argsort(row_of, kind="stable")
    return cut.take(order), row_of[order], np.array(first_row)


def _by_rows(cuts: Sequence[_Cut], options: RowOptions, progress: Progress) -> tuple[_Cut, Ints, Ints, Ints]:
    """As `_by_conversations`; each round is packed as one."""
    bounds = np.cumsum([0, *(len(cut.place) for cut in cuts)]).tolist()
    cut, row_of, first_of_round = _packed(_Cut.joined(cuts), bounds, options, progress, name=f"rows {options.seed} ")
    num_rows = int(first_of_round[-1])
    first_row = np.append(np.arange(0, num_rows, options.step), num_rows)
    begins = _begins(cut.pieces, cut.source)
    return cut, row_of, first_row, np.bincount(row_of[begins] // options.step, minlength=len(first_row) - 1)


def _by_conversations(cuts: Sequence[_Cut], options: RowOptions, progress: Progress) -> tuple[_Cut, Ints, Ints, Ints]:
    """Pieces in the order of rows, the row of each, the first row and the conversations of each step."""
    cut = _Cut.joined([part.take(np.argsort(part.place, kind="stable")) for part in cuts])
    is_new = np.ones(len(cut.place), np.bool_)
    is_new[1:] = cut.place[1:] != cut.place[:-1]
    round_of = np.repeat(np.arange(len(cuts)), [len(part.place) for part in cuts])
    is_new[1:] |= round_of[1:] != round_of[:-1]
    conversation = np.cumsum(is_new) - 1
    total = int(conversation[-1]) + 1 if len(conversation) else 0
    bounds = np.searchsorted(conversation, np.arange(0, total + options.step, options.step)).tolist()
    cut, row_of, first_row = _packed(cut, bounds, options, progress, name=f"rows {options.seed} step ")
    conversations = np.full(len(first_row) - 1, options.step)
    conversations[-1:] = total - options.step * (len(conversations) - 1)
    return cut, row_of, first_row, conversations


def _targets_of_whole(source: Conversations) -> Ints:
    """Tokens that each conversation of a source trains on when nothing is cut off, [conversations]."""
    if source.masks is None:
        return np.maximum(source.lengths - 1, 0)
    first_run, runs = source.masks.first_run, source.masks.runs.astype(np.int64)
    trained = np.concatenate([np.zeros(1, np.int64), np.cumsum(runs[:, 1] - runs[:, 0])])
    starts_at_first = np.concatenate([np.zeros(1, np.int64), np.cumsum(runs[:, 0] == 0)])
    by_run = trained - starts_at_first  # a conversation's first token is predicted by none
    targets: Ints = by_run[first_run[1:]] - by_run[first_run[:-1]]
    return targets


_CHANGES = ("dropped", "truncated", "trimmed", "split", "untrained")


class _Tally:
    """Cuts one source's conversations, round after round, and counts what becomes of them."""

    def __init__(self, source: Conversations) -> None:
        self._source = source
        self._targets = _targets_of_whole(source)
        self._is_drawn = np.zeros(len(source.lengths), np.bool_)
        self._sums: dict[str, Any] = dict.fromkeys(("drawn", "tokens", "packed", "targets", "pieces"), 0)
        self._changed: dict[str, Any] = dict.fromkeys(_CHANGES, Changed())

    def fit(self, conversations: Ints, options: RowOptions) -> tuple[Pieces, Ints, Ints]:
        """Pieces of conversations, counted by their place in the argument; of each the targets, and what was cut."""
        lengths = self._source.lengths[conversations]
        thinking = self._source.thinking[conversations]
        pieces, changed = fit_pieces(lengths, options.length, options.overlong, thinking)
        targets = self._targets[conversations[pieces.conversation]]
        is_cut = pieces.lengths < lengths[pieces.conversation]
        cut = pieces.take(np.flatnonzero(is_cut))
        targets[is_cut] = target_tokens(self._source.masks, _of_conversations(cut, conversations))
        is_trained = targets > 0
        copies = np.bincount(pieces.conversation, minlength=len(lengths))
        changed |= {
            "split": Changed(conversations=int((copies > 1).sum())),
            "untrained": Changed(int((~is_trained).sum()), int(pieces.lengths[~is_trained].sum())),
        }
        self._is_drawn[conversations] = True
        for name, more in changed.items():
            was = self._changed[name]
            self._changed[name] = Changed(was.conversations + more.conversations, was.tokens + more.tokens)
        self._sums["drawn"] += len(conversations)
        self._sums["tokens"] += int(lengths.sum())
        self._sums["packed"] += int(pieces.lengths[is_trained].sum())
        self._sums["targets"] += int(targets.sum())
        self._sums["pieces"] += int(is_trained.sum())
        lost = lengths[pieces.conversation] - pieces.lengths
        return pieces, targets, lost if options.overlong != "split" else np.zeros_like(lost)

    def count(self) -> SourceCount:
        """All of it."""
        return SourceCount(distinct=int(self._is_drawn.sum()), **self._sums, **self._changed)
