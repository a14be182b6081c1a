"""Losses, read late, so that no step waits for the device; one that is not finite stops the training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from torch import Tensor

from model.data.steps import Step
from spark_jobs.contract.command import CommandError

_STEPS = 20  # whose losses are copied from the device together


class NonFiniteLossError(CommandError):
    """The loss or gradient is NaN or infinite; the message names the step and the rows."""


@dataclass(frozen=True, kw_only=True)
class _Taken:
    """A step whose loss is not read yet.

    Attributes:
        name: Of the step.
        values: float64 `[3]` on the device: loss of this rank, norm of the gradient, and the first candidate
            of this rank whose loss is not finite (-1: none).
        users: User of each row of this rank, where known.
        ends: Candidates of this rank up to and with each row.
    """

    name: str
    values: Tensor
    users: npt.NDArray[np.int64] | None
    ends: npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class _Copied:
    """Steps whose values are on their way to the host: of all ranks and of this one, and when they come."""

    steps: list[_Taken]
    values: Tensor
    there: torch.cuda.Event | None


class Watch:
    """Reads losses of steps, some at a time, when the device has them."""

    def __init__(self) -> None:
        self._taken: list[_Taken] = []
        self._copied: list[_Copied] = []
        self._losses: list[tuple[str, float]] = []

    def __len__(self) -> int:
        """Steps whose losses were not handed out."""
        return len(self._taken) + sum(len(one.steps) for one in self._copied) + len(self._losses)

    def add(self, step: Step, values: Tensor) -> None:
        """Takes note of a step; checks those before it whose values have long been copied.

        Args:
            step: Of which the values are.
            values: float64 `[3]`: loss of this rank, norm of the gradient, and the first candidate of this
                rank whose loss is not finite, or -1.

        Raises:
            NonFiniteLossError: A loss or gradient norm is NaN or infinite.
        """
        assert step.ends is not None
        self._taken.append(_Taken(name=step.name, values=values, users=step.users, ends=step.ends))
        if len(self._taken) >= _STEPS:  # after the same step on every rank, as a bad loss must be told to all
            self._read_copied()
            self._copy()

    def losses(self) -> list[tuple[str, float]]:
        """(step, loss over all ranks) of the steps since the last call; waits for them.

        Raises:
            NonFiniteLossError: As `add`.
        """
        if self._taken:
            self._copy()
        self._read_copied()
        losses, self._losses = self._losses, []
        return losses

    def _read_copied(self) -> None:
        while self._copied:
            self._read(self._copied.pop(0))

    def _copy(self) -> None:
        own = torch.stack([one.values for one in self._taken])
        summed = own.clone()
        dist.all_reduce(summed)
        values = torch.stack([summed, own])
        there = None
        if values.is_cuda:
            host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
            host.copy_(values, non_blocking=True)
            there = torch.cuda.Event()  # type: ignore[no-untyped-call]
            there.record()
            values = host
        self._copied.append(_Copied(steps=self._taken, values=values, there=there))
        self._taken = []

    def _read(self, copied: _Copied) -> None:
        if copied.there is not None:
            copied.there.synchronize()
        summed, own = copied.values.tolist()
        for step, (loss, norm, _), (_, _, bad) in zip(copied.steps, summed, own, strict=True):
            if not (abs(loss) < float("inf") and abs(norm) < float("inf")):
                raise NonFiniteLossError(
                    f"step {step.name} (day/pass/step): loss {loss}, gradient norm {norm}; "
                    f"{_rows(step, int(bad))}; training stops and makes no run; look at these rows, or lower "
                    "the learning rate"
                )
            self._losses.append((step.name, loss))


def _rows(step: _Taken, bad: int) -> str:
    """Says which rows of any rank have losses that are not finite; every rank must call it."""
    ranks: list[Any] = [None] * dist.get_world_size()
    row = int(np.searchsorted(step.ends, bad, "right")) if bad >= 0 else None
    user = None if row is None or step.users is None else int(step.users[row])
    of_rank = None if row is None else f"row {row}" + ("" if user is None else f" (user {user})")
    dist.all_gather_object(ranks, of_rank)
    some = [f"{one} of rank {rank}" for rank, one in enumerate(ranks) if one is not None]
    if some:
        return f"the first row whose loss is not finite: {', '.join(some)}"
    return f"the loss of every row is finite, the gradient of its {len(step.ends)} rows is not"
