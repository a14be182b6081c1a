"""The dense learning rate over a lineage: warm-up by steps or tokens, then constant or a falling cosine."""

from __future__ import annotations

import math

from model.config.run import TrainConfig


def rate_share(train: TrainConfig, num_steps: int, num_tokens: int) -> float:
    """Share of `dense_lr` at which a step is taken.

    Args:
        train: The training.
        num_steps: Steps of the lineage before this one.
        num_tokens: Tokens of the lineage, this step's among them.
    """
    if train.warmup_tokens:
        warm = min(1.0, num_tokens / train.warmup_tokens)
    else:
        warm = min(1.0, (num_steps + 1) / (train.warmup_steps + 1))
    if train.schedule == "constant":
        return warm
    done = min(1.0, num_steps / train.decay_steps)
    return warm * (train.final_share + (1 - train.final_share) * 0.5 * (1 + math.cos(math.pi * done)))
