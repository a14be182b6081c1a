"""How much there is to know on foodlog, step by step: `python -m benchmarks.evidence.steps`.

The oracle's GAUC by request, of somebody who knows the lasting state of people and things (`plain`), what
they do beside it (`frozen`: the phenomena that the world has), what the day so far and the session's clicks
have told (`session`), and everything (`all`, the hidden craving and the position, too). Each phenomenon is
switched on alone, and all of them together. No model is trained: the steps say how much one could gain at
best, and by what. Writes `benchmarks/results/foodlog_steps.json`; intervals are over users.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from model.judging.metrics import GroupAuc, group_auc, group_ids, paired_gain
from model.runs.files import write_text
from spark_jobs.contract import command
from spark_jobs.lake.log import git_sha
from spark_jobs.simulator.behaviour import State, simulate_day
from spark_jobs.simulator.settings import PHENOMENA, SimulationSettings
from spark_jobs.simulator.world import build_world, next_day, weather_of

RESULT = Path(__file__).resolve().parents[1] / "results" / "foodlog_steps.json"
STEPS = ("plain", "frozen", "session", "all")
TASKS = {"ctr": ("p_click", "click_ms"), "ctcvr": ("p_conversion", "order_ms")}
_COLUMNS = ("user", "request", *(time for _, time in TASKS.values()))


def simulated(settings: SimulationSettings, warm_up: int, days: int) -> dict[str, Any]:
    """Columns of all impressions of some days, after others: keys, what followed, probabilities by step."""
    names = [f"{p}{'' if step == 'all' else f'_{step}'}" for p, _ in TASKS.values() for step in STEPS]
    parts: list[dict[str, Any]] = []
    for district in range(settings.districts):
        world = build_world(settings, district)
        state = State.fresh(world)
        for number in range(warm_up + days):
            world = next_day(settings, world, number)
            weather = weather_of(settings, world.city, number)
            shown = simulate_day(settings, world, state, number, weather)
            if number >= warm_up:
                part = {name: getattr(shown, name) for name in (*_COLUMNS, *names)}
                day = np.full(len(shown.user), number)
                parts.append(part | {"user": world.user_id[shown.user], "day": day})
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def measured(shown: Mapping[str, Any]) -> dict[str, Any]:
    """GAUC by request of every step, by task, and what each adds to the one before."""
    request = group_ids(shown["user"], shown["day"], shown["request"])
    user = group_ids(shown["user"])
    made: dict[str, Any] = {}
    for task, (p, time) in TASKS.items():
        label = (shown[time] >= 0).astype(np.int64)
        of_step: dict[str, GroupAuc] = {}
        for step in STEPS:
            score = shown[p if step == "all" else f"{p}_{step}"]
            of_step[step] = group_auc(request, label, score)
        adds = {
            step: asdict(paired_gain(of_step[step], of_step[before], user))
            for before, step in pairwise(STEPS)
        }
        made[task] = {"gauc": {step: auc.gauc for step, auc in of_step.items()}, "adds": adds}
    return made


def table(result: Mapping[str, Any]) -> str:
    """The result as Markdown, CTR / CTCVR; in brackets 95 % over users, of CTCVR."""
    lines = ["| the world has | plain | what its phenomena add | the day so far adds | the rest adds |"]
    lines.append("|---|---|---|---|---|")
    for name, made in result["worlds"].items():
        tasks = [made[task] for task in TASKS]
        cells = [" / ".join(f"{of['gauc']['plain']:.4f}" for of in tasks)]
        for step in STEPS[1:]:
            gains = " / ".join(f"{of['adds'][step]['gain']:+.4f}" for of in tasks)
            last = tasks[-1]["adds"][step]
            cells.append(f"{gains} [{last['low']:+.4f}, {last['high']:+.4f}]")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str] | None = None) -> int:
    """Simulates and measures; see `command.run` for the exit codes."""
    parser = command.parser("benchmarks.evidence.steps", __doc__)
    parser.add_argument("--warm-up", type=int, default=28, help="days that nothing is measured of")
    parser.add_argument("--days", type=int, default=14, help="days that are measured")

    def body(arguments: argparse.Namespace) -> Mapping[str, Any]:
        worlds = {"none of them": "", **{f"`{name}`": name for name in PHENOMENA}}
        worlds["all of them"] = ",".join(PHENOMENA)
        made: dict[str, Any] = {}
        rows = 0
        for told, phenomena in worlds.items():
            shown = simulated(SimulationSettings(phenomena=phenomena), arguments.warm_up, arguments.days)
            made[told], rows = measured(shown), len(shown["user"])
        summary = _summary(made)
        result = {
            "worlds": made,
            "impressions": rows,
            "days": [arguments.warm_up, arguments.warm_up + arguments.days],
            "settings": asdict(SimulationSettings()),
            "summary": summary,
            "commit": git_sha("spark_jobs", "benchmarks"),
            "card": "CPU",
            "versions": {"numpy": version("numpy"), "python": sys.version.split()[0]},
        }
        write_text(RESULT, json.dumps(result, indent=1, sort_keys=False) + "\n")
        sys.stdout.write(table(result))
        return summary

    return command.run(parser, body, argv)


def _summary(worlds: Mapping[str, Any]) -> dict[str, float]:
    return {
        f"foodlog_{name.strip('`').replace(' ', '_')}_{task}_{step}": round(of["gauc"][step], 5)
        for name, made in worlds.items()
        for task, of in made.items()
        for step in STEPS
    }


if __name__ == "__main__":
    sys.exit(main())
