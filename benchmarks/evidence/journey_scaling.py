r"""What more compute, longer histories and more days are worth to MTGR on journey.

    python -m benchmarks.evidence.journey_scaling --only trials --out var/journey --together 8
    python -m benchmarks.evidence.journey_scaling --only test --out var/journey --together 8 --seeds 1 2 3
    python -m benchmarks.evidence.journey_scaling --only table --out var/journey

Sizes differ in blocks and width. Each has its rate chosen by as many trials, on weeks 47 and 48 as
`journey_choice.py` does, since no one rate fits all; other settings are those of `BASE`. Then each learns
weeks 13 to 48 and scores the test weeks. The law is a line through conversion GAUC by trip over the logarithm
of the blocks' FLOPs for a mean row, of which R^2 says how much it explains. Lengths and days differ from one
of the sizes in what they read alone. What is there is not made again, and `--only table` writes
`benchmarks/results/journey_scaling.json` of what is there.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.evidence.journey import add_together, side_by_side
from benchmarks.evidence.journey_choice import CHOICE, value_of
from benchmarks.evidence.scored import TEST_DAYS
from model.config.presets import config_of
from model.rankers.mtgr import MtgrConfig
from model.runs.files import write_text
from spark_jobs.contract import command
from spark_jobs.contract.clock import shift_day
from spark_jobs.contract.command import CommandError

RESULT = Path(__file__).resolve().parents[1] / "results" / "journey_scaling.json"
BASE = "tiny,train.sparse_lr=0.0025,train.passes=1,train.frozen_share=0.0"
SIZES = {
    "1x32": (1, 32, 1),
    "2x64": (2, 64, 2),
    "3x128": (3, 128, 4),
    "4x256": (4, 256, 4),
    "5x512": (5, 512, 8),
}
RATES = (2.5e-4, 5e-4, 1e-3, 2e-3)
OF_CURVES = "2x64"  # the size that lengths and days are of
LENGTHS = {
    0: 3_000,
    50: 4_000,
    100: 5_500,
    200: 8_000,
    500: 13_000,
    1000: 18_000,
}  # with tokens a step: as many rows
WEEKS = (36, 18, 9, 4)
FIRST = "2017-03-20"


def model_of(size: str, rate: float) -> str:
    """The model of a size with a rate, as `presets.config_of` reads it."""
    blocks, width, heads = SIZES[size]
    fields = {
        "train.dense_lr": rate,
        "model.num_blocks": blocks,
        "model.d_model": width,
        "model.num_heads": heads,
        "model.token_hidden": 2 * width,
        "model.head_hidden": width,
    }
    return ",".join([BASE, *(f"{name}={value}" for name, value in fields.items())])


def chosen_rates(folder: Path) -> dict[str, dict[str, float]]:
    """By size what each rate was worth in weeks 47 and 48, of the sizes that have all their trials."""
    tried = {size: {rate: value_of(folder, model_of(size, rate)) for rate in RATES} for size in SIZES}
    return {
        size: {str(rate): value for rate, value in of.items() if value is not None}
        for size, of in tried.items()
        if None not in of.values()
    }


def best_model(size: str, tried: Mapping[str, float]) -> str:
    """A size with the rate that was worth most."""
    return model_of(size, float(max(tried, key=lambda rate: tried[rate])))


def lengths_of(base: str) -> dict[int, str]:
    """By how many behaviours are read the model, with as many rows a step."""
    return {
        length: f"{base},model.max_static={length},train.batch_tokens={tokens}"
        for length, tokens in LENGTHS.items()
    }


def first_day(weeks: int) -> str:
    """First of the days that are learned, of some weeks before the test weeks."""
    return shift_day(TEST_DAYS[0], -7 * weeks)


def _made(folder: Path, model: str) -> dict[str, Any] | None:
    """What the seeds of a model gave; None if none has scored."""
    reports = [json.loads(path.read_text()) for path in sorted((folder / model).glob("*.json"))]
    if not reports:
        return None
    values = [one["metrics"]["ctcvr_gauc_request"] for one in reports]
    clicks = [one["metrics"]["ctr_gauc_request"] for one in reports]
    config = config_of(model).model
    assert isinstance(config, MtgrConfig)
    tokens = reports[0]["tokens"] / reports[0]["rows"]
    return {
        "model": model,
        "seeds": [one["seed"] for one in reports],
        "ctcvr_gauc_request": values,
        "ctr_gauc_request": clicks,
        "tokens_a_row": tokens,
        "flops_a_row": config.flops(round(tokens)),
        "train_seconds": [one["train_seconds"] for one in reports],
        "device": reports[0]["device"],
        "versions": reports[0]["versions"],
        "commit": reports[0]["commit"],
    }


def law_of(flops: Sequence[float], values: Sequence[float]) -> dict[str, float]:
    """The line through values over log10 of FLOPs: `slope` a decade, `intercept`, `r2`; needs three sizes.

    Raises:
        ValueError: There are fewer.
    """
    if len(flops) < 3:
        raise ValueError(f"a law of {len(flops)} sizes says nothing; it needs three")
    x, y = np.log10(np.asarray(flops, float)), np.asarray(values, float)
    slope, intercept = np.polyfit(x, y, 1)
    left, spread = y - (slope * x + intercept), y - y.mean()
    r2 = 1 - float(left @ left) / float(spread @ spread)
    return {"slope": float(slope), "intercept": float(intercept), "r2": r2}


def result_of(out: Path) -> dict[str, Any]:
    """The result of what is there.

    Raises:
        CommandError: No size has its trials.
    """
    rates = chosen_rates(out / "trials")
    if not rates:
        raise CommandError(f"{out / 'trials'} has no size with trials of all rates: --only trials")
    best = {size: best_model(size, tried) for size, tried in rates.items()}
    sizes = {size: made for size, model in best.items() if (made := _made(out / "test", model))}
    curves: dict[str, dict[str, Any]] = {"lengths": {}, "weeks": {}}
    if OF_CURVES in best:
        for length, model in lengths_of(best[OF_CURVES]).items():
            curves["lengths"][str(length)] = _made(out / "test", model)
        for weeks in WEEKS:
            curves["weeks"][str(weeks)] = _made(_of_weeks(out, weeks), best[OF_CURVES])
    curves = {name: {key: made for key, made in of.items() if made} for name, of in curves.items()}
    law = None
    if len(sizes) >= 3:
        means = [float(np.mean(one["ctcvr_gauc_request"])) for one in sizes.values()]
        law = law_of([one["flops_a_row"] for one in sizes.values()], means)
    summary = (
        {}
        if law is None
        else {
            "scaling_r2": round(law["r2"], 4),
            "scaling_sizes": len(sizes),
            "scaling_gauc_a_decade": round(law["slope"], 5),
        }
    )
    return {"summary": summary, "law": law, "sizes": sizes, "rates": rates, **curves}


def _of_weeks(out: Path, weeks: int) -> Path:
    """Where models that learned some weeks have their scores."""
    return out / ("test" if first_day(weeks) == FIRST else f"test_{weeks}_weeks")


def table(result: Mapping[str, Any]) -> str:
    """The result as Markdown; +- is the greatest less the least of the seeds."""
    lines = [
        "| what | MFLOPs a row | seeds | conversion GAUC by trip | click GAUC by trip | training s |",
        "|---|---|---|---|---|---|",
    ]
    for kind, told in (("sizes", "blocks x width {}"), ("lengths", "S {}"), ("weeks", "{} weeks")):
        for name, made in result[kind].items():
            cells = [
                f"{np.mean(made[key]):.4f} +-{np.ptp(made[key]):.4f}"
                for key in ("ctcvr_gauc_request", "ctr_gauc_request")
            ]
            seconds = float(np.mean(made["train_seconds"]))
            flops = f"{made['flops_a_row'] / 1e6:,.1f}"
            cells = [told.format(name), flops, str(len(made["seeds"])), *cells, f"{seconds:.0f}"]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def jobs_of(
    out: Path, only: str, seeds: Sequence[int]
) -> list[tuple[Path, dict[str, str], list[tuple[str, int]]]]:
    """What to train: where, on which days, and which models and seeds; sizes first."""
    if only == "trials":
        models = [model_of(size, rate) for rate in RATES for size in SIZES]
        return [(out / "trials", CHOICE, [(model, 1) for model in models])]
    best = {size: best_model(size, tried) for size, tried in chosen_rates(out / "trials").items()}
    test = {"first": FIRST, "test_first": TEST_DAYS[0], "test_last": TEST_DAYS[-1]}
    jobs = [(model, seed) for seed in seeds for model in best.values()]
    jobs += [(model, seed) for seed in seeds for model in lengths_of(best[OF_CURVES]).values()]
    groups = [(out / "test", test, jobs)]
    for weeks in WEEKS[1:]:
        days = {**test, "first": first_day(weeks)}
        groups.append((_of_weeks(out, weeks), days, [(best[OF_CURVES], seed) for seed in seeds]))
    return groups


def main(argv: Sequence[str] | None = None) -> int:
    """Trains, or writes the result; see `command.run` for the exit codes."""
    parser = command.parser("benchmarks.evidence.journey_scaling", __doc__)
    parser.add_argument("--only", choices=("trials", "test", "table"), required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--out", type=Path, required=True, help="folder of trials, scores and runs")
    add_together(parser)

    def body(arguments: argparse.Namespace) -> Mapping[str, Any]:
        if arguments.only == "table":
            result = result_of(arguments.out)
            write_text(RESULT, json.dumps(result, indent=1, sort_keys=True) + "\n")
            sys.stdout.write(table(result))
            return dict(result["summary"])
        failed: list[str] = []
        for folder, days, jobs in jobs_of(arguments.out, arguments.only, arguments.seeds):
            todo = [(model, seed) for model, seed in jobs if not (folder / model / f"{seed}.json").exists()]
            asked = argparse.Namespace(**{**vars(arguments), **days, "out": folder})
            failed += side_by_side(todo, asked)
        if failed:
            raise CommandError(f"{', '.join(failed)} failed: see the logs below {arguments.out}")
        return {"trained": arguments.only}

    return command.run(parser, body, argv)


if __name__ == "__main__":
    sys.exit(main())
