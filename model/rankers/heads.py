"""From candidates to logits: the CTR and CTCVR heads of every ranker."""
# ruff: noqa: N803 (names carry their shape: B rows, T tokens, C candidates, D width, F features)

from __future__ import annotations

import torch
from torch import Tensor, nn

from model.rankers.inputs import mlp


class Heads(nn.Module):
    """CTR and CTCVR heads: one MLP each over the normalised candidate."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.towers = nn.ModuleList(mlp(width, hidden, 1) for _ in range(2))

    @torch.no_grad()
    def start_at(self, rates: Tensor) -> None:
        """Sets the bias so that training starts from the labels' rates `[2]`, not from one half."""
        for tower, logit in zip(self.towers, rates.clamp(1e-4, 0.5).logit(), strict=True):
            tower[-1].bias.fill_(float(logit))  # type: ignore[index,union-attr,operator]

    def forward(self, *x_CD: Tensor) -> Tensor:
        """Logits of click and conversion, float32 `[2, C]`, of one representation or of one for each."""
        normed = [self.norm(one_CD) for one_CD in x_CD]
        of_tasks = normed * (len(self.towers) // len(normed))
        logits = [tower(z_CD) for tower, z_CD in zip(self.towers, of_tasks, strict=True)]
        return torch.cat(logits, dim=-1).t().float()
