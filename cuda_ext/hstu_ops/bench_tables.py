"""Writes the tables of a README from the JSON files of `hstu_ops.bench`.

    python -m hstu_ops.bench_tables cuda_ext/README.md cuda_ext/benchmarks

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

from hstu_ops.bench_timing import PASSES

logger = logging.getLogger(__name__)

_BLOCK = re.compile(r"<!-- benchmark (?P<name>[\w.-]+) -->\n.*?<!-- end -->", re.DOTALL)


def table(report: dict[str, Any]) -> str:
    """Returns one report as a Markdown table with the environment it was measured in."""
    machine = ", ".join(f"{key} {value}" for key, value in report["environment"].items())
    lines = [
        f"Measured with {machine}. Median of the repeats, quartiles in brackets.",
        "",
        "| operator | workload | side | forward ms | TFLOP/s | forward + backward ms | TFLOP/s | faster |",
        "|---|---|---|---|---|---|---|---|",
    ]
    groups: dict[tuple[str, str], dict[str, dict[str, Any]]] = {}
    for result in report["results"]:
        sides = groups.setdefault((result["operator"], result["workload"]), {})
        sides.setdefault(result["side"], {})[result["passes"]] = result
    for (operator, workload), sides in groups.items():
        base = next(iter(sides.values()))
        for side, passes in sides.items():
            cells = [operator, workload, side]
            for name in PASSES:
                result = passes[name]
                low, high = result["quartiles_ms"]
                cells.append(f"{result['median_ms']:.3f} ({low:.3f} to {high:.3f})")
                cells.append("" if result["tflops"] is None else f"{result['tflops']:.3g}")
            ratios = [base[name]["median_ms"] / passes[name]["median_ms"] for name in PASSES]
            cells.append("" if passes is base else f"{ratios[0]:.1f}x, {ratios[1]:.1f}x")
            lines.append("| " + " | ".join(cells) + " |")
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
            logger.error("%s has a table %s, but there is no %s: run hstu_ops.bench", args.readme, name, path)
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
