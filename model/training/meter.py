"""How fast a training is: tokens and FLOPs a second, the share of the chip, and the time waited for data."""

from __future__ import annotations

import logging
import time

import torch

from model.config.run import Config
from model.data.ahead import Ahead
from model.data.steps import Step

logger = logging.getLogger(__name__)

_SECONDS = 60.0  # between two lines
# Dense bfloat16 products of a chip, FLOP/s, by what its name holds (NVIDIA's data sheets).
_PEAKS = {"H100": 989e12, "H200": 989e12, "A100": 312e12}


def peak_flops(device: torch.device) -> float | None:
    """FLOP/s of a GPU whose data sheet is known."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    return next((peak for chip, peak in _PEAKS.items() if chip in name), None)


class Meter:
    """Says every minute, and at the end of a day, how fast this rank is.

    Args:
        config: Of the run.
        device: Where it trains.
    """

    def __init__(self, config: Config, device: torch.device) -> None:
        self._model = config.model
        self._device = device
        self._peak = peak_flops(device)

    def begin(self, steps: Ahead[Step]) -> None:
        """Begins to count, with the steps of a day."""
        self._steps = steps
        self._since, self._tokens, self._flops, self._waited = time.monotonic(), 0, 0, steps.waited

    def add(self, step: Step) -> None:
        """Counts a step of this rank."""
        self._tokens += step.batch.num_tokens
        # Forward once and backward twice, over what the mask lets tokens see.
        self._flops += 3 * sum(
            self._model.visible_flops(where.num_tokens, where.num_pairs) for where in step.batch.layouts
        )
        if time.monotonic() - self._since >= _SECONDS:
            self.say(step.name)

    def say(self, where: str) -> None:
        """Logs the speed since the last line."""
        seconds = time.monotonic() - self._since
        waited = (self._steps.waited - self._waited) / seconds
        line = f"{self._tokens / seconds:,.0f} tokens/s, waited for data {waited:.1%}"
        if self._flops:
            share = f" ({self._flops / seconds / self._peak:.1%} of the chip)" if self._peak else ""
            line += f", {self._flops / seconds / 1e12:.3g} TFLOP/s{share}"
        if self._device.type == "cuda":
            line += f", GPU memory {torch.cuda.max_memory_allocated(self._device) / 2**30:.1f} GiB"
        logger.info("%s: %s", where, line)
        self.begin(self._steps)
