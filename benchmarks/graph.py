"""The compiled graph of a package against the ranker as it is: time to compile, time to score.

    python -m benchmarks.graph --device cpu --preset tiny --out benchmarks/results/graph_cpu.json
    python -m benchmarks.graph --table benchmarks/results/graph_cpu.json

What is timed goes from one or eight encoded requests to probabilities, both on the host, with lookups, which
are timed beside it. The sides take turns in one process, on a CPU with one thread. Requests have S 50,
R 10, K 10 for tiny, which reads no more, S 1000, R 100, K 150 for other presets, over random rows of
foodlog's declaration; weights are drawn.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks import result_file
from benchmarks.attention_timing import machine
from benchmarks.rows import table_of
from benchmarks.serve_gpu import timed, weighted
from model.config.presets import preset_named
from model.data.batch import JaggedBatch
from model.data.encoder import SampleEncoder
from model.rankers.protocol import Ranker
from model.serving.graph import CompiledRanker, compile_graph
from model.serving.parity import TOLERANCE
from spark_jobs.contract import command
from spark_jobs.contract.datasets import dataset_named
from spark_jobs.contract.features import Group

_SIZES = {"tiny": (50, 10, 10)}  # static, real-time, candidates
_OTHERS = (1000, 100, 150)


def run(preset: str, device: str, rounds: int) -> dict[str, Any]:
    """All measurements, as the result file has them."""
    dataset, base = dataset_named("foodlog"), preset_named(preset)
    static, realtime, candidates = _SIZES.get(preset, _OTHERS)
    model = dataclasses.replace(base.model, max_static=static)
    config = dataclasses.replace(base, model=model).sized(dataset)
    ranker = weighted(dataset, config).to(device).eval().requires_grad_(False)
    encoder, batches = SampleEncoder(dataset, static), {}
    for count in (1, 8):
        lengths = {Group.STATIC: static, Group.REALTIME: realtime, Group.CANDIDATE: candidates}
        rows = {group: np.full(count, length) for group, length in lengths.items()}
        batches[count] = encoder.encode(table_of(dataset, rows, seed=count)).laid_out()
    began = time.perf_counter()
    graph = compile_graph(ranker, batches[8].to(device), config.train.precision)
    compiled_s = time.perf_counter() - began
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "dense.pt2"
        path.write_bytes(graph)
        compiled = CompiledRanker(ranker, path)
    result: dict[str, Any] = {
        "environment": machine(device),
        "model": {"preset": preset, "precision": config.train.precision, "static": static,
                  "realtime": realtime, "candidates": candidates},
        "rounds": rounds,
        "compile_s": round(compiled_s, 1),
        "bytes": len(graph),
        "parity": {},
        "ms": {},
        "ratio": {},
    }  # fmt: skip
    for count, batch in batches.items():
        eager, ours = (_scored(one, config.train.precision, device) for one in (ranker, compiled))
        result["parity"][str(count)] = float(np.abs(eager(batch) - ours(batch)).max())
        sides = {"ranker": lambda: eager(batch), "graph": lambda: ours(batch),  # noqa: B023
                 "lookups": lambda: _looked_up(ranker, batch, device)}  # noqa: B023  # fmt: skip
        result["ms"][str(count)] = timed(sides, rounds)
        turns = [timed({name: sides[name] for name in ("ranker", "graph")}, 20) for _ in range(9)]
        ratios = [turn["graph"]["p50"] / turn["ranker"]["p50"] for turn in turns]
        result["ratio"][str(count)] = [round(float(np.quantile(ratios, q)), 3) for q in (0, 0.5, 1)]
    result["summary"] = summary(result)
    return result


def _scored(ranker: nn.Module, precision: str, device: str) -> Callable[[JaggedBatch], Any]:
    @torch.inference_mode()
    def score(batch: JaggedBatch) -> Any:
        with torch.autocast(device, torch.bfloat16, enabled=precision == "bfloat16"):
            return ranker(batch.to(device)).sigmoid().cpu().numpy()

    return score


@torch.inference_mode()
def _looked_up(ranker: Ranker, batch: JaggedBatch, device: str) -> None:
    ranker.inputs.embeddings(batch.to(device))
    if device == "cuda":
        torch.cuda.synchronize()


def summary(result: dict[str, Any]) -> dict[str, float]:
    """The figures by name."""
    preset = result["model"]["preset"]
    return {
        f"graph_{preset}_compile_s": result["compile_s"],
        f"graph_{preset}_one_p50_ms": result["ms"]["1"]["graph"]["p50"],
        f"graph_{preset}_one_over_ranker": result["ratio"]["1"][1],
        f"graph_{preset}_eight_over_ranker": result["ratio"]["8"][1],
        f"graph_{preset}_parity_max": max(result["parity"].values()),
    }


def table(result: dict[str, Any]) -> list[str]:
    """Lines of a Markdown table of a result."""
    lines = ["| ms, p50 (p5 to p95) | one request | eight |", "|---|---|---|"]
    for side in ("ranker", "graph", "lookups"):
        cells = [result["ms"][count][side] for count in ("1", "8")]
        texts = [f"{of['p50']:.2f} ({of['p5']:.2f} to {of['p95']:.2f})" for of in cells]
        lines.append(f"| {side} | {' | '.join(texts)} |")
    ratios = [f"{middle:.2f} ({low:.2f} to {high:.2f})" for low, middle, high in result["ratio"].values()]
    return [*lines, f"| graph over ranker, 9 turns | {' | '.join(ratios)} |"]


def _run(arguments: argparse.Namespace) -> dict[str, Any] | None:
    if result_file.is_printed(arguments, table):
        return None
    torch.set_num_threads(1)
    result = run(arguments.preset, arguments.device, arguments.rounds)
    told = result_file.write(arguments.out, result)
    allowed = TOLERANCE[result["model"]["precision"]]
    if (greatest := max(result["parity"].values())) > allowed:
        raise command.RefusedError(f"the graph differs by {greatest:.3g}, allowed is {allowed:g}", result)
    return told


def main(argv: Sequence[str] | None = None) -> int:
    """Measures and writes; see `command.run` for the exit codes."""
    parser = command.parser("benchmarks.graph", __doc__)
    result_file.add_arguments(parser)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--preset", default="tiny")
    parser.add_argument("--rounds", type=int, default=200)
    return command.run(parser, _run, argv)


if __name__ == "__main__":
    sys.exit(main())
