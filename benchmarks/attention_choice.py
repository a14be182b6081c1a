"""Measures every backend of `mtgr_attention` on each dtype and head dim, for `backend="auto"` to choose by.

    python -m benchmarks.attention_choice --out benchmarks/results/attention_choice_h100.json

One request of a user and a batch of 16 rows; medians of calls as evaluation makes them, not of graphs, since
the reference synchronises. `tests/cuda_ext/test_argument_checks.py` holds the choice to the file.
"""

import argparse
import json
import logging
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from hstu_ops.attention import mtgr_attention
from hstu_ops.backends import missing, resolve
from torch import Tensor

from benchmarks.attention_timing import both_passes, machine, summary
from benchmarks.shapes import Jagged

logger = logging.getLogger(__name__)

DTYPES = (torch.float32, torch.bfloat16)
HEAD_DIMS = (16, 32, 64, 128, 256)
WIDTH = 768
ROWS = {"one request": (1, 700, 60, 300), "16 rows": (16, 500, 40, 120)}
INV_N = 1.0 / 500


def _sides(rows: Jagged, dtype: torch.dtype, head_dim: int) -> dict[tuple[str, str], Callable[[], object]]:
    """Returns both passes by every backend that can run them."""
    shape = (3, rows.num_tokens, WIDTH // head_dim, head_dim)
    q, k, v = (part.requires_grad_() for part in torch.randn(shape, device="cuda").to(dtype).unbind(0))
    steps: dict[tuple[str, str], Callable[[], object]] = {}
    for name in ("reference", "triton", "cutlass"):
        if missing(name, "cuda", dtype, head_dim) is not None:
            continue

        def attention(q: Tensor, k: Tensor, v: Tensor, name: str = name) -> Tensor:
            offsets, end = rows.offsets, rows.visible_end
            return mtgr_attention(q, k, v, offsets, end, head_dim**-0.5, INV_N, backend=name)

        steps |= both_passes(name, attention, (q, k, v))
    return steps


def _times(step: Callable[[], object], repeats: int) -> list[float]:
    times = []
    for _ in range(repeats + 2):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        begin.record()
        step()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end))
    return times[2:]


def run(repeats: int) -> list[dict[str, Any]]:
    """Measures all cases."""
    results = []
    for label, (num_rows, *counts) in ROWS.items():
        static, realtime, candidates = ([count] * num_rows for count in counts)
        rows = Jagged.random(static=static, realtime=realtime, candidates=candidates).to("cuda")
        for dtype in DTYPES:
            for head_dim in HEAD_DIMS:
                for (backend, passes), step in _sides(rows, dtype, head_dim).items():
                    line = {
                        "rows": label,
                        "num_tokens": rows.num_tokens,
                        "dtype": str(dtype).removeprefix("torch."),
                        "num_heads": WIDTH // head_dim,
                        "head_dim": head_dim,
                        "backend": backend,
                        "passes": passes,
                        **summary(_times(step, repeats)),
                    }
                    logger.info("%s", line)
                    results.append(line)
    return results


def totals(results: Sequence[dict[str, Any]]) -> dict[tuple[str, int], dict[str, float]]:
    """Returns, by dtype and head dim, each backend's time over the reference's: the mean of the cases."""
    cases: dict[tuple[str, int], dict[str, dict[tuple[str, str], float]]] = {}
    for line in results:
        backends = cases.setdefault((line["dtype"], line["head_dim"]), {})
        backends.setdefault(line["backend"], {})[line["rows"], line["passes"]] = line["median_ms"]
    return {
        case: {
            name: statistics.geometric_mean(ms / backends["reference"][key] for key, ms in times.items())
            for name, times in backends.items()
        }
        for case, backends in cases.items()
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmark and writes its file; returns 0."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--repeats", type=int, default=11)
    args = parser.parse_args(argv)
    results = run(args.repeats)
    over = totals(results)
    report = {
        "environment": machine("cuda"),
        "results": results,
        "summary": {
            f"{dtype}_{head_dim}_auto_over_reference": round(
                ratios[resolve("auto", "cuda", getattr(torch, dtype), head_dim)], 3
            )
            for (dtype, head_dim), ratios in over.items()
        },
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(report, indent=1) + "\n")
    logger.info("wrote %s", args.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
