"""Measures the operators on the workloads of `benchmarks.shapes` and writes a JSON file.

    python -m benchmarks.attention --device cpu --out benchmarks/results/attention_cpu.json
    python -m benchmarks.attention --device cuda --out benchmarks/results/attention_h200.json
    python -m benchmarks.attention_tables cuda_ext/README.md benchmarks/results

All sides of a comparison run in one process, taking turns, so that a busy machine slows them alike. Times
are medians with quartiles; on a GPU of CUDA graph replays, so without the cost of launching. TFLOP/s count
the pairs that a side's mask allows: 4 x heads x head dim x pairs forward, 3.5 times that with the backward
pass. Every side is also held against every backend of this package, by TFLOP/s: time per visible pair.

Attention kernels of others, built outside of this package, take part by `--peer MODULE:FUNCTION`. The
function is called with (workload, rows, q, k, v, alpha, inv_n) and yields, for each side,
(name, pairs its mask allows a head, forward, inputs that forward takes and whose gradients are wanted).
"""

import argparse
import importlib
import json
import logging
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from hstu_ops.attention import mtgr_attention
from hstu_ops.backends import available
from hstu_ops.norm import group_layer_norm
from torch import Tensor

from benchmarks.attention_block import BlockBench
from benchmarks.attention_memory import memory
from benchmarks.attention_timing import PASSES, Steps, both_passes, machine, measure, ratios, summary
from benchmarks.padded import PaddedAttention
from benchmarks.shapes import (
    ATTENTION_WORKLOADS,
    CPU_WORKLOADS,
    GPU_WORKLOADS,
    WORKLOADS,
    Jagged,
    Workload,
    build,
    uvqk,
)

logger = logging.getLogger(__name__)

INV_N = 1.0 / 500
# The workload whose block is also timed part by part.
PARTS_OF = "P"

Peer = Callable[..., Iterable[tuple[str, int, Callable[..., Tensor], Sequence[Tensor]]]]


class Suite(NamedTuple):
    """The sides of an operator: what runs, its FLOP if it has products, and a mask's pairs if not MTGR's."""

    steps: Steps
    work: dict[tuple[str, str], float]
    pairs: dict[str, int]


def attention_steps(
    workload: Workload,
    rows: Jagged,
    device: str,
    dtype: torch.dtype,
    backends: Sequence[str],
    peers: Sequence[Peer],
) -> Suite:
    """Returns `mtgr_attention` by each backend, beside the padded product on the CPU, and the peers."""
    parts = uvqk(rows.num_tokens, workload.num_heads, workload.head_dim, dtype=dtype, device=device)
    v, q, k = (part.detach().requires_grad_() for part in parts[1:])
    alpha = workload.head_dim**-0.5
    steps: Steps = {}
    if device == "cpu":
        padded = PaddedAttention(rows)
        steps |= both_passes("padded PyTorch", lambda q, k, v: padded(q, k, v, alpha, INV_N), (q, k, v))
    pairs: dict[str, int] = {}
    for peer in peers:
        for side, visible, forward, inputs in peer(workload, rows, q, k, v, alpha, INV_N):
            steps |= both_passes(side, forward, inputs)
            pairs[side] = visible
    for name in backends:

        def attention(q: Tensor, k: Tensor, v: Tensor, name: str = name) -> Tensor:
            return mtgr_attention(q, k, v, rows.offsets, rows.visible_end, alpha, INV_N, backend=name)

        steps |= both_passes(name, attention, (q, k, v))
    flops = 4.0 * workload.num_heads * workload.head_dim
    work = {
        (side, passes): flops * pairs.get(side, rows.visible_pairs) * (1 if passes == PASSES[0] else 3.5)
        for side, passes in steps
    }
    return Suite(steps, work, pairs)


def norm_steps(
    workload: Workload, rows: Jagged, device: str, dtype: torch.dtype, backends: Sequence[str]
) -> Suite:
    """Returns the gated `group_layer_norm` by PyTorch and by each backend with a norm of its own."""
    shape = (rows.num_tokens, workload.num_heads * workload.head_dim)
    x, gate = (torch.randn(shape, device=device, dtype=dtype, requires_grad=True) for _ in range(2))
    weight, bias = (torch.randn(4, shape[1], device=device, requires_grad=True) for _ in range(2))
    steps: Steps = {}
    for name in ("reference", *backends):
        if name == "cutlass":  # it runs the Triton kernel
            continue

        def norm(x: Tensor, weight: Tensor, bias: Tensor, gate: Tensor, name: str = name) -> Tensor:
            return group_layer_norm(x, rows.group, weight, bias, 1e-5, gate_TD=gate, backend=name)

        side = "PyTorch" if name == "reference" else name
        steps |= both_passes(side, norm, (x, weight, bias, gate))
    return Suite(steps, {}, {})


def block_steps(
    workload: Workload, rows: Jagged, device: str, dtype: torch.dtype, backends: Sequence[str]
) -> Suite:
    """Returns a whole block of MTGR by each backend; on a GPU also with `gated_attention` taken apart."""
    steps: Steps = {}
    for name in backends:
        block = BlockBench(workload, rows, device, dtype, name)
        steps |= block.steps(name)
        if device != "cpu":
            steps |= block.steps(f"{name}, two operators", fused=False)
    linear = 10.0 * rows.num_tokens * (workload.num_heads * workload.head_dim) ** 2
    attention = 4.0 * workload.num_heads * workload.head_dim * rows.visible_pairs
    amounts = dict(zip(PASSES, (linear + attention, 3 * linear + 3.5 * attention), strict=True))
    return Suite(steps, {(side, passes): amounts[passes] for side, passes in steps}, {})


def run(
    workload: Workload, device: str, backends: Sequence[str], peers: Sequence[Peer], repeats: int
) -> list[dict[str, Any]]:
    """Measures all operators on one workload."""
    rows = build(workload).to(device)
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    common = (workload, rows, device, dtype, backends)
    suites: list[tuple[str, Callable[[], Suite]]] = [
        ("mtgr_attention", lambda: attention_steps(*common, peers)),
    ]
    if workload.name not in ATTENTION_WORKLOADS:
        suites.append(("group_layer_norm, gated", lambda: norm_steps(*common)))
        suites.append(("block", lambda: block_steps(*common)))
    if workload.name == PARTS_OF:
        suites.append(
            ("part of a block", lambda: Suite(BlockBench(*common[:4], backends[-1]).parts(), {}, {}))
        )
    results = []
    for operator, suite in suites:
        steps, work, pairs = suite()
        for (side, passes), values in measure(steps, device, repeats).items():
            line = {
                "operator": operator,
                "workload": workload.name,
                "side": side,
                "passes": passes,
                "dtype": str(dtype).removeprefix("torch."),
                "num_tokens": rows.num_tokens,
                "num_rows": workload.num_rows,
                "num_heads": workload.num_heads,
                "head_dim": workload.head_dim,
                "visible_pairs": pairs.get(side, rows.visible_pairs),
                **summary(values),
            }
            done = work.get((side, passes))
            line["tflops"] = float(f"{done / line['median_ms'] / 1e9:.4g}") if done else None
            logger.info("%s %s %s %s: %.3f ms", operator, workload.name, side, passes, line["median_ms"])
            results.append(line)
    return results


def _peer(name: str) -> Peer:
    module, _, function = name.partition(":")
    peer: Peer = getattr(importlib.import_module(module), function)
    return peer


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmarks asked for; 0 when the file is written, 1 when no backend can run."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--workloads", nargs="+", choices=sorted(WORKLOADS))
    parser.add_argument("--peer", action="append", default=[], metavar="MODULE:FUNCTION", type=_peer)
    parser.add_argument("--repeats", type=int, help="default: 5 on the CPU, 20 on a GPU")
    args = parser.parse_args(argv)
    reasons = available(args.device)
    candidates = ("cpu",) if args.device == "cpu" else ("triton", "cutlass")
    backends = [name for name in candidates if reasons[name] is None]
    for name in candidates:
        if name not in backends:
            logger.warning("left out: %s", reasons[name])
    if not backends:
        return 1
    results = []
    for name in args.workloads or (CPU_WORKLOADS if args.device == "cpu" else GPU_WORKLOADS):
        repeats = args.repeats or (5 if args.device == "cpu" else 20)
        results += run(WORKLOADS[name], args.device, backends, args.peer, repeats)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    report: dict[str, Any] = {
        "environment": machine(args.device),
        "results": results,
        "ratios": ratios(results, backends),
        "summary": {
            f"attention_{line['workload'].lower()}_{label}_ms": line["median_ms"]
            for line in results
            for passes, label in zip(PASSES, ("forward", "both"), strict=True)
            if (line["operator"], line["side"], line["passes"]) == ("mtgr_attention", backends[-1], passes)
        },
    }
    if args.device == "cpu":
        report["memory"] = memory()
    args.out.write_text(json.dumps(report, indent=1) + "\n")
    logger.info("wrote %s", args.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
