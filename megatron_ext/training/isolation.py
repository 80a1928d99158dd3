"""Proof, on the very model and layout that is about to train, that documents of one row do not meet.

One short row of four documents and padding runs in three ways: as it is; with one document's tokens changed,
in turn; and with each document alone in a row, without packed parameters. What must hold:

    changed   another document's logits do not move: in plain torch by no bit; mamba-ssm's kernel sums its decays
              over whole chunks, so there rounding may move, thousandfold less than a document moves itself
    alone     the logits are those of the document alone, to rounding: no boundary too few, none too many

Every row has the same shape, so the pipeline's schedule runs them as microbatches of one step. With context
parallelism documents and padding are as much longer as they have pieces, and the logits of all ranks are put together
before they are looked at. A document alone lies in a row that is cut as a whole, a packed one is cut by itself: ranks
whose layers hold other tokens than `context_slices.py` hands out, or in another order, are found out either way.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.pipeline_parallel import get_forward_backward_func
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.utils import get_model_config

from data_tools.errors import SetupError
from megatron_ext.datasets.context_slices import places_of_rank
from megatron_ext.datasets.packed_params import packed_params
from megatron_ext.models.config import without_fp8
from megatron_ext.models.kernels import KERNEL_CHUNK_SIZE
from megatron_ext.models.ssd import DEFAULT_CHUNK_SIZE
from megatron_ext.plan.layouts import shortest_proved_row
from megatron_ext.plan.stage_plan import StagePlan
from megatron_ext.runtime.device import device, has_gpu

MAX_TOKENS = 2 * DEFAULT_CHUNK_SIZE
"""Of the row on a CPU: two chunks, so that a state is handed on; more would only take longer."""

MAX_TOKENS_ON_GPU = 2 * KERNEL_CHUNK_SIZE
"""The same where mamba-ssm's kernel may run, whose chunks are longer."""

ALLOWED = {"fp32": 1e-4, "tf32": 5e-3, "bf16": 5e-2}
"""Difference from a document alone, relative to the largest logit: rounding of that many bits, over many layers."""

ALLOWED_MOVE = {"fp32": 1e-5, "tf32": 1e-3, "bf16": 2e-2}
"""Move of a document's logits when another changes, relative to the move of the changed one's.

Both for tf32: a row of 512 tokens on one H200 showed 3.8e-4 and 1.6e-4.
"""


@dataclass(frozen=True)
class IsolationReport:
    """What was measured, over all ranks.

    Attributes:
        places: Starts of the documents, and the end of the last; padding follows.
        num_tokens: Tokens of the row.
        moved: By how much logits moved outside a changed document, at most.
        own: By how much they moved inside it, at least over documents.
        apart: By how much the logits of a packed document differ from those alone, relative to the largest logit.
        allowed: The bound of `apart`.
        allowed_move: The bound of `moved`, relative to `own`.
        seconds: That the proof took.
    """

    places: tuple[int, ...]
    num_tokens: int
    moved: float
    own: float
    apart: float
    allowed: float
    allowed_move: float
    seconds: float = field(default=0.0, compare=False)

    @property
    def holds(self) -> bool:
        """Whether the documents are isolated; NaN is not."""
        return self.own > 0 and self.moved <= self.allowed_move * self.own and self.apart <= self.allowed

    def __str__(self) -> str:
        return (
            f"{len(self.places) - 1} documents in {self.num_tokens} tokens: changing one moves the others' logits by "
            f"{self.moved:.2g} (allowed {self.allowed_move * self.own:.2g}) and its own by {self.own:.2g}; apart from "
            f"each alone {self.apart:.2g} of the largest (allowed {self.allowed:.2g}); {1000 * self.seconds:.0f} ms"
        )


def require_isolation(model: Any, plan: StagePlan, groups: ProcessGroupCollection) -> IsolationReport:
    """Measures the isolation of `reset="full"`, and refuses a model that lacks it.

    All ranks must call this, inside a device scope. Weights, gradients and random states stay as they are.

    Args:
        model: This rank's pipeline stage, wrapped for training or not.
        plan: Its plan; sizes and precision are read.
        groups: Process groups of the layout.

    Raises:
        SetupError: Documents of one row meet, or are cut, or the row is too short to tell.
    """
    report = measure_isolation(model, plan, groups)
    if not report.holds:
        raise SetupError(
            f"document isolation full: the layers of this model do not keep it.\n  {report}\n"
            "  Attention, convolution or state runs across documents, or a document is cut; with context parallelism, "
            "or ranks hold other tokens than their layers take them for.\n  `megatron-ext doctor` says what computes "
            "the layers; training.backend=local needs no package. Training on would go wrong without a word."
        )
    return report


def measure_isolation(model: Any, plan: StagePlan, groups: ProcessGroupCollection) -> IsolationReport:
    """What `require_isolation` judges; same arguments and conditions."""
    began = time.monotonic()
    ranks = groups.cp.size()
    piece = 2 * ranks if ranks > 1 else 1  # a document is a multiple of it
    unit = math.lcm(piece, ranks * groups.tp.size())
    least = shortest_proved_row(ranks)
    most = max(MAX_TOKENS_ON_GPU if has_gpu() else MAX_TOKENS, 2 * least)
    num_tokens = min(plan.batch.sequence_length, most) // unit * unit
    if num_tokens < least:
        raise SetupError(
            f"training.sequence_length: {plan.batch.sequence_length}: isolation is proved on a row of at least "
            f"{least} tokens; lengthen it."
        )
    places = [piece * place for place in _places(num_tokens // piece)]
    trial = _Trial(places, num_tokens, vocab_size=plan.model.vocab_size, cp=groups.cp)
    was_training = model.training
    model.eval()
    with torch.no_grad(), without_fp8(get_model_config(model)):  # a scale of fp8 is of several documents
        get_forward_backward_func(pp_size=groups.pp.size(), vp_size=None)(
            forward_step_func=trial.forward_step,
            data_iterator=trial.rows(),
            model=[model],
            num_microbatches=trial.num_rows,
            seq_length=num_tokens,
            micro_batch_size=1,
            forward_only=True,
            collect_non_loss_data=True,
        )
    model.train(was_training)
    worst = torch.tensor([trial.moved, -trial.own, trial.apart, trial.largest], dtype=torch.float64, device=device())
    dist.all_reduce(worst, op=dist.ReduceOp.MAX)
    moved, own, apart, largest = worst.tolist()
    arithmetic = _arithmetic(model, plan)
    return IsolationReport(
        places=tuple(places),
        num_tokens=num_tokens,
        moved=moved,
        own=-own,
        apart=apart / largest if largest else float("nan"),
        allowed=ALLOWED[arithmetic],
        allowed_move=ALLOWED_MOVE[arithmetic],
        seconds=time.monotonic() - began,
    )


def _arithmetic(model: Any, plan: StagePlan) -> str:
    """What the layers multiply in: Transformer Engine and mamba-ssm's kernels take float32 as TF32."""
    is_te = get_model_config(model).transformer_impl == "transformer_engine"
    return "tf32" if is_te and plan.precision == "fp32" else plan.precision


def _places(num_tokens: int) -> list[int]:
    """Four documents, one of them a single token (or piece), with boundaries inside chunks, and padding behind them.

    >>> _places(128), _places(16)
    ([0, 36, 37, 85, 118], [0, 4, 5, 10, 14])
    >>> _places(8)
    [0, 2, 3, 5, 7]
    """
    first = 2 * num_tokens // 7
    return [0, first, first + 1, 2 * num_tokens // 3, 12 * num_tokens // 13]


_Row = tuple[torch.Tensor, PackedSeqParams | None, Callable[[torch.Tensor], None]]


class _Trial:
    """The rows, and what their logits say; only the last pipeline stage gets to see logits."""

    def __init__(self, places: list[int], num_tokens: int, *, vocab_size: int, cp: dist.ProcessGroup) -> None:
        self._cp = cp
        self._documents = [slice(low, high) for low, high in pairwise(places)]
        generator = torch.Generator().manual_seed(0)
        self._tokens = torch.randint(0, vocab_size, (1, num_tokens), generator=generator).to(device())
        self._vocab_size = vocab_size
        self._packed = packed_params(places, total_tokens=num_tokens, reset="full", device=device())
        self._logits = torch.empty(0)
        self.num_rows = 1 + 2 * len(self._documents)
        self.moved = self.apart = self.largest = 0.0
        self.own = float("inf")

    def rows(self) -> Iterator[_Row]:
        """Tokens `[1, s]`, packed parameters, and who looks at the logits `[s, v]` of this rank's vocabulary."""
        yield self._tokens, self._packed, self._keep
        for document in self._documents:
            changed = self._tokens.clone()
            changed[:, document] = (changed[:, document] + 1) % self._vocab_size
            yield changed, self._packed, partial(self._compare_changed, document)
        for document in self._documents:
            alone = torch.zeros_like(self._tokens)
            alone[:, : document.stop - document.start] = self._tokens[:, document]
            yield alone, None, partial(self._compare_alone, document)

    def forward_step(self, rows: Iterator[_Row], model: Any) -> tuple[torch.Tensor, Callable[..., None]]:
        """Core's `forward_step_func`; what it returns for the logits takes `non_loss_data` as core gives it."""
        tokens, packed, look = next(rows)
        apart = {} if packed is None else {"packed_seq_params": packed}
        bounds = (0, tokens.shape[1]) if packed is None else packed.cu_seqlens_q.tolist()
        held = [places_of_rank(bounds, rank=r, size=self._cp.size()).to(tokens.device) for r in range(self._cp.size())]
        mine = held[self._cp.rank()]
        output = model(tokens[:, mine], mine[None], None, **apart)
        return output, lambda logits, non_loss_data: look(self._whole(logits[0], held))

    def _whole(self, logits: torch.Tensor, held: list[torch.Tensor]) -> torch.Tensor:
        """The logits of all tokens of the row, of this rank's, which hold those at some places."""
        if len(held) == 1:
            return logits
        parts = [torch.empty_like(logits) for _ in held]
        dist.all_gather(parts, logits.contiguous(), group=self._cp)
        whole = torch.empty(sum(map(len, held)), logits.shape[1], dtype=logits.dtype, device=logits.device)
        for places, part in zip(held, parts, strict=True):
            whole[places] = part
        return whole

    def _keep(self, logits: torch.Tensor) -> None:
        self._logits = logits
        self.largest = float(logits.abs().max())

    def _compare_changed(self, document: slice, logits: torch.Tensor) -> None:
        difference = _difference(logits, self._logits).amax(1)
        self.own = min(self.own, float(difference[document].max()))
        difference[document] = 0
        self.moved = max(self.moved, float(difference.max()))

    def _compare_alone(self, document: slice, logits: torch.Tensor) -> None:
        difference = _difference(logits[: document.stop - document.start], self._logits[document])
        self.apart = max(self.apart, float(difference.max()))


def _difference(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """|first - second|; infinite where either is not finite, because NaN would be lost in a maximum."""
    return torch.nan_to_num((first - second).abs(), nan=float("inf"))
