"""Writes the tables of a README from the JSON files of `benchmarks.attention`.

    python -m benchmarks.attention_tables cuda_ext/README.md benchmarks/results

Each file's table replaces what stands between `<!-- benchmark NAME -->` and `<!-- end -->`, NAME being the
file's name without `.json`; a marker without a file is an error, so that no number outlives its measurement.
"""

import argparse
import json
import logging
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.attention_timing import PASSES

logger = logging.getLogger(__name__)

_BLOCK = re.compile(r"<!-- benchmark (?P<name>[\w.-]+) -->\n.*?<!-- end -->", re.DOTALL)


def _cells(passes: dict[str, dict[str, Any]]) -> list[str]:
    cells = []
    for name in PASSES:
        low, high = passes[name]["quartiles_ms"]
        cells.append(f"{passes[name]['median_ms']:.3f} ({low:.3f} to {high:.3f})")
        speed = passes[name]["tflops"]
        cells.append("" if speed is None else f"{speed:.3g}")
    return cells


def _times(results: list[dict[str, Any]]) -> list[str]:
    """All times, and each side's against the first one of its workload."""
    lines = [
        "| operator | workload | side | forward ms | TFLOP/s | forward + backward ms | TFLOP/s | faster |",
        "|---|---|---|---|---|---|---|---|",
    ]
    groups: dict[tuple[str, str], dict[str, dict[str, dict[str, Any]]]] = {}
    for result in results:
        sides = groups.setdefault((result["operator"], result["workload"]), {})
        sides.setdefault(result["side"], {})[result["passes"]] = result
    for (operator, workload), sides in groups.items():
        base = next(iter(sides.values()))
        for side, passes in sides.items():
            ratio = [base[name]["median_ms"] / passes[name]["median_ms"] for name in PASSES]
            faster = "" if passes is base else f"{ratio[0]:.1f}x, {ratio[1]:.1f}x"
            lines.append("| " + " | ".join([operator, workload, side, *_cells(passes), faster]) + " |")
    return lines


def _ratios(ratios: list[dict[str, Any]]) -> list[str]:
    lines = [
        "| workload | attention of | times as fast, per visible pair, as | forward | forward + backward |"
    ]
    lines.append("|---|---|---|---|---|")
    for ratio in ratios:
        cells = [ratio["workload"], ratio["side"], ratio["against"]]
        lines.append("| " + " | ".join([*cells, *(f"{ratio[name]:.2f}" for name in PASSES)]) + " |")
    return lines


def _parts(parts: list[dict[str, Any]], results: list[dict[str, Any]]) -> list[str]:
    """What each part of a block takes of it, and what is left for what autograd does in between."""
    workload = parts[0]["workload"]
    whole = {
        result["passes"]: result["median_ms"]  # the last backend's, as are the parts
        for result in results
        if result["operator"] == "block" and result["workload"] == workload and "," not in result["side"]
    }
    lines = [f"| part of a block, {workload} | forward ms | share | forward + backward ms | share |"]
    lines.append("|---|---|---|---|---|")
    rest = dict(whole)
    times: dict[str, dict[str, float]] = {}
    for part in parts:
        times.setdefault(part["side"], {})[part["passes"]] = part["median_ms"]
        rest[part["passes"]] -= part["median_ms"]
    times["between the parts"] = rest
    for side, passes in times.items():
        cells = [side]
        for name in PASSES:
            cells += [f"{passes[name]:.3f}", f"{passes[name] / whole[name]:.1%}"]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _memory(memory: list[dict[str, Any]]) -> list[str]:
    lines = ["| tokens of the row | MiB the process grew by | MiB of one N x N matrix |", "|---|---|---|"]
    lines += [f"| {m['tokens']} | {m['grown_mib']} | {m['one_square_mib']} |" for m in memory]
    return lines


def table(report: dict[str, Any]) -> str:
    """Returns one report as Markdown tables with the environment it was measured in."""
    machine = ", ".join(f"{key} {value}" for key, value in report["environment"].items())
    lines = [f"Measured with {machine}. Median of the repeats, quartiles in brackets."]
    parts = [result for result in report["results"] if result["operator"] == "part of a block"]
    results = [result for result in report["results"] if result not in parts]
    lines += ["", *_times(results), "", *_ratios(report["ratios"])]
    if parts:
        lines += ["", *_parts(parts, results)]
    if "memory" in report:
        lines += ["", *_memory(report["memory"])]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Rewrites the tables of the README; 1 when a file that it names is missing."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("readme", type=Path)
    parser.add_argument("benchmarks", type=Path, help="folder of the JSON files")
    args = parser.parse_args(argv)
    text = args.readme.read_text()
    for name in _BLOCK.findall(text):
        path = args.benchmarks / f"{name}.json"
        if not path.exists():
            logger.error(
                "%s has a table %s, but there is no %s: run benchmarks.attention", args.readme, name, path
            )
            return 1

    def replace(match: re.Match[str]) -> str:
        name = match["name"]
        report = json.loads((args.benchmarks / f"{name}.json").read_text())
        return f"<!-- benchmark {name} -->\n\n{table(report)}\n\n<!-- end -->"

    args.readme.write_text(_BLOCK.sub(replace, text))
    logger.info("wrote %s", args.readme)
    return 0


if __name__ == "__main__":
    sys.exit(main())
