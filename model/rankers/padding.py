"""Rows padded to the longest one: for attention that no operator computes over jagged rows."""
# ruff: noqa: N803, N806 (names carry their shape: B rows, T tokens, L behaviours, C candidates, D width)

from __future__ import annotations

import torch
from torch import Tensor

from model.data.batch import JaggedBatch
from spark_jobs.contract.features import Group


def within(lengths_B: Tensor, longest: int) -> Tensor:
    """Which places of a padded row hold a token: bool `[B, longest]`."""
    return torch.arange(longest, device=lengths_B.device) < lengths_B.unsqueeze(1)


def places(lengths_B: Tensor, longest: int, num_tokens: int) -> Tensor:
    """Where the tokens of jagged rows lie in rows padded to `longest`, laid end to end: int64 `[T]`."""
    rows = torch.arange(len(lengths_B), device=lengths_B.device)
    shift_B = rows * longest - (lengths_B.cumsum(0) - lengths_B)
    shift_T = shift_B.repeat_interleave(lengths_B, output_size=num_tokens)
    return torch.arange(num_tokens, device=lengths_B.device) + shift_T


def pad(x_TD: Tensor, lengths_B: Tensor, longest: int) -> Tensor:
    """Rows of a jagged tensor, zeros behind them: `[B, longest, D]`."""
    padded = x_TD.new_zeros(len(lengths_B) * longest, x_TD.shape[1])
    padded = padded.index_copy(0, places(lengths_B, longest, x_TD.shape[0]), x_TD)
    return padded.view(len(lengths_B), longest, x_TD.shape[1])


def sees(batch: JaggedBatch) -> Tensor:
    """Which behaviours, static ones and then real-time ones, a candidate sees: bool `[B, C, L]`, padded."""
    longest, lengths = batch.layout().longest, batch.lengths
    visible_BC = pad(
        batch.candidate_visible.unsqueeze(1), lengths[Group.CANDIDATE], longest[Group.CANDIDATE]
    ).squeeze(-1)
    is_static_BL = within(lengths[Group.STATIC], longest[Group.STATIC])
    places_L = torch.arange(longest[Group.REALTIME], device=batch.device)
    return torch.cat(
        [
            is_static_BL.unsqueeze(1).expand(-1, visible_BC.shape[1], -1),
            places_L < visible_BC.unsqueeze(-1),
        ],
        dim=2,
    )
