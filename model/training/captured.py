"""The dense part of a step on fixed memory: tokens, blocks, heads and loss, forward and backward, and Adam.

A step of a small model is hundreds of kernels of some microseconds each, which Python starts more slowly than
a GPU runs them. So batches are padded to a few sizes (`model.data.capacity`): the first step of a size
runs as it comes, the second is captured as a CUDA graph, and from then on one call replays it. Embedding
tables stay outside: their vectors are copied in, and the vectors' gradients go back out, as for a part of an
accumulated step. On a CPU nothing is captured; the same code runs each time.
"""

from __future__ import annotations

import contextlib
import gc
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from model.data.batch import JaggedBatch
from model.data.layout import Sizes
from model.embeddings.tables import Dispatched
from model.rankers.inputs import Embeddings
from model.rankers.protocol import Ranker
from spark_jobs.contract.features import Group

_MOST_SIZES = 64  # captured at a time; all graphs share their working memory


@contextlib.contextmanager
def no_collection() -> Iterator[None]:
    """Keeps Python's collector of cycles out: freeing a graph or GPU memory ends a capture with an error."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


class Captured:
    """Work on fixed memory: run as it comes once, captured when it comes again, replayed from then on.

    It does not hold the work, which mostly holds it: in a cycle its graph would stay until a collection.

    Args:
        pool: Of memory that graphs share, of which one at a time is replayed; None: nothing is captured.

    Attributes:
        is_replay: Whether the last run was a replay of what was captured before it.
    """

    def __init__(self, pool: Any) -> None:
        self._pool = pool
        self._graph: torch.cuda.CUDAGraph | None = None
        self._runs = 0
        self.is_replay = False

    def run(self, work: Callable[[], None]) -> None:
        """Does the work, the same at every call, once."""
        self.is_replay = self._graph is not None
        if self._graph is None and self._runs and self._pool is not None:
            graph = torch.cuda.CUDAGraph()
            # The loader's thread and NCCL's may use the device meanwhile.
            with (
                no_collection(),
                torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"),
            ):
                work()
            self._graph = graph
        if self._graph is not None:
            self._graph.replay()
        else:
            work()
        self._runs += 1


class _Part:
    """Forward and backward for batches of one size."""

    def __init__(self, owner: DensePart, batch: JaggedBatch) -> None:
        assert batch.room is not None
        assert batch.storage is not None
        self.storage = batch.storage[: batch.fixed_bytes].clone()
        self._batch = batch.fixed_views(self.storage)
        self.weight = torch.ones((), device=batch.device)
        rows = {Group.PROFILE: batch.room.rows, **batch.room.groups}
        self.vectors = {
            group: torch.zeros(rows[group], sum(widths), device=batch.device)
            for group, widths in owner.widths.items()
        }
        self._inputs = {group: vectors.detach().requires_grad_() for group, vectors in self.vectors.items()}
        self.gradients: dict[Group, Tensor] = {}
        self.loss = self.first_bad = torch.empty(0)
        self._owner = owner
        self.work = Captured(owner.pool)

    def compute(self) -> None:
        """Forward and backward: loss and gradients, from what was copied in."""
        owner, batch = self._owner, self._batch
        embeddings: Embeddings = {
            group: list(torch.split(inputs, owner.widths[group], dim=1))
            if group is Group.PROFILE
            else [inputs]
            for group, inputs in self._inputs.items()
        }
        with torch.autocast(batch.device.type, torch.bfloat16, enabled=owner.is_bfloat16):
            logits = owner.ranker(batch, embeddings)
        loss, self.first_bad = loss_of(logits, batch, self.weight, owner.listwise)
        # The exchange of the tables' gradients, and that of the others, divide by the number of ranks.
        gradients = torch.autograd.grad(
            loss * dist.get_world_size(), [*self._inputs.values(), *owner.weights], materialize_grads=True
        )
        self.gradients = dict(zip(self._inputs, gradients, strict=False))
        torch._foreach_copy_(owner.gradients, gradients[len(self._inputs) :])
        self.loss = loss.detach()


class DensePart:
    """All of a ranker but its tables, in training.

    Args:
        ranker: In training.
        weights: Its parameters outside the tables, which get their gradients in fixed memory.
        is_bfloat16: Whether it computes under bfloat16 autocast.
        listwise: As in `TrainConfig`.
        device: Where.
    """

    def __init__(
        self,
        ranker: Ranker,
        weights: Sequence[nn.Parameter],
        *,
        is_bfloat16: bool,
        listwise: float = 0.0,
        device: torch.device,
    ) -> None:
        self.ranker = ranker
        self.weights = list(weights)
        self.is_bfloat16 = is_bfloat16
        self.listwise = listwise
        self.widths = {group: ranker.inputs.embeddings.widths(group) for group in Group}
        self.pool = torch.cuda.graph_pool_handle() if device.type == "cuda" else None
        self.gradient = torch.zeros(sum(weight.numel() for weight in self.weights), device=device)
        pieces = torch.split(self.gradient, [weight.numel() for weight in self.weights])
        self.gradients = [piece.view_as(weight) for piece, weight in zip(pieces, self.weights, strict=True)]
        self.num_fresh = 0  # steps that were not replays
        self._parts: OrderedDict[Sizes, _Part] = OrderedDict()

    def backward(
        self,
        batch: JaggedBatch,
        weight: float,
        dispatched: Dispatched | None = None,
        meanwhile: Callable[[], None] = lambda: None,
    ) -> tuple[Tensor, Tensor]:
        """Computes the gradients of all weights, the mean over ranks; updates the rows of the tables.

        Args:
            batch: Filled up and packed, on the device.
            weight: By which the loss is divided.
            dispatched: The batch's ids where their rows are; by default they are sent now.
            meanwhile: Is called when the device has the dense part to compute.

        Returns:
            This rank's part of the loss, and its first candidate whose loss is not finite, or -1.
        """
        assert batch.room is not None
        assert batch.storage is not None
        part = self._parts.pop(batch.room, None) or _Part(self, batch)
        self._parts[batch.room] = part
        if len(self._parts) > _MOST_SIZES:
            self._parts.popitem(last=False)
        embedded = self.ranker.inputs.embeddings(batch, dispatched)
        part.storage.copy_(batch.storage[: batch.fixed_bytes])
        part.weight.fill_(weight)
        for group, some in embedded.items():
            if some:
                vectors = part.vectors[group][: some[0].shape[0]]
                torch.cat([one.detach() for one in some], dim=1, out=vectors)
        part.work.run(part.compute)
        meanwhile()
        self.num_fresh += not part.work.is_replay
        exchange = dist.all_reduce(self.gradient, async_op=True) if dist.get_world_size() > 1 else None
        torch.autograd.backward(
            [one for some in embedded.values() for one in some],
            [
                gradient
                for group, some in embedded.items()
                if some
                for gradient in torch.split(
                    part.gradients[group][: some[0].shape[0]], self.widths[group], dim=1
                )
            ],
        )
        if exchange is not None:  # beside the rows' gradients
            exchange.wait()
            self.gradient.div_(dist.get_world_size())
        return part.loss, part.first_bad


def loss_of(
    logits: Tensor, batch: JaggedBatch, weight: float | Tensor, listwise: float
) -> tuple[Tensor, Tensor]:
    """The loss of a batch, divided by `weight`, and its first candidate whose loss is not finite, or -1.

    Args:
        logits: `[2, C]`.
        batch: Laid out as one part.
        weight: By which the sum is divided.
        listwise: As in `TrainConfig`.
    """
    losses = nn.functional.binary_cross_entropy_with_logits(
        logits, batch.labels, weight=batch.weights, reduction="none"
    )
    first_bad = _first_bad(losses.detach())
    if listwise:
        losses = losses + listwise * softmax_losses(logits, batch)
    return losses.sum() / weight, first_bad


def softmax_losses(logits: Tensor, batch: JaggedBatch) -> Tensor:
    """Cross entropy of the softmax over the candidates of each row, for each positive, float32 `[2, C]`.

    Where one candidate is positive this is the probability that it is ranked first (ListNet, Cao et al.,
    ICML 2007); a row without positives adds nothing.
    """
    where = batch.layout()
    row_C = torch.searchsorted(where.offsets[1:], where.candidates.int(), right=True)  # noqa: N806
    num_rows = where.offsets.shape[0] - 1
    ends = torch.arange(num_rows + 1, device=row_C.device)
    offsets_B1 = torch.searchsorted(row_C, ends)  # noqa: N806
    losses: Tensor = _SoftmaxLosses.apply(logits, batch.labels, batch.weights, row_C, offsets_B1)  # type: ignore[no-untyped-call]
    return losses


class _SoftmaxLosses(torch.autograd.Function):
    """`softmax_losses`: its gradient needs no sum whose order a GPU leaves open."""

    @staticmethod
    def forward(ctx: Any, *inputs: Tensor) -> Tensor:
        logits, labels, weights, row_C, offsets_B1 = inputs  # noqa: N806
        greatest = _of_rows("max", logits, offsets_B1).clamp(min=-1e30)
        shares = weights * (logits - greatest[:, row_C]).exp()
        sums = _of_rows("sum", shares, offsets_B1)
        positives = weights * labels
        shares = shares / sums.clamp(min=1e-30)[:, row_C]
        ctx.save_for_backward(shares * _of_rows("sum", positives, offsets_B1)[:, row_C] - positives)
        return -positives * (logits - (greatest + sums.clamp(min=1e-30).log())[:, row_C])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        # Of the sum of all losses alone, whose gradients are equal.
        return gradient * grads[0], None, None, None, None


def _of_rows(what: str, values_2C: Tensor, offsets_B1: Tensor) -> Tensor:  # noqa: N803
    """Sum or greatest of each row's candidates, `[2, B]`."""
    reduced: Tensor = torch.segment_reduce(
        values_2C.t().contiguous(), what, offsets=offsets_B1, axis=0, unsafe=True
    )
    return reduced.t()


def _first_bad(losses_2C: Tensor) -> Tensor:  # noqa: N803
    """The first candidate whose loss is not finite, or -1: a tensor, so that nothing waits for it."""
    if not losses_2C.shape[1]:
        return torch.full((), -1, dtype=torch.int64, device=losses_2C.device)
    bad_C = ~losses_2C.isfinite().all(0)  # noqa: N806
    return torch.where(bad_C.any(), bad_C.to(torch.int8).argmax(), -1)
