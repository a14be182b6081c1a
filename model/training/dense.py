"""Optimizers of the dense part by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from model.config.run import TrainConfig

_OUTSIDE = ("inputs.", "heads.")  # what is not hidden: first projections of features, and scores
# What each optimizer keeps of a weight.
ADAMW = frozenset(("step", "exp_avg", "exp_avg_sq"))
MUON = frozenset(("momentum_buffer",))


class DenseOptimizer:
    """AdamW for the dense part; by the name of `muon`, Muon for the hidden matrices and AdamW for the rest.

    Muon (Keller Jordan, https://kellerjordan.github.io/posts/muon/) is that of `torch.optim`. Its steps are
    scaled to the size of AdamW's, so that one rate and one decay serve both.

    Args:
        weights: The dense part by name.
        matrices: Names of those that are weights of linear layers: they decay.
        train: The training.
        rate: The learning rate on a GPU, by which a step can be captured in a CUDA graph; Muon's cannot.

    Attributes:
        is_capturable: Whether a step can be captured.
        param_groups: Of all optimizers.
        state: Of every weight that has been updated.
        kept: What is kept of a weight, by its name.
    """

    def __init__(
        self,
        weights: Mapping[str, nn.Parameter],
        matrices: set[str],
        train: TrainConfig,
        rate: Tensor | None = None,
    ) -> None:
        hidden = [name for name in sorted(matrices) if not name.startswith(_OUTSIDE)]
        by_muon = set(hidden if train.dense_optimizer == "muon" else ())
        decayed = [weights[name] for name in sorted(weights) if name in matrices - by_muon]
        others = [weights[name] for name in sorted(weights) if name not in matrices]
        groups: list[dict[str, Any]] = [{"params": decayed}, {"params": others, "weight_decay": 0.0}]
        lr, decay = train.dense_lr, train.weight_decay
        self.is_capturable = rate is not None and not by_muon
        self._all: list[torch.optim.Optimizer] = [
            torch.optim.AdamW(
                groups,
                lr=rate if rate is not None and self.is_capturable else lr,
                weight_decay=decay,
                fused=True,
                capturable=self.is_capturable,
            )
        ]
        if by_muon:
            of_muon = [weights[name] for name in sorted(by_muon)]
            muon = torch.optim.Muon(of_muon, lr=lr, weight_decay=decay, adjust_lr_fn="match_rms_adamw")
            muon.state = self._all[0].state  # of other weights
            self._all.append(muon)
        self.state: dict[Any, Any] = self._all[0].state
        self.param_groups = [group for one in self._all for group in one.param_groups]
        self.kept = {name: MUON if name in by_muon else ADAMW for name in weights}

    def zero_grad(self) -> None:
        """Forgets the gradients."""
        for one in self._all:
            one.zero_grad()

    def step(self) -> None:
        """Takes one step."""
        for one in self._all:
            one.step()
