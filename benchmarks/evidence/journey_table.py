"""Joins what models have scored of journey: `python -m benchmarks.evidence.journey_table --out var/journey`.

Reads the scores below `--out` (`journey.py`, `journey_floors.py`), of several machines and interrupted runs,
and writes `benchmarks/results/journey.json`: by model the mean and spread over seeds, and for `--mtgr`, and a
`--variant` of it if one is named, how much higher its conversion GAUC by trip is than LightGBM's and than
that of each other model. A trip's AUC is the mean over a model's seeds; intervals are 95 % of a paired
bootstrap over households, of models whose scores were kept beside their metrics. Which are compared is said
on the command line and chosen on earlier weeks; the best of the others is taken after the fact, in its
favour.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.evidence.scored import by_trip, load_frame, measured
from model.config.presets import config_of
from model.judging.metrics import GroupAuc, group_ids, paired_gain
from model.rankers.mtgr import MtgrConfig
from model.runs.files import write_text
from spark_jobs.contract import command
from spark_jobs.contract.command import CommandError

RESULT = Path(__file__).resolve().parents[1] / "results" / "journey.json"
LAMBDARANK = "lightgbm_lambdarank"
_SHOWN = ("ctr_auc", "ctcvr_auc", "ctr_gauc_request", "ctcvr_gauc_request", "ctcvr_gauc_request_mean",
          "ctcvr_gauc", "ctcvr_log_loss", "ctcvr_copc")  # fmt: skip


def joined(out: Path, mtgr: str, variant: str | None = None, prefix: str = "journey") -> dict[str, Any]:
    """The result of all models below a folder; names of the summary begin with `prefix`.

    Raises:
        CommandError: The MTGR that is to be compared, or its variant, has no scores.
    """
    frame = load_frame(out)
    user = group_ids(frame["user_id"])
    models: dict[str, Any] = {}
    trips: dict[str, GroupAuc] = {}
    made_by = [path for kind in ("npz", "json") for path in out.glob(f"*/*.{kind}")]
    for name in sorted({path.parent.name for path in made_by}):
        seeds, aucs = [], []
        for seed in sorted({int(path.stem) for path in made_by if path.parent.name == name}):
            about, scored = (out / name / f"{seed}.{kind}" for kind in ("json", "npz"))
            made = json.loads(about.read_text()) if about.exists() else {}
            scores = {}
            if scored.exists():
                with np.load(scored) as held:
                    scores = {key: held[key] for key in held.files}
                aucs.append(by_trip(frame, scores["ctcvr_live"]))
            metrics = made["metrics"] if made else measured(frame, scores)
            seeds.append({"seed": seed, **_of_run(made), "metrics": metrics})
        if aucs:
            trips[name] = replace(aucs[0], auc=np.mean([one.auc for one in aucs], axis=0))
        models[name] = {"seeds": seeds, "pooled": _pooled([seed["metrics"] for seed in seeds])}
    ours = {"mtgr": mtgr} if variant is None else {"mtgr": mtgr, "variant": variant}
    summary: dict[str, float] = {}
    minus: dict[str, Any] = {}
    for kind, name in ours.items():
        if name not in trips:
            raise CommandError(f"{out} has no scores of {name!r}; it has {', '.join(trips)}")
        gains = {
            other: asdict(paired_gain(trips[name], trips[other], user)) for other in trips if other != name
        }
        minus[f"{kind}_minus"] = gains
        summary |= _summary(f"{prefix}_{kind}", name, models, gains)
    return {
        "summary": summary,
        **ours,
        "models": models,
        **minus,
        "candidates": len(user),
        "trips": len(trips[mtgr].auc),
        "households": len(np.unique(user[trips[mtgr].row])),
    }


def _of_run(made: Mapping[str, Any]) -> dict[str, Any]:
    kept = ("config", "days", "test_days", "tokens", "steps", "train_seconds", "device", "versions", "commit")
    return {key: made[key] for key in kept if key in made}


def _pooled(metrics: Sequence[Mapping[str, float]]) -> dict[str, dict[str, float]]:
    return {
        key: {
            "mean": float(np.mean([one[key] for one in metrics])),
            "spread": float(np.ptp([one[key] for one in metrics])),
        }
        for key in _SHOWN
    }


def _is_dlrm(name: str) -> bool:
    if name.startswith("lightgbm"):
        return False
    return not isinstance(config_of(name).model, MtgrConfig) and "hstu" not in name


def _summary(prefix: str, ours: str, models: Mapping[str, Any], gains: Mapping[str, Any]) -> dict[str, float]:
    def gauc(name: str) -> float:
        return float(models[name]["pooled"]["ctcvr_gauc_request"]["mean"])

    summary = {"ctcvr_gauc_request": gauc(ours)}
    rivals = {
        "lambdarank": [name for name in gains if name.startswith(LAMBDARANK)],
        "best_dlrm": [name for name in gains if _is_dlrm(name)],
    }
    for kind, names in rivals.items():
        if names:
            best = max(names, key=gauc)
            summary[f"minus_{kind}"] = gains[best]["gain"]
            summary[f"minus_{kind}_low"] = gains[best]["low"]
    return {f"{prefix}_{name}": round(value, 5) for name, value in summary.items()}


def table(result: Mapping[str, Any]) -> str:
    """The result as a Markdown table, best first; +- is the greatest less the least of the seeds."""
    kinds = {"mtgr": "MTGR", "variant": "variant"}
    ours = {kind: told for kind, told in kinds.items() if kind in result}
    heads = ["", "seeds", "conversion GAUC by trip", "click GAUC by trip", "conversion AUC", "log loss"]
    heads += [f"{told} less this, 95 %" for told in ours.values()]
    lines = [f"| {' | '.join(heads)} |".replace("|  |", "| |"), "|---" * len(heads) + "|"]
    models = result["models"]
    for name in sorted(models, key=lambda one: -models[one]["pooled"]["ctcvr_gauc_request"]["mean"]):
        pooled = models[name]["pooled"]
        cells = [
            f"{pooled[key]['mean']:.4f} +-{pooled[key]['spread']:.4f}"
            for key in ("ctcvr_gauc_request", "ctr_gauc_request", "ctcvr_auc", "ctcvr_log_loss")
        ]
        for kind, told in ours.items():
            gain = result[f"{kind}_minus"].get(name)
            less = told if name == result[kind] else "scores not kept"
            if gain:
                less = f"{gain['gain']:+.4f} ({gain['low']:+.4f} to {gain['high']:+.4f})"
            cells.append(less)
        lines.append(f"| `{name}` | {len(models[name]['seeds'])} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str] | None = None) -> int:
    """Joins scores; see `command.run` for the exit codes."""
    parser = command.parser("benchmarks.evidence.journey_table", __doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder of the scores")
    parser.add_argument("--mtgr", default="tiny", help="the model that the others are compared with")
    parser.add_argument("--variant", help="a variant beyond the paper that they are compared with, too")
    parser.add_argument(
        "--result", type=Path, default=RESULT, help="default: benchmarks/results/journey.json"
    )

    def body(arguments: argparse.Namespace) -> Mapping[str, Any]:
        result = joined(arguments.out, arguments.mtgr, arguments.variant, arguments.result.stem)
        write_text(arguments.result, json.dumps(result, indent=1, sort_keys=True) + "\n")
        sys.stdout.write(table(result))
        return dict(result["summary"])

    return command.run(parser, body, argv)


if __name__ == "__main__":
    sys.exit(main())
