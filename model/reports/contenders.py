"""Who scored a day's rows, and their GAUC as a chart: a candidate, its champion, other presets, baselines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from model.reports.charts import COLOURS, Bar, bars
from model.reports.records import BASELINES, TASKS


@dataclass(frozen=True, kw_only=True)
class Contender:
    """One who scored the day's rows.

    Args:
        kind: `candidate`, `champion`, `best`, or the name of a baseline.
        name: What people call it.
        metrics: On the day.
    """

    kind: str
    name: str
    metrics: Mapping[str, Any]


def contenders(
    evaluation: Mapping[str, Any], presets: Mapping[str, Mapping[str, Any]] | None = None
) -> list[Contender]:
    """All who scored the rows of an evaluation.

    Args:
        evaluation: Of one preset: who it is measured against is taken from it.
        presets: Metrics by preset; by default of its own and of those beside it.
    """
    own = {str(evaluation["preset"]): evaluation["candidate"], **(evaluation.get("beside") or {})}
    rows = [Contender(kind="candidate", name=name, metrics=m) for name, m in (presets or own).items()]
    for kind, told in (("champion", "champion"), ("best", "best of the last days")):
        if metrics := evaluation.get(kind):
            rows.append(
                Contender(kind=kind, name=f"{told}, version {metrics.get('version')}", metrics=metrics)
            )
    baselines = evaluation.get("baselines") or {}
    return rows + [
        Contender(kind=kind, name=name, metrics=baselines[kind])
        for kind, name in BASELINES.items()
        if kind in baselines
    ]


def gauc_chart(rows: Sequence[Contender], task: str, title: str, row: int = 20) -> str:
    """GAUC of contenders with their intervals, as SVG.

    Args:
        rows: From the top.
        task: `ctr` or `ctcvr`.
        title: What it is of.
        row: Height of a row, in pixels.
    """
    drawn = [
        Bar(
            name=one.name,
            value=one.metrics.get(f"{task}_gauc"),
            low=one.metrics.get(f"{task}_gauc_low"),
            high=one.metrics.get(f"{task}_gauc_high"),
            colour=COLOURS[one.kind],
            note=_users(one.metrics.get(f"{task}_gauc_users")),
        )
        for one in rows
    ]
    axis = "GAUC, 95 % interval; dashed: chance"
    return bars(drawn, f"{TASKS[task]} GAUC {title}", axis, 0.5, row)


def _users(count: Any) -> str:
    return "" if count is None else f"{count:,.0f} users"
