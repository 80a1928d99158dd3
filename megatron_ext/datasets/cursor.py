"""Where the reading of one source stands: (epoch, window, position).

Samples are cut from the source's token stream every `sequence_length` tokens, across documents
and epochs, so nothing is dropped; sample k of an epoch is the k-th whose first token lies in it.
The samples of an epoch are read in windows of WINDOW_SAMPLES, shuffled within each: consecutive
samples of one long document do not meet in one batch, yet three numbers say what has been read.

A stage may go on at another sequence length: what is left of the window is cut anew, with the stream behind
it (`reading_order`). Then three numbers for each earlier length say where it was left.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from data_tools.permutation import keyed_permutation
from megatron_ext.datasets.documents import Documents, Span
from megatron_ext.datasets.reading_order import ReadingOrder, Run
from megatron_ext.datasets.saved_place import are_counts, no_place_error, require_same
from megatron_ext.datasets.shards import ShardedDocuments
from megatron_ext.datasets.stream import TokenStream, blocks_to_hold

WINDOW_SAMPLES = 4096
"""Samples shuffled together. At least a few global batches, so that the samples of one document
spread; small enough that the documents of a window are a few blocks (33M tokens at sequence
length 8192, about half a block of 1k-token documents). Part of the order: changing it needs a new
SEMANTICS_VERSION."""


class EpochSample(NamedTuple):
    """One sample of one source."""

    epoch: int
    sample: int  # place in the epoch's stream, from 0


class SourceCursor:
    """Reads the samples of one source, each epoch in its own order, from any point on.

    The order depends on the seed, the source's content, the sequence length, and where another length was
    left; not on shares, budgets, other sources or ranks.
    """

    def __init__(
        self,
        documents: Documents | ShardedDocuments,
        *,
        seed: int,
        sequence_length: int,
        window_samples: int = WINDOW_SAMPLES,
        blocks_held: int | None = None,
    ) -> None:
        """Stands before the first sample.

        Args:
            documents: The source.
            seed: Seed of the order.
            sequence_length: Tokens of one sample; its row has one more, the last label.
            window_samples: Samples shuffled together; tests make it small.
            blocks_held: Expanded blocks that are kept; None keeps what a source that is read alone may.
        """
        self.documents = documents
        if blocks_held is None:
            (blocks_held,) = blocks_to_hold([documents], window_tokens=window_samples * sequence_length)
        self.stream = TokenStream(documents, seed=seed, blocks_held=blocks_held)
        self._seed = seed
        self.sequence_length = sequence_length
        self._window_samples = window_samples
        self._begin()

    @property
    def place(self) -> int:
        """Tokens of the reading order that lie before the cursor, whether they were read or passed over."""
        return self._first_token(self._epoch, self._window * self._window_samples + self._position)

    @property
    def cutting(self) -> str:
        """What decides which tokens a sample holds: its length, and where others were left.

        `8 < 4@0.1.3`: 8 tokens, behind samples of 4 that were left at epoch 0, window 1, position 3.
        """
        left = [f"{length}@{'.'.join(map(str, place))}" for length, *place in reversed(self._left)]
        return " < ".join([str(self.sequence_length), *left])

    def samples_before(self, place: int) -> tuple[int, NDArray[np.int64]]:
        """Which samples of this cutting lie before a place, as their numbers counted through all epochs.

        Returns:
            A number that all of them are below, up to where the window begins, and those of the window, `[samples]`.
        """
        epoch = place // self.documents.num_tokens
        first = self._first_sample(epoch)
        number = (place - self.origin) // self.sequence_length
        window, position = divmod(number - first, self._window_samples)
        inside = self._permute_window(epoch, window)[:position] if position else []
        return first + window * self._window_samples, first + np.array(inside, dtype=np.int64)

    def draw(self) -> EpochSample:
        """The next sample in reading order; the cursor moves behind it. Nothing is read from disk."""
        if self._position == len(self._window_order):
            self._next_window()
        sample = self._window_order[self._position]
        self._position += 1
        return EpochSample(self._epoch, sample)

    def start_afresh(self) -> None:
        """Moves to the next pass over the source, in an order of its own; what is left of this one is not read."""
        if self._is_begun():
            self._next_epoch()

    def replay(self) -> None:
        """Moves back to the beginning, to read the same samples again, cut anew if they had another length."""
        self._begin()

    def locate(self, epoch_sample: EpochSample) -> list[Span]:
        """The documents and offsets of a sample's `sequence_length + 1` tokens, in reading order."""
        runs = self.order.runs(self._first_token(*epoch_sample), self.sequence_length + 1)
        return [span for run in runs for span in self.stream.spans(*run)]

    def seams(self, epoch_sample: EpochSample) -> list[int]:
        """The labels of a sample, from 0, that do not follow their input in the source."""
        first = self._first_token(*epoch_sample)
        return [seam - first - 1 for seam in self.order.seams(first + 1, self.sequence_length)]

    def starts(self, place: int, num_tokens: int) -> NDArray[np.int64]:
        """Places among the tokens from `place` on at which documents begin, rising; empty ones never do."""
        found, done = [np.empty(0, dtype=np.int64)], place
        for position, length in self.order.runs(place, num_tokens):
            found.append(self.stream.starts(position, length) - position + done)
            done += length
        return np.concatenate(found)

    def read(self, epoch_sample: EpochSample, out: NDArray[np.int64]) -> list[Span]:
        """Reads a sample's row, and returns `locate` of it.

        Args:
            epoch_sample: Any sample; not only the last drawn.
            out: `[sequence_length + 1]` int64, overwritten.
        """
        spans = self.locate(epoch_sample)
        self.documents.read(spans, out)
        return spans

    def state_dict(self) -> dict[str, Any]:
        """Where the reading stands and what the numbers count; JSON-able."""
        place = {"epoch": self._epoch, "window": self._window, "position": self._position}
        return self._identity() | place | {"left": [list(place) for place in self._left]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Moves to a saved place, without reading what lies before it.

        Raises:
            DataError: If the state belongs to other data or another cutting, or names no place.
        """
        require_same(self.documents.source, self._identity(), state)
        lengths = [*(length for length, *_ in state["left"]), self.sequence_length]
        self.sequence_length = lengths[0]
        self._begin()
        for (_, *place), length in zip(state["left"], lengths[1:], strict=True):
            self._move_to_saved(*place)
            self._cut_anew(length)
        self._move_to_saved(*(state.get(name, -1) for name in ("epoch", "window", "position")))

    def take_over(self, state: dict[str, Any]) -> None:
        """Goes on behind a saved place, whatever the sequence length was there.

        Raises:
            DataError: If the state belongs to other data or another order, or names no place.
        """
        length, self.sequence_length = self.sequence_length, state["sequence_length"]
        self.load_state_dict(state)
        if length != self.sequence_length:
            self._cut_anew(length)

    def _identity(self) -> dict[str, Any]:
        """What the place is counted in; with any of it changed the same numbers mean other samples."""
        return {
            "seed": self._seed,
            "data_id": self.documents.data_id,
            "block_documents": self.documents.block_documents,
            "sequence_length": self.sequence_length,
            "window_samples": self._window_samples,
        }

    def _begin(self) -> None:
        """Takes the stream as it is and cuts it from its first token on."""
        self.origin = 0  # place where the first sample of this cutting begins
        self.order = ReadingOrder()
        self._is_begun_at_origin = False  # samples of another length were read of the pass that this cutting begins in
        self._left: list[tuple[int, int, int, int]] = []  # earlier sequence lengths, and the place where each was left
        self._move_to(epoch=0, window=0, position=0)

    def _is_begun(self) -> bool:
        """Whether a sample that begins in the present pass was read; the end of one that ran on into it is none."""
        is_first = self._window == self._position == 0
        is_at_origin = self._epoch == self.origin // self.documents.num_tokens
        return not is_first or (is_at_origin and self._is_begun_at_origin)

    def _cut_anew(self, sequence_length: int) -> None:
        """Lays what is left of the window end to end, and cuts it and all behind it at another length."""
        epoch, window, position, length = self._epoch, self._window, self._position, self.sequence_length
        unread = [Run(self._first_token(epoch, sample), length) for sample in sorted(self._window_order[position:])]
        end = self._first_token(epoch, window * self._window_samples + len(self._window_order))
        self._is_begun_at_origin = self._is_begun() and self.place // self.documents.num_tokens == epoch
        self.origin, self.order = self.place, self.order.without_read(self.place, unread=unread, window_end=end)
        self._left.append((length, epoch, window, position))
        self.sequence_length = sequence_length
        self._move_to(epoch=self.origin // self.documents.num_tokens, window=0, position=0)

    def _move_to_saved(self, epoch: Any, window: Any, position: Any) -> None:
        if not self._is_place(epoch, window, position):
            raise no_place_error(self.documents.source, epoch, window, position)
        self._move_to(epoch=epoch, window=window, position=position)

    def _is_place(self, epoch: Any, window: Any, position: Any) -> bool:
        if not are_counts(epoch, window, position):
            return False
        left = self._num_samples(epoch) - window * self._window_samples
        return left > 0 and bool(position <= min(left, self._window_samples))

    def _first_token(self, epoch: int, sample: int) -> int:
        """Place at which a sample of an epoch begins."""
        return self.origin + (self._first_sample(epoch) + sample) * self.sequence_length

    def _first_sample(self, epoch: int) -> int:
        """Samples of this cutting that begin before the epoch does."""
        return max(0, -(-(epoch * self.documents.num_tokens - self.origin) // self.sequence_length))

    def _num_samples(self, epoch: int) -> int:
        """Samples that begin in the epoch; 0 where one sample is longer than the source."""
        return self._first_sample(epoch + 1) - self._first_sample(epoch)

    def _next_window(self) -> None:
        if (self._window + 1) * self._window_samples < self._num_samples(self._epoch):
            self._move_to(epoch=self._epoch, window=self._window + 1, position=0)
            return
        self._next_epoch()

    def _next_epoch(self) -> None:
        self._move_to(epoch=self._first_token(self._epoch + 1, 0) // self.documents.num_tokens, window=0, position=0)

    def _move_to(self, *, epoch: int, window: int, position: int) -> None:
        self._epoch, self._window, self._position = epoch, window, position
        self._window_order = self._permute_window(epoch, window)

    def _permute_window(self, epoch: int, window: int) -> list[int]:
        """The samples of a window in reading order."""
        num_samples = self._num_samples(epoch)
        first = window * self._window_samples
        size = min(self._window_samples, num_samples - first)
        # The epoch's last sample runs on into the next epoch. Read before the others it would bring
        # documents for the second time while some had not been read once; so it stays last.
        last = [num_samples - 1] if first + size == num_samples else []
        key = f"{self._seed}/{self.documents.data_id}"
        order = keyed_permutation(size - len(last), key=f"window/{key}/{epoch}/{window}")
        return [first + place for place in order.tolist()] + last
