"""Scores of requests by MTGR on a GPU: one buffer in, one graph, one buffer out.

    engine = Engine(ranker, config, buckets=[Bucket(rows=1, static=1000, realtime=100, candidates=160)])
    probabilities = engine.score(batch)                        # float32 [2, C]: CTR and CTCVR, live

A request is a thousand tokens, some hundred kernels of some microseconds each: what costs is starting them,
and processors that have nothing to do. So the features of all requests of a batch are written into one
page-locked buffer, and its copy, the tables' lookups, tokens, blocks, heads and the copy back are one CUDA
graph for each bucket of sizes, captured at the start; a batch that fits none is computed without. Keys are
cut into parts so that a request's few tiles fill the chip (`hstu_ops.triton_ops.inference`). The last block
computes candidates only. Profile and static behaviours may be kept from request to request (`prefixes`).

Weights are rounded to the precision once, not at every product; statistics of norms are in float32.
"""

from __future__ import annotations

import logging
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from model.config.run import Config
from model.data.batch import JaggedBatch
from model.rankers.mtgr import MtgrConfig, MtgrRanker
from model.rankers.protocol import Ranker
from model.serving.collate import Bucket, Part, Prefix, needed
from model.serving.passes import Pass
from model.serving.prefixes import PrefixCache
from model.serving.weights import Shared, Weights
from spark_jobs.contract.features import Group

logger = logging.getLogger(__name__)

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(kw_only=True)
class Work:
    """What an engine has done.

    Attributes:
        captured: Passes that were graphs.
        eager: Passes for which there was none: no bucket had room.
        tokens: That were computed for requests.
        padding: Places of buckets that were computed and that no request filled.
    """

    captured: int = 0
    eager: int = 0
    tokens: int = 0
    padding: int = 0


class Engine:
    """An MTGR ready to score.

    Args:
        ranker: With its weights; its dense weights and fixed tables are copied.
        config: Of the run.
        device: Where to compute.
        precision: One of `PRECISIONS`; by default the one that it was trained in.
        buckets: Sizes of batches that are captured now; a CPU captures none.
        cache_bytes: Budget of kept keys and values; 0: none are kept.

    Attributes:
        shared: What its passes share.
        passes: By part, those that were captured.
        cache: Of kept keys and values, or None.
        work: What it has done.

    Raises:
        ValueError: The model is no MTGR, the precision is unknown, or a CPU is to capture.
    """

    def __init__(
        self,
        ranker: Ranker,
        config: Config,
        *,
        device: torch.device | str = "cuda",
        precision: str | None = None,
        buckets: Sequence[Bucket] = (),
        cache_bytes: int = 0,
    ) -> None:
        if reason := cannot_serve(config):
            raise ValueError(reason)
        precision = precision or config.train.precision
        if precision not in PRECISIONS:
            raise ValueError(f"precision is {precision!r}; use one of {', '.join(PRECISIONS)}")
        assert isinstance(config.model, MtgrConfig)
        assert isinstance(ranker, MtgrRanker)
        on, dtype = torch.device(device), PRECISIONS[precision]
        if buckets and on.type != "cuda":
            raise ValueError(
                f"{len(buckets)} buckets are to be captured on {on}: only a GPU has graphs, give none"
            )
        self.work = Work()
        self.cache = None
        if cache_bytes:
            self.cache = PrefixCache(
                cache_bytes,
                num_blocks=config.model.num_blocks,
                dim=config.model.d_model,
                dtype=dtype,
                device=on,
            )
        weights, is_cuda = Weights(ranker.to(on).eval(), on, dtype), on.type == "cuda"
        num_streams = 2 + len(weights.columns.stores) if is_cuda else 0
        self.shared = Shared(
            weights=weights,
            config=config.model,
            dtype=dtype,
            device=on,
            cache=self.cache,
            num_processors=torch.cuda.get_device_properties(on).multi_processor_count if is_cuda else 1,
            streams=[torch.cuda.Stream(on) for _ in range(num_streams)],  # type: ignore[no-untyped-call]
        )
        pool = torch.cuda.graph_pool_handle() if buckets else None
        parts = list(Part) if self.cache is not None else [Part.WHOLE]
        self.passes = {part: [self._captured(part, bucket, pool) for bucket in buckets] for part in parts}

    @torch.inference_mode()
    def score(self, batch: JaggedBatch, keys: Sequence[Hashable] | None = None) -> npt.NDArray[np.float32]:
        """Probabilities of click and conversion of every candidate, float32 `[2, C]`.

        Args:
            batch: Requests on the CPU, as the encoder gives them.
            keys: Of each request, what decides its profile and static behaviours, such as user and snapshot;
                by default nothing is kept.

        Raises:
            ValueError: A score is not finite, or a key has kept a prefix of another length.
        """
        prefixes = self._prefixes(batch, keys) if keys is not None and self.cache is not None else None
        part = Part.WHOLE if prefixes is None else Part.REST
        scores = self._run(part, batch, prefixes)
        if not np.isfinite(scores).all():
            raise ValueError("scores are not finite; the weights are broken")
        return scores

    def _prefixes(self, batch: JaggedBatch, keys: Sequence[Hashable]) -> list[Prefix] | None:
        """Where the requests' prefixes are kept, those that were missing written; None if they do not fit."""
        assert self.cache is not None
        lengths = batch.lengths[Group.STATIC].tolist()
        missing: dict[Hashable, int] = {}
        prefixes: list[Prefix] = []
        for row, key in enumerate(keys):
            length = lengths[row] + batch.num_profile
            prefix = self.cache.get(key)
            if prefix is None:
                prefix = self.cache.put(key, length, keep=keys)
                missing[key] = row
            if prefix is None:
                self._drop(missing)
                return None
            if prefix.length != length:
                self._drop(missing)
                raise ValueError(
                    f"key {key!r} has kept a prefix of {prefix.length} tokens, this request's has {length}: "
                    "name in a key all that decides profile and static behaviours"
                )
            prefixes.append(prefix)
        if missing:
            rows = list(missing.values())
            some = batch if len(rows) == batch.num_rows else batch.select(torch.tensor(rows))
            try:
                self._run(Part.PREFIX, some, [prefixes[row] for row in rows])
            except BaseException:  # what was not written is not kept
                self._drop(missing)
                raise
        return prefixes

    def _drop(self, keys: Iterable[Hashable]) -> None:
        assert self.cache is not None
        for key in keys:
            self.cache.drop(key)

    def _run(
        self, part: Part, batch: JaggedBatch, prefixes: Sequence[Prefix] | None
    ) -> npt.NDArray[np.float32]:
        """Computes by the smallest captured pass that has room, else by one of this size without a graph."""
        size = needed(batch)
        fitting = [one for one in self.passes[part] if size.fits(one.bucket, part)]
        used = min(fitting, key=lambda one: one.num_tokens) if fitting else Pass(self.shared, part, size)
        rows, behaviours, candidates = size.places(part)
        tokens = behaviours + candidates + rows * batch.num_profile * (part is not Part.REST)
        self.work.captured += bool(fitting)
        self.work.eager += not fitting
        self.work.tokens += tokens
        self.work.padding += used.num_tokens - tokens
        return used.run(batch, prefixes)

    def _captured(self, part: Part, bucket: Bucket, pool: Any) -> Pass:
        one = Pass(self.shared, part, bucket)
        one.capture(pool)
        logger.info("captured %s of %s", part.value, bucket)
        return one


def cannot_serve(config: Config) -> str | None:
    """Why an engine cannot compute a model, or None if it can."""
    model = config.model
    if type(model) is not MtgrConfig:
        return f"the engine computes mtgr, not {model.architecture}"
    if model.token_layers != 1:
        return f"the engine computes tokens by one hidden layer, not by {model.token_layers}"
    if model.mask != "dynamic" or model.norm != "group":
        return f"the engine computes mtgr as the paper has it, not with mask {model.mask}, norm {model.norm}"
    return None
