"""What rankers have to beat on journey: popularity, counts and LightGBM.

    PYTHONPATH=<folder with lightgbm>:. python -m benchmarks.evidence.journey_floors --out var/journey

LightGBM learns weeks 41 to 48, or from another first day on, and scores weeks 49 to 52. `--choose` tries
settings on weeks 47 and 48, learned from the first day to week 46. Scores lie beside those of the rankers
(`benchmarks/evidence/journey.py`), and
`benchmarks/results/journey_floors.json` says what they were worth, with intervals over households.
"""

from __future__ import annotations

import argparse
import json
import logging
import platform
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.evidence.gradient_boosting import Boosting, Frame, Rows, fit, gains, rows_of, scores_of
from benchmarks.evidence.scored import TEST_DAYS, by_trip, measured, save_frame
from model.data.reader import SamplesTable
from model.runs.files import write_text
from spark_jobs.contract import command, locations
from spark_jobs.contract.clock import days_between
from spark_jobs.contract.journey import JOURNEY
from spark_jobs.lake.log import git_sha

logger = logging.getLogger(__name__)

RESULT = Path(__file__).resolve().parents[1] / "results" / "journey_floors.json"
TRAIN_DAYS = days_between("2017-10-02", "2017-11-26")
CHOICE_DAYS = 14  # at the end of the days of training
COUNTS = ("item_buy_90d", "user_type_buy_365d", "user_item_buy_365d")
TRIED = {
    f"{objective}-{leaves}-{rounds}": Boosting(objective=objective, leaves=leaves, rounds=rounds)
    for objective in ("binary", "lambdarank")
    for leaves, rounds in (
        (15, 300),
        (31, 300),
        (63, 150),
        (7, 600),
        (15, 600),
        (31, 600),
        (15, 1200),
        (63, 300),
    )
}
CHOSEN = ("binary-15-300", "lambdarank-15-300")


def counted(rows: Rows, name: str) -> Frame:
    """A count of the samples as the score of both tasks, squeezed into (0, 1)."""
    value = rows.values[:, rows.names.index(name)]
    score = (value / (1 + value)).astype(np.float32)
    return dict.fromkeys(("ctr_frozen", "ctcvr_frozen", "ctr_live", "ctcvr_live"), score)


def learned(train: Rows, test: Rows, boosting: Boosting, seed: int) -> tuple[Frame, dict[str, float], float]:
    """Scores of the test rows, what gained most for conversion, and seconds of training."""
    start = time.monotonic()
    boosters = {task: fit(JOURNEY, train, task, boosting, seed) for task in ("ctr", "ctcvr")}
    seconds = time.monotonic() - start
    return scores_of(test, boosters), gains(boosters["ctcvr"]), seconds


def choose(
    samples: SamplesTable, names: Sequence[str], train_days: Sequence[str]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Some of `TRIED` for conversion on the last weeks before the test weeks, learned on those before."""
    train = rows_of(samples, train_days[:-CHOICE_DAYS])
    test = rows_of(samples, train_days[-CHOICE_DAYS:])
    for name in names:
        start = time.monotonic()
        booster = fit(JOURNEY, train, "ctcvr", TRIED[name], 1)
        seconds = round(time.monotonic() - start, 1)
        trips = by_trip(test.frame, booster.predict(test.values, raw_score=True))
        made = {"ctcvr_gauc_request": trips.gauc, "mean": trips.mean, "seconds": seconds}
        yield _named(name, train_days), {**made, "first": train_days[0]}


def _named(tried: str, train_days: Sequence[str]) -> str:
    """The name of settings, with their weeks where these are other than 41 to 48."""
    objective, _, sizes = tried.partition("-")
    sized = f"lightgbm_{objective}" + ("" if tried in CHOSEN else f"_{sizes.replace('-', '_')}")
    return sized if train_days == TRAIN_DAYS else f"{sized}_{len(train_days) // 7}_weeks"


def floors(
    samples: SamplesTable, out: Path, seeds: Sequence[int], train_days: Sequence[str], settings: Sequence[str]
) -> Iterator[dict[str, Any]]:
    """The result after each of the floors on the test days, those that are there left as they are."""
    train, test = rows_of(samples, train_days), rows_of(samples, TEST_DAYS)
    save_frame(out, test.frame)
    bounds = train_days[0], train_days[-1]
    made: dict[str, Any] = {
        "test_days": [TEST_DAYS[0], TEST_DAYS[-1]],
        "candidates": len(test.frame["user_id"]),
        "bought": int(test.frame["label_conversion"].sum()),
        "features": len(test.names),
        "counts": {name: measured(test.frame, counted(test, name)) for name in COUNTS},
    }
    for seed in seeds:
        for tried in settings:
            name, boosting = _named(tried, train_days), TRIED[tried]
            path = out / name / f"{seed}.npz"
            if path.exists() and seed in _seeds_of(_held().get("learned", {}), name):
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            scores, most, seconds = learned(train, test, boosting, seed)
            np.savez_compressed(path, **scores)  # type: ignore[arg-type]
            metrics = measured(test.frame, scores)
            one = {"seed": seed, "train_seconds": round(seconds, 1), "gains": most, "metrics": metrics}
            held = _held().get("learned", {})  # another process may have learned another seed meanwhile
            of_name = held.setdefault(
                name, {"settings": asdict(boosting), "seeds": [], "train_days": list(bounds)}
            )
            of_name["seeds"] = [*(other for other in of_name["seeds"] if other["seed"] != seed), one]
            yield {**made, "learned": held, "summary": _summary(made["counts"], held)}


def _seeds_of(held: Mapping[str, Any], name: str) -> list[int]:
    return [one["seed"] for one in held[name]["seeds"]] if name in held else []


def _summary(made: Mapping[str, Any], learnt: Mapping[str, Any]) -> dict[str, float]:
    summary = {f"journey_{name}_ctcvr_gauc_request": of["ctcvr_gauc_request"] for name, of in made.items()}
    for name, one in learnt.items():
        for metric in ("ctcvr_gauc_request", "ctr_gauc_request", "ctcvr_auc"):
            values = [seed["metrics"][metric] for seed in one["seeds"]]
            summary[f"journey_{name}_{metric}"] = float(np.mean(values))
            summary[f"journey_{name}_{metric}_spread"] = float(np.ptp(values))
    return {name: round(value, 5) for name, value in summary.items()}


def table(result: Mapping[str, Any]) -> str:
    """The result as a Markdown table; +- is the greatest less the least of the seeds."""
    metrics = ("ctcvr_gauc_request", "ctr_gauc_request", "ctcvr_gauc", "ctcvr_auc")
    lines = ["| | conversion GAUC by trip, 95 % | click GAUC by trip | conversion GAUC by day | AUC |"]
    lines.append("|---|---|---|---|---|")
    rows = {name: [of] for name, of in result["counts"].items()}
    rows |= {name: [seed["metrics"] for seed in of["seeds"]] for name, of in result["learned"].items()}
    for name, seeds in rows.items():
        cells = []
        for metric in metrics:
            values = [of[metric] for of in seeds]
            spread = f" +-{np.ptp(values):.4f}" if len(values) > 1 else ""
            cells.append(f"{np.mean(values):.4f}{spread}")
        low, high = (seeds[0][f"ctcvr_gauc_request_{end}"] for end in ("low", "high"))
        cells[0] += f" ({low:.4f} to {high:.4f})"
        lines.append(f"| `{name}` | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str] | None = None) -> int:
    """Measures the floors; see `command.run` for the exit codes."""
    parser = command.parser("benchmarks.evidence.journey_floors", __doc__)
    parser.add_argument("--out", type=Path, default=locations.var() / "journey", help="folder of the scores")
    command.add_day(
        parser,
        "--from",
        dest="first",
        required=False,
        default=TRAIN_DAYS[0],
        help="first day that LightGBM learns; other than week 41, its models are named by their weeks",
    )
    parser.add_argument("--table", action="store_true", help="print the table of docs/journey.md")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2])
    parser.add_argument(
        "--choose",
        nargs="*",
        metavar="NAME",
        choices=list(TRIED),
        help="try settings on weeks before the test weeks: these, or all",
    )
    parser.add_argument("--settings", nargs="+", choices=list(TRIED), default=CHOSEN, help="what to learn")

    def body(arguments: argparse.Namespace) -> Mapping[str, Any] | None:
        if arguments.table:
            sys.stdout.write(table(_held()))
            return None
        samples = SamplesTable(JOURNEY)
        train_days = days_between(arguments.first, TRAIN_DAYS[-1])
        samples.require_days([*train_days, *TEST_DAYS])
        if arguments.choose is None:
            for part in floors(samples, arguments.out, arguments.seeds, train_days, arguments.settings):
                _keep(part)
            return dict(_held()["summary"])
        choice: dict[str, Any] = _held().get("choice", {})
        for name, made in choose(samples, arguments.choose or list(TRIED), train_days):
            logger.info("%s: %s", name, made)
            choice[name] = made
            _keep({"choice": choice})
        return choice

    return command.run(parser, body, argv)


def _held() -> dict[str, Any]:
    return dict(json.loads(RESULT.read_text())) if RESULT.exists() else {}


def _keep(part: Mapping[str, Any]) -> dict[str, Any]:
    """Writes the result with a part replaced: what stops loses one model at most."""
    held = {**_held(), **part, **_about()}
    write_text(RESULT, json.dumps(held, indent=1, sort_keys=True) + "\n")
    return held


def _about() -> dict[str, Any]:
    names = ("lightgbm", "numpy", "duckdb")
    return {
        "commit": git_sha("model", "spark_jobs", "benchmarks"),
        "machine": {"cpu": platform.processor() or platform.machine(), "python": platform.python_version()},
        "versions": {name: version(name) for name in names},
        "of": "conversion GAUC by trip: AUC within a trip that bought some of its candidates and not all,"
        " weighted by its candidates",
    }


if __name__ == "__main__":
    sys.exit(main())
