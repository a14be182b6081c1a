"""From the samples table to batches: tokens a second of a core, and memory, against a naive collate.

    python -m benchmarks.reader --out FILE [--rows 6000]

One day of foodlog rows with the lengths of shape P, in Delta, in four files. Each side reads it in a process
of its own, whose greatest memory and processor time count:

- `steps`: `model/data/steps.py` with four threads, steps of 48,000 tokens laid out and packed;
- `chunk`: the whole day in one table, encoded at once, then cut into the same steps;
- `naive`: rows as dictionaries, a list of tensors for each column and row, put together by `torch.cat`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from deltalake import write_deltalake

from benchmarks.rows import P, lengths_of, shuffled, table_of
from model.data.batch import token_cuts
from model.data.encoder import SampleEncoder
from model.data.reader import SamplesTable
from model.data.steps import steps_of
from spark_jobs.contract import command, environment, locations
from spark_jobs.contract.features import Group
from spark_jobs.contract.foodlog import FOODLOG
from spark_jobs.lake.log import git_sha

_DAY = "2026-03-02"
_TOKENS = 48_000
_SIDES = ("steps", "chunk", "naive")
_NAIVE_ROWS = 300
_THREADS = 4


def write(num_rows: int) -> None:
    """Writes the day."""
    lengths = lengths_of(P, num_rows, len(FOODLOG.in_group(Group.PROFILE)))
    rows = table_of(FOODLOG, lengths, ds=_DAY)
    quarter = -(-num_rows // 4)
    for first in range(0, num_rows, quarter):
        uri = locations.table(FOODLOG.name, "samples")
        write_deltalake(uri, rows.slice(first, quarter), partition_by=["ds"], mode="append")


def _steps(table: SamplesTable, encoder: SampleEncoder) -> Iterator[int]:
    for step in steps_of(table, encoder, _DAY, pass_number=0, batch_tokens=_TOKENS, seed=1, threads=_THREADS):
        yield step.ready(0.5).batch.num_tokens


def _chunk(table: SamplesTable, encoder: SampleEncoder) -> Iterator[int]:
    columns = [*encoder.columns, *encoder.label_columns]
    rows = encoder.encode(pa.concat_tables(list(table.chunks(_DAY, columns))))
    order, first = shuffled(rows, 1), 0
    for end in token_cuts(rows.tokens_B()[order], _TOKENS):
        yield rows.select(order[first:end]).num_tokens
        first = end


def _naive(table: SamplesTable, encoder: SampleEncoder) -> Iterator[int]:
    columns = [*encoder.columns, *encoder.label_columns]
    rows = next(table.chunks(_DAY, columns)).slice(0, _NAIVE_ROWS).to_pylist()
    held: dict[str, list[torch.Tensor]] = {name: [] for name in columns if name != "ds"}
    tokens = 0
    for row in rows:
        for name, parts in held.items():
            value = row[name]
            parts.append(torch.tensor(value if isinstance(value, list) else [value]))
        own = len(FOODLOG.in_group(Group.PROFILE))
        own += sum(len(row[f"{group}_hour"]) for group in list(Group)[1:])
        tokens += own
        if tokens >= _TOKENS:
            for parts in held.values():
                torch.cat(parts)
                parts.clear()
            yield tokens
            tokens = 0


def measure(side: str) -> dict[str, Any]:
    """Reads the day as one side does."""
    torch.set_num_threads(1)
    table, encoder = SamplesTable(FOODLOG), SampleEncoder(FOODLOG)
    before = _peak_gb()
    start, cpu = time.perf_counter(), time.process_time()
    tokens = sum({"steps": _steps, "chunk": _chunk, "naive": _naive}[side](table, encoder))
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    return {
        "side": side,
        "tokens": tokens,
        "seconds": round(seconds, 3),
        "cpu_seconds": round(cpu, 3),
        "tokens_per_s": round(tokens / seconds),
        "tokens_per_cpu_s": round(tokens / cpu),
        "peak_gb": _peak_gb(),
        "imports_gb": before,
    }


def _peak_gb() -> float:
    """Greatest memory of this process: `getrusage` would count that of its parent before it began."""
    status = Path("/proc/self/status").read_text()
    (line,) = (line for line in status.splitlines() if line.startswith("VmHWM:"))
    return round(int(line.split()[1]) * 1024 / 1e9, 3)


def _run(arguments: argparse.Namespace) -> Mapping[str, Any]:
    if arguments.side:
        return measure(arguments.side)
    with tempfile.TemporaryDirectory() as folder:
        environment.override({"MTGR_LAKE": folder})
        write(arguments.rows)
        lines: list[dict[str, Any]] = []
        for _ in range(arguments.rounds):
            for side in _SIDES:
                ran = subprocess.run(
                    [sys.executable, "-m", "benchmarks.reader", "--side", side, "--out", "-"],
                    capture_output=True,
                    check=True,
                    text=True,
                )
                lines.append(json.loads(ran.stdout.splitlines()[-1]))
    best = {
        side: sorted((one for one in lines if one["side"] == side), key=lambda one: one["tokens_per_cpu_s"])
        for side in _SIDES
    }
    ours, naive = (best[side][len(best[side]) // 2] for side in ("steps", "naive"))
    summary = {
        "reader_tokens_per_s_a_core": ours["tokens_per_cpu_s"],
        "reader_peak_gb": max(one["peak_gb"] for one in best["steps"]),
        "reader_over_naive": round(ours["tokens_per_cpu_s"] / naive["tokens_per_cpu_s"], 1),
    }
    report = {
        "summary": summary,
        "shape": P.text,
        "rows": arguments.rows,
        "machine": {
            "cores": os.cpu_count(),
            "cpu": platform.processor(),
            "python": platform.python_version(),
        },
        "versions": {name: version(name) for name in ("pyarrow", "deltalake", "numpy", "torch")},
        "commit": git_sha(),
        "results": lines,
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(report, indent=1) + "\n")
    return summary


def main(argv: Sequence[str] | None = None) -> int:
    """Times the reader; see `command.run` for the exit codes."""
    parser = command.parser("benchmarks.reader", __doc__)
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--rows", type=int, default=6000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--side", choices=_SIDES, help="reads MTGR_LAKE as this side does and prints what it took"
    )
    return command.run(parser, _run, argv)


if __name__ == "__main__":
    sys.exit(main())
