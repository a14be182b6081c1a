"""How long a gate takes, phase by phase, over partitions that are in the lake.

    python -m benchmarks.gate --dataset foodlog --suite samples --ds 2026-03-03 --repeat 3

Measures in one process: the import of Great Expectations, the Spark session, then `repeat` times what the
gate does with the day (measuring with Spark; judging and data docs). Verdicts and quarantine are not
written; data docs go to a temporary folder. Writes JSON with shapes, versions, commit and spread to
`--output`, default `$MTGR_VAR/bench/gate_<dataset>_<suite>.json`, and prints it.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any
from unittest import mock

from expectations.rules.rule import Suite
from expectations.rules.suites import suite_of
from spark_jobs.contract import command, environment, locations
from spark_jobs.contract.features import Dataset
from spark_jobs.lake.log import git_sha
from spark_jobs.lake.session import spark_session


def bench(dataset: Dataset, suite: Suite, ds: str, repeat: int) -> dict[str, Any]:
    """Times the gate of one day; seconds.

    Raises:
        LakeError: A table cannot be read.
    """
    started = time.perf_counter()
    from expectations.judging.judge import judge

    imported = time.perf_counter()
    from expectations.measuring.partitions import inspect_events, inspect_samples

    spark = spark_session(f"bench gate {dataset.name} {suite.name}")
    spark.range(1).count()
    connected = time.perf_counter()
    inspect = {"events": inspect_events, "samples": inspect_samples}[suite.name]
    measuring, judging = [], []
    facts: dict[str, Any] = {}
    for _ in range(repeat):
        start = time.perf_counter()
        inspection = inspect(spark, dataset, [ds], suite)[ds]
        middle = time.perf_counter()
        with (
            tempfile.TemporaryDirectory() as folder,
            mock.patch.object(locations, "var", return_value=Path(folder)),
        ):
            judge(suite, ds, inspection.facts)
        measuring.append(middle - start)
        judging.append(time.perf_counter() - middle)
        facts = inspection.facts
    counts = ("rows", "candidates", "static_tokens", "realtime_tokens", "impressions")
    return {
        "dataset": dataset.name,
        "suite": suite.name,
        "ds": ds,
        "rules": len(suite.rules),
        "shape": {name: facts[name] for name in counts if name in facts},
        "seconds": {
            "import_great_expectations": round(imported - started, 2),
            "spark_session": round(connected - imported, 2),
            "measure": _spread(measuring),
            "judge_and_docs": _spread(judging),
        },
        "spark": environment.spark_remote() or environment.spark_master(),
        "machine": {
            "cores": os.cpu_count(),
            "load_1m": round(os.getloadavg()[0], 1),
            "python": platform.python_version(),
        },
        "versions": {name: version(name) for name in ("pyspark", "delta-spark", "great-expectations")},
        "commit": git_sha(),
    }


def _spread(seconds: list[float]) -> dict[str, Any]:
    ordered = sorted(seconds)
    return {
        "first": round(seconds[0], 2),
        "least": round(ordered[0], 2),
        "median": round(ordered[len(ordered) // 2], 2),
        "greatest": round(ordered[-1], 2),
        "repeats": len(seconds),
    }


def _run(arguments: argparse.Namespace) -> Mapping[str, Any]:
    dataset = arguments.dataset
    report = bench(dataset, suite_of(dataset, arguments.suite), arguments.ds, max(1, arguments.repeat))
    output = arguments.output or locations.var() / "bench" / f"gate_{dataset.name}_{arguments.suite}.json"
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(report, indent=1) + "\n")
    return report


def main(argv: Sequence[str] | None = None) -> int:
    """Benchmarks a gate; see `command.run` for the exit codes."""
    parser = command.parser("benchmarks.gate", __doc__)
    command.add_dataset(parser)
    parser.add_argument("--suite", choices=("events", "samples"), required=True)
    command.add_day(parser, help="the day, YYYY-MM-DD")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--output", type=Path)
    return command.run(parser, _run, argv)


if __name__ == "__main__":
    sys.exit(main())
