"""What computes a served package's scores: on a GPU the engine, else its compiled graph or its ranker.

    scorer = scorer_of(package, device, expected, EngineOptions(), ...)
    probabilities = scorer.live(batch)                      # float32 [2, C]

Which of them, and why, is logged. The engine keeps what profile and static behaviours have become, by their
digest: requests of one user find it until the day's snapshot gives the user others, and a package that takes
another's place begins with none. A prefix of other weights or other behaviours is never taken.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

from model.data.batch import JaggedBatch
from model.judging.scoring import Scorer
from model.serving.buckets import buckets_for
from model.serving.engine import Engine, cannot_serve
from model.serving.package import Package
from spark_jobs.contract.features import Group

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """How a GPU computes.

    Args:
        is_used: Whether the engine does; else evaluation's own path.
        precision: One of `engine.PRECISIONS`; None: the one that the model was trained in.
        has_graphs: Whether its passes are captured.
        prefix_mb: Megabytes of kept keys and values; 0: none are kept.
    """

    is_used: bool = True
    precision: str | None = None
    has_graphs: bool = True
    prefix_mb: int = 2048


DEFAULT = EngineOptions()


class LiveScorer(Protocol):
    """What a batch's probabilities come from.

    Attributes:
        precision: That it computes in.
    """

    precision: str

    def live(self, batch: JaggedBatch) -> npt.NDArray[np.float32]:
        """Probabilities of click and conversion of every candidate, float32 `[2, C]`."""
        ...

    def counts(self) -> Mapping[tuple[str, str], int]:
        """What has been done so far, by name and kind of a metric."""
        ...


class RankerScorer:
    """Evaluation's own path, or the compiled graph in it."""

    def __init__(self, package: Package, device: torch.device | str) -> None:
        self.precision = str(package.record["precision"])
        self._scorer = Scorer(package.dataset, package.config, package.fastest(device), device)

    def live(self, batch: JaggedBatch) -> npt.NDArray[np.float32]:
        """See `LiveScorer`."""
        return self._scorer.live(batch)

    def counts(self) -> Mapping[tuple[str, str], int]:
        """None."""
        return {}


class EngineScorer:
    """The engine of a package.

    Args:
        package: Of an MTGR.
        device: Where to compute; a CPU captures nothing.
        options: How.
        expected: Requests by whose lengths buckets are chosen.
        max_rows: Requests of a batch.
        batch_tokens: Tokens of a batch.
    """

    def __init__(
        self,
        package: Package,
        device: torch.device | str,
        options: EngineOptions,
        expected: JaggedBatch,
        *,
        max_rows: int,
        batch_tokens: int,
    ) -> None:
        config = package.config
        self.precision = options.precision or config.train.precision
        self._reads_realtime = config.train.frozen_share < 1
        is_captured = options.has_graphs and torch.device(device).type == "cuda"
        buckets = buckets_for(expected, config.model.max_static, max_rows, batch_tokens)
        self.engine = Engine(
            package.ranker("cpu"),
            config,
            device=device,
            precision=self.precision,
            buckets=buckets if is_captured else (),
            cache_bytes=options.prefix_mb << 20,
        )
        logger.info(
            "%s scores by the engine on %s in %s: %d buckets captured, %d MB for prefixes",
            package.path, device, self.precision, len(buckets) * is_captured, options.prefix_mb,
        )  # fmt: skip

    def live(self, batch: JaggedBatch) -> npt.NDArray[np.float32]:
        """See `LiveScorer`."""
        if not self._reads_realtime:
            batch = batch.frozen()
        return self.engine.score(batch, prefix_keys(batch) if self.engine.cache is not None else None)

    def counts(self) -> Mapping[tuple[str, str], int]:
        """Passes by graph or without, places of tokens used or empty, and prefixes."""
        work, cache = self.engine.work, self.engine.cache
        counts = {
            ("passes", "graph"): work.captured,
            ("passes", "eager"): work.eager,
            ("places", "token"): work.tokens,
            ("places", "padding"): work.padding,
        }
        if cache is not None:
            counts |= {("prefixes", kind): count for kind, count in vars(cache.counts).items()}
        return counts


COUNTED = {"passes": "passes of the engine", "places": "places of tokens", "prefixes": "kept prefixes"}


def prefix_keys(batch: JaggedBatch) -> list[bytes]:
    """Of each request, a digest of its profile and static behaviours, as they are encoded."""
    ends = batch.lengths[Group.STATIC].cumsum(0).tolist()
    keys, first = [], 0
    for row, end in enumerate(ends):
        digest = hashlib.blake2b(digest_size=16)
        for group, places in ((Group.PROFILE, slice(row, row + 1)), (Group.STATIC, slice(first, end))):
            for values in (batch.ids[group], batch.numbers[group]):
                digest.update(values[:, places].numpy().tobytes())
        keys.append(digest.digest())
        first = end
    return keys


def scorer_of(
    package: Package,
    device: torch.device,
    options: EngineOptions,
    expected: JaggedBatch,
    *,
    max_rows: int,
    batch_tokens: int,
) -> LiveScorer:
    """The fastest way to score a package on a device; arguments as of `EngineScorer`."""
    if device.type == "cuda":
        reason = "it is switched off" if not options.is_used else cannot_serve(package.config)
        if reason is None:
            return EngineScorer(
                package, device, options, expected, max_rows=max_rows, batch_tokens=batch_tokens
            )
        logger.info("%s scores without the engine: %s", package.path, reason)
    return RankerScorer(package, device)
