"""What a request costs MTGR and UserTower on the same hardware: FLOPs and milliseconds.

    python -m benchmarks.serve_cost --device cpu --out benchmarks/results/serve_cost_cpu.json
    python -m benchmarks.serve_cost --device cuda --out benchmarks/results/serve_cost_h100.json
    python -m benchmarks.serve_cost --table FILE

Both score the same requests over random rows of foodlog's declaration, with drawn weights: on a CPU, with
one thread, tiny and user_tower; on a GPU, in bfloat16, large and user_tower of the same width. *Evaluation*
is the path that both have. Beside it each is given what the project has to make it quick: MTGR its compiled
graph, or on a GPU its engine; UserTower on a GPU one CUDA graph of a batch that is there already, which is
less than a server does. FLOPs are those of products, counted by PyTorch. The sides take turns in one process;
on a CPU milliseconds are of processor time, which others on the machine change less than the clock's.
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
from model.config.run import Config
from model.data.batch import JaggedBatch
from model.data.encoder import SampleEncoder
from model.flops import measured
from model.rankers.protocol import Ranker
from model.serving.collate import needed
from model.serving.engine import Engine
from model.serving.graph import CompiledRanker, compile_graph
from spark_jobs.contract import command
from spark_jobs.contract.datasets import dataset_named
from spark_jobs.contract.features import Dataset, Group

PRESETS = {"cpu": ("tiny", "user_tower"), "cuda": ("large", "user_tower_768")}
LENGTHS = {"cpu": (50, 10, 20), "cuda": (1000, 100, 150)}  # S, R, K of a request
COUNTS = (1, 8)
_ROWS = 100_000  # of each dynamic table
_GROUPS = (Group.STATIC, Group.REALTIME, Group.CANDIDATE)
Side = Callable[[], Any]


def config_of(dataset: Dataset, preset: str, max_static: int) -> Config:
    """A preset that reads all static behaviours of a request."""
    base = preset_named(preset)
    model = dataclasses.replace(base.model, max_static=max_static)
    return dataclasses.replace(base, model=model).sized(dataset)


def evaluation(ranker: nn.Module, batch: JaggedBatch, device: str) -> Side:
    """The path that scores in evaluation, from an encoded batch to probabilities on the host."""

    @torch.inference_mode()
    def score() -> Any:
        with torch.autocast("cuda", torch.bfloat16, enabled=device == "cuda"):
            return ranker(batch.laid_out().to(device)).sigmoid().cpu().numpy()

    return score


def compiled(ranker: Ranker, batch: JaggedBatch) -> nn.Module:
    """MTGR's dense part as a compiled graph for this CPU."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "dense.pt2"
        path.write_bytes(compile_graph(ranker, batch.laid_out(), "float32"))
        return CompiledRanker(ranker, path)


@torch.inference_mode()
def captured(ranker: Ranker, batch: JaggedBatch) -> Side:
    """A forward pass over a batch that lies on the GPU, as one CUDA graph; probabilities are copied back."""
    there = batch.laid_out().to("cuda")

    def forward() -> torch.Tensor:
        with torch.autocast("cuda", torch.bfloat16):
            probabilities: torch.Tensor = ranker(there).sigmoid()
        return probabilities

    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    with torch.cuda.stream(side):
        forward()
        forward()
    side.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = forward()

    def score() -> Any:
        graph.replay()
        return out.cpu().numpy()

    return score


def run(device: str, rounds: int) -> dict[str, Any]:
    """All measurements, as the result file has them."""
    dataset, lengths = dataset_named("foodlog"), LENGTHS[device]
    encoder = SampleEncoder(dataset, lengths[0])
    batches = {}
    for count in COUNTS:
        of_rows = {group: np.full(count, length) for group, length in zip(_GROUPS, lengths, strict=True)}
        batches[count] = encoder.encode(table_of(dataset, of_rows, seed=count))
    result: dict[str, Any] = {
        "environment": machine(device),
        "request": dict(zip(("static", "realtime", "candidates"), lengths, strict=True)),
        "rounds": rounds,
        "gflops": {},
        "weights": {},
        "ms": {},
    }
    sides: dict[int, dict[str, Side]] = {count: {} for count in COUNTS}
    for preset in PRESETS[device]:
        config = config_of(dataset, preset, lengths[0])
        flops, weights = measured(dataset, config.model, batches[1].laid_out())
        result["gflops"][preset], result["weights"][preset] = flops / 1e9, weights
        ranker = weighted(dataset, config, _ROWS).to(device).eval().requires_grad_(False)
        is_mtgr, quick = preset == PRESETS[device][0], None
        if is_mtgr:
            quick = (
                Engine(ranker, config, buckets=[needed(batch) for batch in batches.values()])
                if device == "cuda"
                else compiled(ranker, batches[8])
            )
        for count, batch in batches.items():
            sides[count][f"{preset}, evaluation"] = evaluation(ranker, batch, device)
            if isinstance(quick, Engine):
                sides[count][f"{preset}, engine"] = lambda of=quick, batch=batch: of.score(batch)  # type: ignore[misc]
            elif quick is not None:
                sides[count][f"{preset}, compiled"] = evaluation(quick, batch, device)
            elif device == "cuda":
                sides[count][f"{preset}, captured"] = captured(ranker, batch)
    clock = time.perf_counter if device == "cuda" else time.process_time
    result["ms"] = {str(count): timed(of_count, rounds, clock) for count, of_count in sides.items()}
    result["summary"] = summary(result, device)
    return result


def summary(result: dict[str, Any], device: str) -> dict[str, float]:
    """MTGR's FLOPs and milliseconds over UserTower's, each by its quickest way and by evaluation."""
    ours, theirs = PRESETS[device]
    figures = {"serve_flops_over_user_tower": result["gflops"][ours] / result["gflops"][theirs]}
    for count in COUNTS:
        of = result["ms"][str(count)]
        quickest = {
            preset: min(ms["p50"] for side, ms in of.items() if side.startswith(f"{preset},"))
            for preset in (ours, theirs)
        }
        name = {1: "one", 8: "eight"}[count]
        figures[f"serve_cost_{name}_over_user_tower"] = quickest[ours] / quickest[theirs]
        evaluated = [of[f"{preset}, evaluation"]["p50"] for preset in (ours, theirs)]
        figures[f"serve_cost_{name}_evaluation_over_user_tower"] = evaluated[0] / evaluated[1]
    return {f"{key}_{device}": round(value, 3) for key, value in figures.items()}


def table(result: dict[str, Any]) -> list[str]:
    """Lines of a Markdown table of a result."""
    lines = [
        "| | GFLOPs a request | one request, ms, p50 (p5 to p95) | of eight, ms a request |",
        "|---|---|---|---|",
    ]
    for side, one in result["ms"]["1"].items():
        eight = {q: ms / 8 for q, ms in result["ms"]["8"][side].items()}
        cells = [f"{of['p50']:.2f} ({of['p5']:.2f} to {of['p95']:.2f})" for of in (one, eight)]
        lines.append(f"| {side} | {result['gflops'][side.partition(',')[0]]:.3g} | {' | '.join(cells)} |")
    return lines


def _run(arguments: argparse.Namespace) -> dict[str, Any] | None:
    if result_file.is_printed(arguments, table):
        return None
    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise command.UsageError("it is to measure a GPU, and torch finds none here")
    if arguments.device == "cpu":
        torch.set_num_threads(1)
    result = run(arguments.device, arguments.rounds)
    return result_file.write(arguments.out, result)


def main(argv: Sequence[str] | None = None) -> int:
    """Measures and writes; see `command.run` for the exit codes."""
    parser = command.parser("benchmarks.serve_cost", __doc__)
    result_file.add_arguments(parser)
    parser.add_argument("--device", choices=tuple(PRESETS), default="cpu")
    parser.add_argument("--rounds", type=int, default=450)
    return command.run(parser, _run, argv)


if __name__ == "__main__":
    sys.exit(main())
