"""Measures the dynamic hash table beside FBGEMM's static one and TorchRec's remapped ids; writes a JSON file.

    python -m benchmarks.tables --device cpu --out benchmarks/results/tables_cpu.json
    python -m benchmarks.tables --device cuda --out benchmarks/results/tables_h100.json
    python -m benchmarks.tables --table benchmarks/results/tables_*.json

The ids of a batch are log-uniform over all that the table holds, so that of 1,048,576 some 355 thousand
differ. Ours are raw 64-bit ids; FBGEMM's static table gets row numbers, which somebody had to make. All sides
run in one process on the same batches. Times on a GPU are of its own timeline, with the host running ahead.
TorchRec's remapping by MCH evicts every tenth step, which counts: figures against it are of means over whole
rounds of ten. FBGEMM has no Adam on a CPU: there row-wise Adagrad stands in.
"""

import argparse
import gc
import itertools
import json
import logging
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.attention_timing import machine, summary
from benchmarks.tables_peers import StaticTable, hash_zch, mch
from model.embeddings.hash_table import HashTable
from model.embeddings.mixing import mix64
from model.embeddings.rules import RowOptimizer

logger = logging.getLogger(__name__)

ROUND = 10  # steps between two evictions of MCH
OPTIMIZERS = ("adagrad", "adam")
Step = Callable[[int], object]


class Batches:
    """Log-uniform rows of a full table, and the raw ids that they stand for."""

    def __init__(self, num_rows: int, num_ids: int, device: str, count: int = 8) -> None:
        generator = torch.Generator().manual_seed(1)
        draws = torch.rand(count, num_ids, generator=generator, dtype=torch.float64)
        rows = (draws * torch.tensor(float(num_rows)).log()).exp().long().clamp(1, num_rows) - 1
        self.num_unique = len(torch.unique(rows[0]))
        self.all = mix64(torch.arange(num_rows, device=device))
        self.rows = list(rows.to(device))
        self.ids = [self.all[rows] for rows in self.rows]

    def __getitem__(self, step: int) -> tuple[Tensor, Tensor]:
        """Raw ids and row numbers of a step."""
        return self.ids[step % len(self.ids)], self.rows[step % len(self.rows)]


def timed(step: Step, device: str, repeats: int, warm: int = ROUND) -> list[float]:
    """Milliseconds of each of `repeats` calls after `warm`; nothing waits between those on a GPU."""
    for k in range(warm):
        step(k)
    if device == "cpu":
        times = []
        for k in range(repeats):
            start = time.perf_counter()
            step(k)
            times.append((time.perf_counter() - start) * 1e3)
        return times
    torch.cuda.synchronize()
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(repeats + 1)]  # type: ignore[no-untyped-call]
    marks[0].record()
    for k in range(repeats):
        step(k)
        marks[k + 1].record()
    torch.cuda.synchronize()
    return [a.elapsed_time(b) for a, b in itertools.pairwise(marks)]


def filled(num_rows: int, width: int, optimizer: str, batches: Batches, device: str) -> HashTable:
    """A table that holds all ids."""
    table = HashTable(width, optimizer=RowOptimizer(name=optimizer, lr=0.01), seed=1, device=device)
    for ids in torch.split(batches.all, 1 << 20):
        table.insert(ids, [len(ids)], [0])
    assert len(table) == num_rows
    return table


def steps_of_table(table: HashTable, batches: Batches, grad: Tensor) -> dict[str, Step]:
    """What the dynamic table does in a training step, in three depths."""

    def slot(k: int) -> tuple[Tensor, Tensor]:
        ids, _ = batches[k]
        return ids, table.insert(ids, [len(ids)], [0])

    def lookup(k: int) -> Tensor:
        ids, rows = slot(k)
        table.vectors(rows, ids, [len(ids)], [0])
        return rows

    def step(k: int) -> None:
        table.update(lookup(k), grad)

    return {"id to slot": slot, "lookup": lookup, "step": step}


def growth(device: str, width: int, num_ids: int, first: int, last: int) -> dict[str, Any]:
    """Trains while the table grows: half of a batch's ids are new. Milliseconds a step on the wall."""
    table = HashTable(width, optimizer=RowOptimizer(name="adagrad", lr=0.01), seed=1, device=device)
    grad = torch.randn(num_ids, width, device=device)
    for ids in torch.split(mix64(torch.arange(first, device=device)), num_ids):
        table.insert(ids, [len(ids)], [0])

    def step(rows: Tensor) -> float:
        ids = mix64(rows)
        torch.cuda.synchronize()
        start = time.perf_counter()
        placed = table.insert(ids, [num_ids], [0])
        table.vectors(placed, ids, [num_ids], [0])
        table.update(placed, grad)
        torch.cuda.synchronize()
        return (time.perf_counter() - start) * 1e3

    half, size = num_ids // 2, first
    growing = []
    while size < last:
        old = (torch.rand(num_ids - half, device=device) * size).long()
        growing.append(step(torch.cat([old, torch.arange(size, size + half, device=device)])))
        size += half
    steady = [step((torch.rand(num_ids, device=device) * size).long()) for _ in range(20)]
    assert len(table) == size
    return {
        "rows": [first, size],
        "growing": {**summary(growing), "max_ms": round(max(growing), 4)},
        "steady": summary(steady),
        "gib": round(table.memory.nbytes() / 2**30, 2),
    }


def beside_static(
    args: argparse.Namespace, optimizer: str, batches: Batches, grad: Tensor, record: Callable[..., None]
) -> None:
    """One optimizer's tables; with row-wise Adagrad, TorchRec's remapping too."""
    table = filled(args.rows, args.width, optimizer, batches, args.device)
    static = StaticTable(args.rows, args.width, optimizer, args.device)
    mine = steps_of_table(table, batches, grad)
    theirs = static.steps(batches, grad)
    for again in ("", ", again"):  # the second time says how much of a difference is noise
        for work in ("lookup", "step"):
            record("dynamic", f"{optimizer}: {work}{again}", mine[work])
            record("FBGEMM static", f"{optimizer}: {work}{again}", theirs[work])
    if optimizer == "adagrad":
        record("dynamic", "id to slot", mine["id to slot"], 2 * args.repeats)
        remapped = mch(batches, args.rows, args.device, ROUND)
        record("TorchRec MCH", "id to slot", remapped, 2 * args.repeats)
        record("TorchRec MCH + FBGEMM", "step", lambda k: static.train(remapped(k), grad), 2 * args.repeats)
        if args.device == "cuda":
            record("TorchRec HashZCH", "id to slot", hash_zch(batches, args.rows, args.device))


def measured(args: argparse.Namespace) -> dict[str, Any]:
    """All comparisons at one size."""
    batches = Batches(args.rows, args.ids, args.device)
    grad = torch.randn(args.ids, args.width, device=args.device)
    results: list[dict[str, Any]] = []

    def record(side: str, work: str, step: Step, repeats: int = args.repeats) -> None:
        times = timed(step, args.device, repeats)
        mean = round(sum(times) / len(times), 4)
        results.append({"side": side, "work": work, **summary(times), "mean_ms": mean})
        logger.info("%s", results[-1])

    for optimizer in OPTIMIZERS:
        beside_static(args, optimizer, batches, grad, record)
        gc.collect()
    return {
        "shape": {
            "rows": args.rows,
            "width": args.width,
            "ids": args.ids,
            "unique": batches.num_unique,
            "draw": "log-uniform",
        },
        "results": results,
    }


def summed_up(report: dict[str, Any], device: str) -> dict[str, float]:
    """The figures by name: times over FBGEMM's (less is better), and how many times as fast as MCH."""
    mean = {(r["side"], r["work"]): r["mean_ms"] for r in report["results"]}
    median = {(r["side"], r["work"]): r["median_ms"] for r in report["results"]}

    def over(work: str) -> float:
        return round(float(median["dynamic", work] / median["FBGEMM static", work]), 3)

    def faster(peer: str, work: str, ours: str) -> float:
        return round(float(mean[peer, work] / mean["dynamic", ours]), 2)

    if device == "cpu":
        return {"cpu_table_over_mch": faster("TorchRec MCH + FBGEMM", "step", "adagrad: step")}
    growing = report["growth"]
    return {
        "table_lookup_over_fbgemm": over("adagrad: lookup"),
        "table_adagrad_step_over_fbgemm": over("adagrad: step"),
        "table_adam_step_over_fbgemm": over("adam: step"),
        "id_to_slot_over_mch": faster("TorchRec MCH", "id to slot", "id to slot"),
        "id_to_slot_over_hash_zch": faster("TorchRec HashZCH", "id to slot", "id to slot"),
        "growth_longest_over_steady": round(growing["growing"]["max_ms"] / growing["steady"]["median_ms"], 2),
    }


def table_of(path: Path) -> str:
    """A report as lines of a Markdown table."""
    report = json.loads(path.read_text())
    shape, environment = report["shape"], report["environment"]
    where = environment.get("device", f"{environment.get('threads')} cores")
    sizes = f"{shape['ids']:,} ids ({shape['unique']:,} differ) of {shape['rows']:,} x {shape['width']}"
    lines = [
        f"| {where}: {sizes} | side | median ms | quartiles | mean |",
        "|---|---|---|---|---|",
    ]
    for r in report["results"]:
        low, high = r["quartiles_ms"]
        times = f"{r['median_ms']:.3f} | {low:.3f}, {high:.3f} | {r['mean_ms']:.3f}"
        lines.append(f"| {r['work']} | {r['side']} | {times} |")
    if "growth" in report:
        growing, steady = report["growth"]["growing"], report["growth"]["steady"]
        first, last = report["growth"]["rows"]
        low, high = growing["quartiles_ms"]
        times = f"{growing['median_ms']:.3f}, longest {growing['max_ms']:.3f} | {low:.3f}, {high:.3f} |"
        lines.append(f"| from {first:,} to {last:,} rows, half of a batch new | dynamic | {times} |")
        lines.append(f"| that table, nothing new | dynamic | {steady['median_ms']:.3f} | | |")
    return "\n".join(lines)


def main() -> int:
    """Runs everything on one device and writes the report, or prints reports."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--out", type=Path, default=Path("var/bench/tables.json"))
    parser.add_argument("--table", type=Path, nargs="+", help="reports to print instead")
    parser.add_argument("--rows", type=int, help="default 10 M on a GPU, 1 M on a CPU")
    parser.add_argument("--ids", type=int, help="of a batch; default 1,048,576 and 65,536")
    parser.add_argument("--width", type=int, help="default 128 and 32")
    parser.add_argument("--grow-to", type=int, default=64_000_000)
    parser.add_argument("--repeats", type=int, default=20)
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    if args.table:
        sys.stdout.write("\n\n".join(table_of(path) for path in args.table) + "\n")
        return 0
    on_gpu = args.device == "cuda"
    args.rows = args.rows or (10_000_000 if on_gpu else 1_000_000)
    args.ids = args.ids or (1 << 20 if on_gpu else 1 << 16)
    args.width = args.width or (128 if on_gpu else 32)
    report = {"environment": machine(args.device), **measured(args)}
    if on_gpu:
        report["growth"] = growth(args.device, args.width, args.ids, 1_000_000, args.grow_to)
    report["summary"] = summed_up(report, args.device)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(report, indent=1) + "\n")
    logger.info("%s", json.dumps(report["summary"]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
