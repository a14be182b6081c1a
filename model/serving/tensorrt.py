"""TensorRT: MTGR's dense part as an engine, built by the network API for a card that need not be here.

    path = engine(package, capability="8.9")       # built once, then found
    scorer = engine_scorer(package, path, "cuda")   # on such a card, at parity or not at all

*TensorRT for RTX* (`TENSORRT=1 make setup`) builds on any machine for compute capability 8.0, 8.6, 8.9 and
12.x and runs there alone: for Hopper, 9.0, NVIDIA's own TensorRT is needed, which has the same API; where it
is not installed there is no engine, and the log says that AOTInductor's graph serves. One profile covers any
number of rows and tokens up to `ROOM`. Engines lie in `$MTGR_VAR/serving/engines/<digest>/`, by version of
TensorRT, card and precision.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path

import torch
from torch import Tensor, nn

from model.data.batch import JaggedBatch
from model.judging.scoring import Scorer
from model.rankers.mtgr import MtgrRanker
from model.rankers.protocol import Ranker
from model.runs.files import sha256, write_file, write_text
from model.serving.network import network_inputs
from model.serving.package import Package
from model.serving.parity import parity, told
from model.serving.tensorrt_build import ROOM, TensorRtError, build, library, log_of, why_not
from spark_jobs.contract import locations

logger = logging.getLogger(__name__)


def engine(package: Package, capability: str) -> Path | None:
    """The engine of a package for cards of a compute capability: found, or built now.

    Returns:
        Its path, beside which `.json` has `BuiltEngine.facts` and its SHA-256; None where there can be no
        engine here, and the log says why, and what serves instead.

    Raises:
        TensorRtError: TensorRT refuses the network.
        ValueError: The ranker has no network.
    """
    if reason := why_not(capability):
        logger.warning("no engine for %s: %s; AOTInductor's graph serves instead", package.path, reason)
        return None
    half = "bfloat16" if package.config.train.precision == "bfloat16" else "float16"
    name = f"{library(capability).__version__}-sm{capability}-{half}.engine"
    path = locations.engines(package.digest) / name
    facts = path.with_suffix(".json")
    if facts.exists() and json.loads(facts.read_text(encoding="utf-8"))["sha256"] == sha256(path):
        return path
    ranker = package.ranker()
    if not isinstance(ranker, MtgrRanker):
        raise ValueError(
            f"{package.path}: the architecture {package.config.model.architecture} has no network"
        )
    built = build(ranker, capability, half)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, lambda neighbour: neighbour.write_bytes(built.plan))
    write_text(facts, json.dumps({**built.facts, "sha256": sha256(path)}, indent=1, sort_keys=True) + "\n")
    logger.info("built %s", path)
    return path


class EngineRanker(nn.Module):
    """A ranker that looks up by its own tables and computes by an engine.

    Args:
        ranker: Whose tables they are, on the card that the engine is for.
        path: What `engine` gave.

    Raises:
        TensorRtError: The engine is damaged, or does not load on this card.
    """

    def __init__(self, ranker: Ranker, path: Path) -> None:
        super().__init__()
        facts = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        if (digest := sha256(path)) != facts["sha256"]:
            raise TensorRtError(f"{path} has the SHA-256 {digest}, expected is {facts['sha256']}: delete it")
        trt = library(facts["capability"])
        log, errors = log_of(trt)
        errors.clear()
        self.runtime = trt.Runtime(log)
        self.engine = self.runtime.deserialize_cuda_engine(path.read_bytes())
        if self.engine is None:
            raise TensorRtError(f"{path} does not load here: {'; '.join(errors)}")
        self.context = self.engine.create_execution_context()
        self.embeddings = ranker.inputs.embeddings

    def forward(self, batch: JaggedBatch) -> Tensor:
        """Logits of click and conversion, float32 `[2, C]`; nothing waits for the device."""
        inputs = network_inputs(batch, self.embeddings(batch))
        inputs = {name: tensor.contiguous() for name, tensor in inputs.items()}
        logits = torch.empty(2, batch.num_candidates, device=batch.device)
        for name, tensor in inputs.items():
            self.context.set_input_shape(name, tuple(tensor.shape))
            self.context.set_tensor_address(name, tensor.data_ptr())
        self.context.set_tensor_address("logits", logits.data_ptr())
        if not self.context.execute_async_v3(torch.cuda.current_stream().cuda_stream):
            shapes = {name: tuple(tensor.shape) for name, tensor in inputs.items()}
            raise TensorRtError(f"TensorRT refuses the shapes {shapes}: the engine's room is {ROOM}")
        return logits


def engine_scorer(package: Package, path: Path, device: torch.device | str) -> Scorer:
    """What scores by an engine, once golden requests have scored by it as in evaluation.

    Raises:
        TensorRtError: They do not; names the worst. Or as `EngineRanker`.
    """
    ranker = EngineRanker(package.ranker(device), path)
    scorer = Scorer(package.dataset, package.config, ranker, device)
    precision = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))["precision"]
    report = parity(package.golden, scorer, precision)
    if not report["passed"]:
        raise TensorRtError(f"{path} is not used: {told(report)}")
    return scorer
