r"""What trials on journey's weeks 47 and 48 gave, of several machines and interrupted runs, in one file.

    python -m benchmarks.evidence.journey_trials --trials <folder> [<folder> ...]
    python -m benchmarks.evidence.journey_trials --table

Reads `<folder>/<model>/1.json` as `journey.py` writes them, and writes
`benchmarks/results/journey_trials.json`: every model that learned the same weeks, by family. A model that was
tried twice counts with the mean. The tables show the best of each family, of the eight settings that all
families tried and of all that it tried, the families under one setting, and what one change of MTGR is worth,
of one seed each.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.evidence.journey_choice import BEYOND, CHOICE, trials_of
from model.config.presets import config_of
from model.rankers.mtgr import MtgrConfig
from model.runs.files import write_text
from spark_jobs.contract import command
from spark_jobs.contract.command import CommandError

RESULT = Path(__file__).resolve().parents[1] / "results" / "journey_trials.json"
SETTING = "train.dense_lr=0.0005,train.sparse_lr=0.0025"  # under which families and changes are compared
LONGER = "train.dense_lr=0.0005,train.sparse_lr=0.01,model.max_static=200,model.token_hidden=256"
FAMILIES = ("tiny", "tiny_dcn", "dcn", "wukong", "dnn", "user_tower")
NO_CROSS = "model.without=cross"


def gathered(folders: Sequence[Path]) -> dict[str, Any]:
    """The result of all trials below some folders.

    Raises:
        CommandError: There is none that learned the weeks of `journey_choice`.
    """
    reports: dict[str, list[dict[str, Any]]] = {}
    for path in sorted(path for folder in folders for path in folder.glob("*/1.json")):
        report = json.loads(path.read_text())
        if report["days"][0] == CHOICE["first"] and report["test_days"] == list(CHOICE.values())[1:]:
            reports.setdefault(report["model"], []).append(report)
    if not reports:
        raise CommandError(f"{', '.join(map(str, folders))}: no trial that learned from {CHOICE['first']} on")
    return {
        "days": CHOICE,
        "models": {model: _joined(some) for model, some in sorted(reports.items())},
        "device": sorted({one["device"] for some in reports.values() for one in some}),
        "versions": next(iter(reports.values()))[0]["versions"],
        "commit": sorted({one["commit"] for some in reports.values() for one in some}),
    }


def _joined(reports: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    def mean(name: str) -> float:
        return float(np.mean([one["metrics"][name] for one in reports]))

    return {
        "family": reports[0]["model"].split(",")[0],
        "runs": len(reports),
        "ctcvr_gauc_request": mean("ctcvr_gauc_request"),
        "ctr_gauc_request": mean("ctr_gauc_request"),
        "train_seconds": [one["train_seconds"] for one in reports],
    }


def equal_trials(family: str) -> list[str]:
    """Eight settings, the same for all families: the preset, five draws, two that were set by hand."""
    is_paper = type(config_of(family).model) is MtgrConfig
    shared = "" if is_paper else f",{BEYOND[0]}=True"
    return [*trials_of(family, 6), f"{family},{SETTING}", f"{family},{LONGER}{shared}"]


def chosen(result: Mapping[str, Any], family: str) -> tuple[str, int]:
    """The best of a family's equal trials that are there, and how many these are."""
    tried = [model for model in equal_trials(family) if model in result["models"]]
    return max(tried, key=lambda model: _value(result, model) or 0.0, default=""), len(tried)


def _value(result: Mapping[str, Any], model: str) -> float | None:
    return result["models"][model]["ctcvr_gauc_request"] if model in result["models"] else None


def tables(result: Mapping[str, Any]) -> str:
    """The result as Markdown: the best of each family, families under one setting, changes of MTGR."""
    lines = [
        "| family | of 8 equal trials | the best of them | conversion GAUC by trip | trials | their best |"
    ]
    lines.append("|---|---|---|---|---|---|")
    for family in FAMILIES:
        of = {
            model: one["ctcvr_gauc_request"]
            for model, one in result["models"].items()
            if one["family"] == family and NO_CROSS not in model
        }
        if of:
            best = max(of, key=lambda model: of[model])
            of_equal, equal = chosen(result, family)
            of_these = f"{of[of_equal]:.4f}" if of_equal else ""
            cells = [str(equal), f"`{of_equal}`", of_these, str(len(of)), f"{of[best]:.4f}"]
            lines.append(f"| `{family}` | {' | '.join(cells)} |")
    base = f"tiny,{SETTING}"
    lines += ["", f"| `{SETTING}` and | conversion GAUC by trip | less `tiny` |", "|---|---|---|"]
    ours = _value(result, base)
    rows = {f"`{family}` instead": f"{family},{SETTING}" for family in FAMILIES[1:]}
    changes = [model for model in result["models"] if model.startswith(f"{base},") and NO_CROSS not in model]
    rows |= {f"`{model.removeprefix(f'{base},')}`": model for model in changes}
    if ours is not None:
        lines.append(f"| `tiny` | {ours:.4f} | |")
        for told, model in rows.items():
            if (value := _value(result, model)) is not None:
                lines.append(f"| {told} | {value:.4f} | {value - ours:+.4f} |")
    without = {
        model: one["ctcvr_gauc_request"] for model, one in result["models"].items() if NO_CROSS in model
    }
    if without:
        lines += ["", "| without cross features | S | shared projection | conversion GAUC by trip |"]
        lines.append("|---|---|---|---|")
        for model, value in sorted(without.items(), key=lambda item: -item[1]):
            config = config_of(model).model
            shares = "yes" if config.shares_items else "no"
            family = result["models"][model]["family"]
            lines.append(f"| `{family}` | {config.max_static} | {shares} | {value:.4f} |")
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str] | None = None) -> int:
    """Gathers trials, or prints the tables of docs/journey.md; see `command.run` for the exit codes."""
    parser = command.parser("benchmarks.evidence.journey_trials", __doc__)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--trials", type=Path, nargs="+", metavar="FOLDER", help="folders of trials")
    what.add_argument("--table", action="store_true", help="print the tables of docs/journey.md")

    def body(arguments: argparse.Namespace) -> Mapping[str, Any] | None:
        if arguments.table:
            sys.stdout.write(tables(json.loads(RESULT.read_text())))
            return None
        result = gathered(arguments.trials)
        write_text(RESULT, json.dumps(result, indent=1, sort_keys=True) + "\n")
        return {"models": len(result["models"])}

    return command.run(parser, body, argv)


if __name__ == "__main__":
    sys.exit(main())
