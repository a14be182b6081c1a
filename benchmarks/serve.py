"""The server on a CPU against MLflow's own scoring server of the same model, in one run.

    python -m benchmarks.serve --dataset foodlog --version 3 --graph --out FILE

Takes a registered version, makes its package, and starts one server after the other, round after round: ours
by `model.serve` with its defaults, MLflow's by `mlflow models serve --env-manager local` with two processes.
Requests are the package's golden ones: real rows split by request. Closed loops of more and more callers say
what each can do at most; then requests come at half of that rate, in an open loop, each timed from when it
was due. The generator runs on the same cores. Scores of both are compared.
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import json
import os
import platform
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.load import Call, at_rate, closed
from benchmarks.rows import table_of
from model import export
from model.data.batch import SEQUENCES
from model.serving import kserve, roles
from model.serving.package import Package
from model.serving.request import RequestForm
from spark_jobs.contract import command, environment, locations
from spark_jobs.contract.command import CommandError
from spark_jobs.contract.features import Dataset
from spark_jobs.lake.log import git_sha

_PROCESSES = 2
_CALLERS = {"ours_binary": (1, 2, 4, 8, 16, 32), "ours_json": (1, 4, 16, 32), "mlflow": (1, 2, 4, 8)}
_START_S = 180
_ENCODED = 200


@contextmanager
def server(arguments: Sequence[str], url: str, ready: str, **changes: str) -> Iterator[None]:
    """A server in a process group of its own, from when it answers until the block ends."""
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            arguments, stdout=log, stderr=log, env=environment.child(changes), start_new_session=True
        )
        try:
            end = time.monotonic() + _START_S
            while not _answers(url + ready):
                if process.poll() is not None or time.monotonic() > end:
                    log.seek(0)
                    raise CommandError(f"{arguments[2:5]} does not start: {log.read()[-2000:]!r}")
                time.sleep(0.2)
            yield
            if process.poll() is not None:
                log.seek(0)
                raise CommandError(f"{arguments[2:5]} has ended: {log.read()[-2000:]!r}")
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGTERM)
                process.wait(60)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5):
            return True
    except (urllib.error.URLError, OSError):
        return False


def free_port() -> int:
    """A free port of loopback."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def calls_of(package: Package) -> dict[str, list[Call]]:
    """The golden requests as each server takes them."""
    form = RequestForm(package.dataset, package.config.model.max_static)
    rows = package.golden.rows
    labels = [name for name in rows.column_names if name.startswith("label_")]
    made: dict[str, list[Call]] = {name: [] for name in _CALLERS}
    as_json = {"Content-Type": "application/json"}
    for row in rows.drop_columns(labels).to_pylist():
        body, length = kserve.encode(form.tensors_of(form.of_row(row)))
        headers = {kserve.LENGTH_HEADER: str(length)}
        path = f"/v2/models/{package.dataset.name}/infer"
        made["ours_binary"].append(Call(path=path, body=body, headers=headers))
        made["ours_json"].append(Call(path="/score", body=json.dumps(row).encode(), headers=as_json))
        # MLflow splits a column of lists by its records form; long and int64 are its signature's.
        of_mlflow = json.dumps({"dataframe_records": [row]}).encode()
        made["mlflow"].append(Call(path="/invocations", body=of_mlflow, headers=as_json))
    return made


def _difference(package: Package, urls: Mapping[str, str], calls: Mapping[str, list[Call]]) -> float:
    """Greatest difference between MLflow's scores and ours, over all requests."""
    worst = 0.0
    for ours, theirs in zip(calls["ours_json"], calls["mlflow"], strict=True):
        answers = []
        for name, call in (("ours_json", ours), ("mlflow", theirs)):
            asked = urllib.request.Request(urls[name] + call.path, call.body, call.headers)
            with urllib.request.urlopen(asked, timeout=60) as answer:
                answers.append(json.loads(answer.read()))
        prediction = answers[1]["predictions"][0]
        for task in ("ctr", "ctcvr"):
            worst = max(worst, float(np.abs(np.subtract(answers[0][task], prediction[task])).max()))
    return worst


def _measured(
    calls: Mapping[str, list[Call]], urls: Mapping[str, str], seconds: float, note: Callable[..., None]
) -> None:
    """Closed loops of all sides whose servers are up, then half of our load in an open loop."""
    for name, url in urls.items():
        asyncio.run(closed(url, calls[name], 4, min(seconds, 3)))  # warm
        for callers in _CALLERS[name]:
            load = asyncio.run(closed(url, calls[name], callers, seconds))
            note(side=name, loop="closed", callers=callers, **load.summary())


def _run(arguments: argparse.Namespace) -> Mapping[str, Any]:
    dataset = arguments.dataset
    torch.set_num_threads(1)
    lines: list[dict[str, Any]] = []

    def note(**line: Any) -> None:
        lines.append(line)

    with tempfile.TemporaryDirectory() as folder:
        tracking = locations.tracking_uri()
        exported = export.export(
            dataset, arguments.version, Path(folder) / "serving" / dataset.name / "1", graph=arguments.graph
        )
        package = Package.load(exported["path"])
        environment.override({"MTGR_VAR": folder, "MLFLOW_TRACKING_URI": tracking})
        roles.point(dataset.name, roles.CURRENT, 1)
        calls = calls_of(package)
        worst = 0.0
        for number in range(arguments.rounds):
            ours, theirs = (f"http://127.0.0.1:{free_port()}" for _ in range(2))
            serve = [sys.executable, "-m", "model.serve", "--dataset", dataset.name]
            serve += ["--port", ours.rpartition(":")[2]]
            mlflow = [
                sys.executable,
                "-m",
                "mlflow",
                "models",
                "serve",
                "--env-manager",
                "local",
                "-w",
                str(_PROCESSES),
            ]
            mlflow += [
                "-m",
                f"models:/mtgr-{dataset.name}/{package.version}",
                "-p",
                theirs.rpartition(":")[2],
            ]
            with server(serve, ours, "/v2/health/ready"):
                _measured(calls, {"ours_binary": ours, "ours_json": ours}, arguments.seconds, note)
                rate = _best(lines, "ours_binary")[0] / 2
                load = asyncio.run(
                    at_rate(ours, calls["ours_binary"], rate, 3 * arguments.seconds, seed=number)
                )
                note(side="ours_binary", loop="open", rate=round(rate, 1), **load.summary())
            path = os.pathsep.join([str(Path(sys.executable).parent), environment.text("PATH")])  # uvicorn's
            with server(mlflow, theirs, "/ping", OMP_NUM_THREADS="1", PATH=path):
                _measured(calls, {"mlflow": theirs}, arguments.seconds, note)
                if number == 0:
                    with server(serve, ours, "/v2/health/ready"):
                        worst = _difference(package, {"ours_json": ours, "mlflow": theirs}, calls)
    report = _report(arguments, package, lines, worst)
    report["encoding"] = encoding(dataset)
    report["summary"] |= {
        f"encode_{of}_S{line['static']}_ms": line[f"{of}_ms"]
        for line in report["encoding"]
        for of in ("body", "table")
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(report, indent=1) + "\n")
    summary: dict[str, Any] = report["summary"]
    return summary


def encoding(dataset: Dataset) -> list[dict[str, Any]]:
    """Milliseconds from one request to tensors on this core, by its lengths: of a body, of an Arrow table."""
    form, lines = RequestForm(dataset), []

    def of_body(body: bytes, length: int) -> None:
        form.encoder.encode(form.of_tensors(kserve.decode(body, length)[0]))

    for lengths in ((50, 10, 20), (1000, 100, 150)):
        by_group = {group: np.array([n]) for group, n in zip(SEQUENCES, lengths, strict=True)}
        table = table_of(dataset, by_group).drop_columns(["label_click", "label_conversion"])
        sent = kserve.encode(form.tensors_of(form.encoder.stored(table)))
        lines.append(
            dict(zip(map(str, SEQUENCES), lengths, strict=True))
            | _quartiles("body", functools.partial(of_body, *sent))
            | _quartiles("table", functools.partial(form.encoder.encode, table))
        )
    return lines


def _quartiles(name: str, run: Callable[[], Any]) -> dict[str, Any]:
    seconds = []
    for _ in range(_ENCODED):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    low, middle, high = (round(1000 * quartile, 3) for quartile in statistics.quantiles(seconds, n=4))
    return {f"{name}_ms": middle, f"{name}_ms_quartiles": [low, high]}


def _best(lines: Sequence[Mapping[str, Any]], side: str) -> tuple[float, float, float]:
    """Median, least and greatest over the rounds of what a side did at most."""
    rounds: dict[int, list[float]] = {}
    for line in lines:
        if line["side"] == side and line["loop"] == "closed":
            rounds.setdefault(line["callers"], []).append(line["requests_per_s"])
    best = max(rounds.values(), key=statistics.median)
    return statistics.median(best), min(best), max(best)


def _report(
    arguments: argparse.Namespace, package: Package, lines: Sequence[Mapping[str, Any]], worst: float
) -> dict[str, Any]:
    best = {side: _best(lines, side) for side in _CALLERS}
    half = [line for line in lines if line["loop"] == "open"]
    p99 = [line["p99_ms"] for line in half]
    rows = package.golden.rows
    form = RequestForm(package.dataset)
    lengths = form.encoder.stored(rows).lengths
    return {
        "summary": {
            "cpu_requests_per_s_over_mlflow": round(best["ours_binary"][0] / best["mlflow"][0], 1),
            "cpu_json_requests_per_s_over_mlflow": round(best["ours_json"][0] / best["mlflow"][0], 1),
            "cpu_half_load_p99_ms": statistics.median(p99),
            "cpu_half_load_p50_ms": statistics.median(line["p50_ms"] for line in half),
            "cpu_requests_per_s": best["ours_binary"][0],
            "mlflow_requests_per_s": best["mlflow"][0],
            "scores_differ_by": worst,
        },
        "spread": {
            "requests_per_s": {side: {"least": of[1], "greatest": of[2]} for side, of in best.items()},
            "half_load_p99_ms": {"least": min(p99), "greatest": max(p99)},
        },
        "model": {
            "preset": package.record["preset"],
            "ds": package.record["ds"],
            "digest": package.digest,
            "graph": package.record["graph"],
        },
        "shapes": {
            "requests": rows.num_rows,
            "source": package.golden.source,
            **{f"mean_{group}": round(float(lengths[group].mean()), 1) for group in SEQUENCES},
        },
        "machine": {
            "cores": len(os.sched_getaffinity(0)),
            "cpu": platform.machine(),
            "load_average": round(os.getloadavg()[0], 2),
            "processes_of_mlflow": _PROCESSES,
            "python": platform.python_version(),
        },
        "versions": {name: version(name) for name in ("torch", "mlflow", "aiohttp", "nvidia-pytriton")},
        "commit": git_sha(),
        "seconds": arguments.seconds,
        "rounds": arguments.rounds,
        "results": list(lines),
    }


def table(report: Mapping[str, Any]) -> list[str]:
    """Lines of a Markdown table of a result: what each way does at most, and ours at half of that."""
    summary, spread = report["summary"], report["spread"]["requests_per_s"]
    names = {"ours_binary": "binary tensors", "ours_json": "JSON", "mlflow": "MLflow's scoring server"}
    lines = ["| | requests/s at most (of the rounds) | over MLflow's |", "|---|---|---|"]
    for side, name in names.items():
        middle = _best(report["results"], side)[0]
        least, greatest = spread[side]["least"], spread[side]["greatest"]
        over = middle / summary["mlflow_requests_per_s"]
        lines.append(f"| {name} | {middle:.0f} ({least:.0f} to {greatest:.0f}) | {over:.1f} |")
    p99 = report["spread"]["half_load_p99_ms"]
    lines += [
        "",
        f"At half of the first rate, in an open loop: p50 {summary['cpu_half_load_p50_ms']:.1f} ms, p99 "
        f"{summary['cpu_half_load_p99_ms']:.0f} ms ({p99['least']:.0f} to {p99['greatest']:.0f}).",
    ]
    return lines


def main(argv: Sequence[str] | None = None) -> int:
    """Measures; see `command.run` for the exit codes."""
    parser = command.parser("benchmarks.serve", __doc__)
    command.add_dataset(parser)
    parser.add_argument("--version", type=int, help="registered version (default: the champion)")
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--graph", action="store_true", help="with the compiled graph")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=5.0, help="of each closed loop")
    return command.run(parser, _run, argv)


if __name__ == "__main__":
    sys.exit(main())
