"""The server under load, each of its means off and on: throughput and latency by callers.

    python -m benchmarks.serve_load --out FILE [--device cuda] [--presets large tiny] [--no-server]
    python -m benchmarks.serve_load --table FILE

A model with drawn weights, of lengths that its preset reads, is packaged and scored in two ways. *In
process*: batches from their tensors to probabilities, as a process of the server computes them, encoding
included. *By the server*: `model.serve` with Triton, binary requests, the callers on the same cores; closed
loops, then an open one at half of the most. Requests are few, so that with prefixes all but the first of a
user find theirs.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import os
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import result_file
from benchmarks.attention_timing import machine
from benchmarks.load import Call, at_rate, closed
from benchmarks.packages import write_package
from benchmarks.rows import table_of
from benchmarks.serve import free_port, server
from benchmarks.serve_gpu import weighted
from model.config.presets import preset_named
from model.data.batch import SEQUENCES
from model.data.stored import Array, StoredRows
from model.judging.scoring import Scorer
from model.serving import kserve, roles
from model.serving.golden import golden
from model.serving.holder import Served
from model.serving.package import Package
from model.serving.request import RequestForm
from model.serving.scorers import EngineOptions
from spark_jobs.contract import command, environment, locations
from spark_jobs.contract.datasets import dataset_named

LENGTHS = {"large": (1000, 100, 150), "tiny": (50, 10, 20)}  # S, R, K of a request
SIDES = {
    "evaluation": EngineOptions(is_used=False),
    "engine, no graphs": EngineOptions(has_graphs=False, prefix_mb=0),
    "engine": EngineOptions(prefix_mb=0),
    "engine, fp16": EngineOptions(precision="float16", prefix_mb=0),
    "engine, fp16, prefixes": EngineOptions(precision="float16", prefix_mb=8192),
}
_REQUESTS, _GOLDEN = 48, 8
_ROWS = 20_000  # of each dynamic table
_BATCHES = (1, 8, 32)
_CALLERS = (1, 4, 16, 64)


def package_of(preset: str, folder: Path) -> tuple[Package, list[Mapping[str, Array]]]:
    """A package of a preset with drawn weights, and requests to it as tensors."""
    dataset, base = dataset_named("foodlog"), preset_named(preset)
    model = dataclasses.replace(base.model, max_static=LENGTHS[preset][0])
    config = dataclasses.replace(base, model=model).sized(dataset)
    lengths = {g: np.full(_REQUESTS, n) for g, n in zip(SEQUENCES, LENGTHS[preset], strict=True)}
    table = table_of(dataset, lengths)
    ranker = weighted(dataset, config, rows=_ROWS)
    requests = golden(Scorer(dataset, config, ranker), table.slice(0, _GOLDEN), "drawn rows")
    package = write_package(folder, dataset, config, ranker.state_dict(), requests)
    form = RequestForm(dataset, config.model.max_static)
    rows = table.drop_columns(["label_click", "label_conversion"])
    return package, [form.tensors_of(form.encoder.stored(rows.slice(row, 1))) for row in range(_REQUESTS)]


def in_process(
    package: Package, tensors: Sequence[Mapping[str, Array]], device: str, options: EngineOptions, rounds: int
) -> Iterator[dict[str, Any]]:
    """Milliseconds of batches of several sizes, and what the engine has counted meanwhile."""
    served = Served(package.path, device, 20_000, 32, options)
    for size in _BATCHES:
        taken = []
        for turn in range(rounds):
            of_batch = [tensors[(turn * size + place) % len(tensors)] for place in range(size)]
            start = time.perf_counter()
            rows = StoredRows.joined([served.form.of_tensors(one) for one in of_batch])
            served.score(served.form.encoder.encode(rows))
            taken.append(1000 * (time.perf_counter() - start))
            if turn == rounds // 4:
                taken.clear()  # what is compiled and kept at first
                served.counted()
        p50, p95, p99 = np.percentile(taken, [50, 95, 99]).round(3).tolist()
        counts = {" ".join(key): number for key, number in served.counted().items()}
        rate = round(1000 * size / float(np.mean(taken)), 1)
        yield {"batch": size, "requests_per_s": rate, "p50_ms": p50, "p95_ms": p95, "p99_ms": p99} | counts


def by_server(
    calls: Sequence[Call], options: EngineOptions, instances: int, seconds: float, device: str
) -> Iterator[dict[str, Any]]:
    """Closed loops of more and more callers, and an open one at half of the most; the metrics at the end."""
    url = f"http://127.0.0.1:{free_port()}"
    serve = [sys.executable, "-m", "model.serve", "--dataset", "foodlog", "--port", url.rpartition(":")[2]]
    serve += ["--instances", str(instances), "--no-log", "--prefix-mb", str(options.prefix_mb)]
    serve += ["--no-engine"] * (not options.is_used) + ["--no-graphs"] * (not options.has_graphs)
    serve += ["--precision", options.precision] if options.precision else []
    with server(serve, url, "/v2/health/ready", MTGR_DEVICE=device):
        asyncio.run(closed(url, calls, 4, seconds))
        best = 0.0
        for callers in _CALLERS:
            load = asyncio.run(closed(url, calls, callers, seconds)).summary()
            best = max(best, load["requests_per_s"])
            yield {"loop": "closed", "callers": callers, **load}
        load = asyncio.run(at_rate(url, calls, best / 2, 2 * seconds)).summary()
        yield {"loop": "open", "rate": round(best / 2, 1), **load}
        with urllib.request.urlopen(f"{url}/metrics", timeout=10) as answer:
            told = answer.read().decode().splitlines()
        yield {"metrics": [line for line in told if line.startswith("mtgr_") and "bucket" not in line]}


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """All measurements; the file is written after each side."""
    report: dict[str, Any] = {
        "environment": machine(arguments.device),
        "cores": len(os.sched_getaffinity(0)),
        "lengths": {preset: LENGTHS[preset] for preset in arguments.presets},
        "lines": [],
    }
    names = arguments.sides if arguments.device == "cuda" else ["evaluation"]
    for preset in arguments.presets:
        with tempfile.TemporaryDirectory() as folder:
            environment.override({"MTGR_VAR": folder})
            package, tensors = package_of(preset, locations.serving() / "foodlog" / "1")
            roles.point("foodlog", roles.CURRENT, 1)
            bodies = [kserve.encode(one) for one in tensors]
            path = "/v2/models/foodlog/infer"
            calls = [
                Call(path=path, body=body, headers={kserve.LENGTH_HEADER: str(length)})
                for body, length in bodies
            ]
            for side in names:
                of, options = {"preset": preset, "side": side}, SIDES[side]
                own = in_process(package, tensors, arguments.device, options, arguments.rounds)
                report["lines"] += [{**of, "way": "process", **line} for line in own]
                torch.cuda.empty_cache()
                for instances in arguments.instances if arguments.server else ():
                    lines = by_server(calls, options, instances, arguments.seconds, arguments.device)
                    report["lines"] += [
                        {**of, "way": "server", "instances": instances, **line} for line in lines
                    ]
                report["summary"] = summary(report)
                result_file.write(arguments.out, report)
    return report


def summary(report: Mapping[str, Any]) -> dict[str, float]:
    """The most requests a second, and the p99 of the open loop, by preset, way and side."""
    figures: dict[str, float] = {}
    for line in report["lines"]:
        if "requests_per_s" not in line:
            continue
        name = f"{line['preset']}_{line['way']}_{line['side'].replace(', ', '_').replace(' ', '_')}"
        if line.get("loop") == "open":
            figures[f"{name}_half_load_p99_ms"] = line["p99_ms"]
        else:
            key = f"{name}_requests_per_s"
            figures[key] = max(figures.get(key, 0.0), line["requests_per_s"])
    return figures


def table(report: Mapping[str, Any]) -> list[str]:
    """Lines of a Markdown table of a result."""
    lines = [
        "| preset, side | way | batch or callers | requests/s | p50 / p95 / p99, ms |",
        "|---|---|---|---|---|",
    ]
    for line in report["lines"]:
        if "requests_per_s" in line:
            load = line.get("batch") or line.get("callers") or f"open, {line['rate']:.0f}/s"
            way = line["way"] + (f" x {line['instances']}" if "instances" in line else "")
            rate = f"{line['requests_per_s']:.0f}"
            times = " / ".join(f"{line[f'{q}_ms']:.2f}" for q in ("p50", "p95", "p99"))
            lines.append(f"| {line['preset']}, {line['side']} | {way} | {load} | {rate} | {times} |")
    return lines


def _run(arguments: argparse.Namespace) -> dict[str, Any] | None:
    if result_file.is_printed(arguments, table):
        return None
    return {"summary": run(arguments)["summary"], "out": str(arguments.out)}


def main(argv: Sequence[str] | None = None) -> int:
    """Measures and writes; see `command.run` for the exit codes."""
    parser = command.parser("benchmarks.serve_load", __doc__)
    result_file.add_arguments(parser)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--presets", nargs="+", choices=tuple(LENGTHS), default=list(LENGTHS))
    parser.add_argument("--sides", nargs="+", choices=tuple(SIDES), default=list(SIDES), help="on a GPU")
    parser.add_argument("--instances", nargs="+", type=int, default=[2], help="processes of the server")
    parser.add_argument("--rounds", type=int, default=200, help="batches of each size in process")
    parser.add_argument("--seconds", type=float, default=3.0, help="of each closed loop")
    parser.add_argument("--no-server", dest="server", action="store_false", help="in process alone")
    return command.run(parser, _run, argv)


if __name__ == "__main__":
    sys.exit(main())
