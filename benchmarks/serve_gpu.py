"""Latency of one and of eight requests on a GPU: the engine against evaluation's path, each means off and on.

    python -m benchmarks.serve_gpu --out benchmarks/results/serve_h100.json
    python -m benchmarks.serve_gpu --table benchmarks/results/serve_h100.json

MTGR large over random rows of foodlog's declaration, S 1000, R 100, K 150 a request. What is timed goes from
encoded requests on the host to probabilities on the host; encoding is timed beside it. All sides take turns
in one process. Weights are drawn: what is timed does not depend on them, and parity is of this model.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import math
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor, nn

from benchmarks import result_file
from benchmarks.attention_timing import machine
from benchmarks.rows import table_of
from model.config.presets import preset_named
from model.config.run import Config
from model.data.batch import JaggedBatch
from model.data.encoder import SampleEncoder
from model.embeddings.dynamic import DynamicEmbeddingCollection
from model.rankers.protocol import Ranker, build_ranker
from model.serving.collate import needed
from model.serving.engine import Engine
from spark_jobs.contract import command
from spark_jobs.contract.datasets import dataset_named
from spark_jobs.contract.features import Dataset, Group

STATIC, REALTIME, CANDIDATES = 1000, 100, 150
NUM_FEATURES = 400
_TURN = 150  # runs, the first turn is not counted
_ROWS = 500_000  # of each dynamic table


def requests_of(dataset: Dataset, count: int) -> pa.Table:
    """Rows with `STATIC`, `REALTIME` and `CANDIDATES` tokens."""
    lengths = {Group.STATIC: STATIC, Group.REALTIME: REALTIME, Group.CANDIDATE: CANDIDATES}
    return table_of(dataset, {group: np.full(count, length) for group, length in lengths.items()}, seed=count)


def weighted(dataset: Dataset, config: Config, rows: int = _ROWS) -> Ranker:
    """A ranker whose biases, norms and scaler differ from what they start as, and whose tables have rows."""
    ranker = build_ranker(dataset, config.model, seed=1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in ranker.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
        for tables in ranker.inputs.embeddings.dynamic.values():
            assert isinstance(tables, DynamicEmbeddingCollection)
            count = len(tables.configs)
            tables.ids = torch.arange(rows).repeat(count)
            tables.starts = torch.arange(count + 1) * rows
            tables.vectors = 0.2 * torch.randn(count * rows, tables.width, generator=generator)
        scaler = ranker.inputs.scaler
        scaler.std_F.fill_(2)
        scaler.fitted_F.fill_(1)
    return ranker


def plain(ranker: nn.Module, precision: torch.dtype) -> Callable[[JaggedBatch], npt.NDArray[np.float32]]:
    """Evaluation's path: the ranker as it is, eager."""

    @torch.inference_mode()
    def score(batch: JaggedBatch) -> npt.NDArray[np.float32]:
        with torch.autocast("cuda", precision, enabled=precision != torch.float32):
            logits: Tensor = ranker(batch.laid_out().to("cuda"))
        return logits.sigmoid().cpu().numpy()

    return score


def timed(
    sides: dict[str, Callable[[], Any]], rounds: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, dict[str, float]]:
    """Milliseconds of each side by percentile; the sides take turns of `_TURN` runs, as a server runs one.

    The first run of a turn finds what the side before has left in the caches: it is counted as all are, and
    `first` is the median of those alone.
    """
    taken: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(1 + -(-rounds // _TURN)):
        for name, side in sides.items():
            for _ in range(_TURN):
                begin = clock()
                side()
                if turn:
                    taken[name].append(1e3 * (clock() - begin))
    return {
        name: {f"p{q}": round(float(np.percentile(values, q)), 4) for q in (5, 50, 95, 99)}
        | {"first": round(float(np.median(values[::_TURN])), 4)}
        for name, values in taken.items()
    }


def parity(
    sides: dict[str, Callable[[JaggedBatch], npt.NDArray[np.float32]]],
    reference: npt.NDArray[np.float32],
    batch: JaggedBatch,
) -> dict[str, float]:
    """Greatest difference of probabilities from the reference by side."""
    return {name: float(np.abs(side(batch) - reference).max()) for name, side in sides.items()}


def copies(rounds: int) -> dict[str, dict[str, float]]:
    """Microseconds to bring 400 jagged features of a request to the GPU, one by one and as one buffer."""
    generator = torch.Generator().manual_seed(1)
    lengths = torch.randint(1, 100, (NUM_FEATURES,), generator=generator).tolist()
    features = [torch.randint(2**40, (length,), generator=generator) for length in lengths]
    offsets = np.cumsum([0, *lengths]).tolist()
    buffer = torch.empty(offsets[-1], dtype=torch.int64, pin_memory=True)
    target = torch.empty(offsets[-1], dtype=torch.int64, device="cuda")
    places = [buffer[first:end].numpy() for first, end in itertools.pairwise(offsets)]
    arrays = [feature.numpy() for feature in features]

    def apart() -> None:
        for feature in features:
            feature.to("cuda", non_blocking=True)
        torch.cuda.synchronize()

    def merged() -> None:
        target.copy_(buffer, non_blocking=True)
        torch.cuda.synchronize()

    def written() -> None:
        for place, array in zip(places, arrays, strict=True):
            place[:] = array

    out = timed({"apart": apart, "merged": merged, "written into the buffer": written}, rounds)
    return {name: {q: round(1e3 * value, 1) for q, value in values.items()} for name, values in out.items()}


def run(rounds: int) -> dict[str, Any]:
    """All measurements, as the result file has them."""
    dataset = dataset_named("foodlog")
    base = preset_named("large")
    config = dataclasses.replace(base, model=dataclasses.replace(base.model, max_static=STATIC)).sized(
        dataset
    )
    ranker = weighted(dataset, config)
    encoder = SampleEncoder(dataset, STATIC)
    tables = {count: requests_of(dataset, count) for count in (1, 8)}
    batches = {count: encoder.encode(table) for count, table in tables.items()}
    ranker = ranker.cuda().eval()
    reference = {n: plain(ranker, torch.float32)(batch) for n, batch in batches.items()}
    buckets = [needed(batch) for batch in batches.values()]
    page_bytes = 4 << 30
    engines = {
        "bf16": Engine(ranker, config, buckets=buckets, cache_bytes=page_bytes),
        "fp16": Engine(ranker, config, buckets=buckets, precision="float16", cache_bytes=page_bytes),
        "bf16 without graphs": Engine(ranker, config),
        "fp32": Engine(ranker, config, precision="float32", buckets=buckets[:1]),
    }
    result: dict[str, Any] = {
        "environment": machine("cuda"),
        "model": {"preset": "large", "static": STATIC, "realtime": REALTIME, "candidates": CANDIDATES},
        "rounds": rounds,
        "parity": {},
        "ms": {},
    }
    for count, batch in batches.items():
        keys = [(count, row) for row in range(count)]
        sides: dict[str, Callable[[JaggedBatch], npt.NDArray[np.float32]]] = {
            "evaluation, bf16": plain(ranker, torch.bfloat16),
            "evaluation, fp16": plain(ranker, torch.float16),
            **{name: engine.score for name, engine in engines.items() if name != "fp32" or count == 1},
            "bf16, prefix kept": lambda b, keys=keys: engines["bf16"].score(b, keys),  # type: ignore[misc]
            "fp16, prefix kept": lambda b, keys=keys: engines["fp16"].score(b, keys),  # type: ignore[misc]
        }
        result["parity"][str(count)] = parity(sides, reference[count], batch)
        result["ms"][str(count)] = timed(
            {name: (lambda side=side, batch=batch: side(batch)) for name, side in sides.items()},  # type: ignore[misc]
            rounds,
        )
    result["ms"]["encode one"] = timed({"encode": lambda: encoder.encode(tables[1])}, rounds // 4)["encode"]
    result["us, 400 features"] = copies(rounds)
    result["summary"] = summary(result)
    return result


def summary(result: dict[str, Any]) -> dict[str, float]:
    """The figures by name."""
    one, eight = result["ms"]["1"], result["ms"]["8"]
    best = min(("bf16", "fp16"), key=lambda name: one[name]["p50"])
    halves = [value for of in result["parity"].values() for name, value in of.items() if name != "fp32"]
    return {
        "serve_one_p50_ms": one[best]["p50"],
        "serve_one_p99_over_p50": round(one[best]["p99"] / one[best]["p50"], 3),
        "serve_eight_p50_ms": min(eight["bf16"]["p50"], eight["fp16"]["p50"]),
        "serve_one_cached_p50_ms": min(one[f"{name}, prefix kept"]["p50"] for name in ("bf16", "fp16")),
        "features_to_gpu_us": result["us, 400 features"]["merged"]["p50"],
        "parity_fp32_max": result["parity"]["1"]["fp32"],
        "parity_half_max": max(halves),
    }


def table(result: dict[str, Any]) -> list[str]:
    """Lines of a Markdown table of a result."""
    lines = ["| ms, p50 / p99 | one request | eight | greatest difference |", "|---|---|---|---|"]
    one, eight = result["ms"]["1"], result["ms"]["8"]
    for name, of_one in one.items():
        cells = [f"{of['p50']:.2f} / {of['p99']:.2f}" if of else "" for of in (of_one, eight.get(name))]
        lines.append(f"| {name} | {' | '.join(cells)} | {result['parity']['1'][name]:.1e} |")
    return lines


def capacity(result: dict[str, Any]) -> str:
    """What a GPU computes at most, and how many cores encode as much, in a sentence."""
    one, eight = result["ms"]["1"], result["ms"]["8"]
    encoding_ms = result["ms"]["encode one"]["p50"]
    singly = 1000 / min(one[name]["p50"] for name in ("bf16", "fp16"))
    rates = [
        8000 / min(eight[f"{name}{kept}"]["p50"] for name in ("bf16", "fp16"))
        for kept in ("", ", prefix kept")
    ]
    cores = [math.ceil(rate * encoding_ms / 1000) for rate in rates]
    return (
        f"A process on the GPU computes at most {singly:.0f} requests a second one by one, {rates[0]:.0f} by "
        f"eights and {rates[1]:.0f} by eights whose prefixes are kept; encoding a request takes "
        f"{encoding_ms:.2f} ms of a core, so that {cores[0]} and {cores[1]} cores encode what it computes by "
        "eights."
    )


def _run(arguments: argparse.Namespace) -> dict[str, Any] | None:
    if result_file.is_printed(arguments, table):
        return None
    if not torch.cuda.is_available():
        raise command.UsageError("it measures a GPU, and torch finds none here")
    result = run(arguments.rounds)
    return result_file.write(arguments.out, result)


def main(argv: Sequence[str] | None = None) -> int:
    """Measures and writes; see `command.run` for the exit codes."""
    parser = command.parser("benchmarks.serve_gpu", __doc__)
    result_file.add_arguments(parser)
    parser.add_argument("--rounds", type=int, default=600)
    return command.run(parser, _run, argv)


if __name__ == "__main__":
    sys.exit(main())
