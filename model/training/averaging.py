"""The moving average of the weights, which is what a run publishes.

A constant learning rate leaves the noise of the last batches in the weights; their moving average has not got
it. Large tables stay as they are: a row changes rarely, and ever less under Adagrad.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_STEPS = 10  # between two updates
_DECAY = 0.98  # of one update: a window of some 500 steps, shorter early on


class Average:
    """A moving average of tensors that are trained in place.

    Args:
        parts: The tensors.

    Attributes:
        averaged: Their averages.
    """

    def __init__(self, parts: Sequence[Tensor]) -> None:
        self._parts = list(parts)
        self.averaged = [part.clone() for part in self._parts]

    @torch.no_grad()
    def update(self, num_steps: int) -> None:
        """Takes in the weights after `num_steps` steps: after each early on, then after every tenth."""
        if not self._parts or (num_steps % _STEPS and num_steps >= 5 * _STEPS):
            return
        decay = min(_DECAY, num_steps / (num_steps + 5 * _STEPS))
        torch._foreach_lerp_(self.averaged, self._parts, 1 - decay)
