"""The evidence as tables for the documents and as one HTML page with charts, all from result files.

    python -m benchmarks.evidence.page    # docs/evidence.html, tables into docs/evidence.md, docs/journey.md

A test holds the tables of the documents equal to those of the files.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.evidence import journey_scaling, journey_table, journey_trials, steps
from benchmarks.evidence.worth import TASKS
from model.config.presets import config_of
from model.rankers.mtgr import MtgrConfig
from model.reports import charts
from model.reports.page import STYLE
from model.runs.files import write_text
from spark_jobs.contract import command
from spark_jobs.contract.command import CommandError

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "evidence.html"
DOCUMENT = ROOT / "docs" / "evidence.md"
JOURNEY = ROOT / "docs" / "journey.md"
MARKS = "<!-- tables -->\n", "<!-- end of tables -->\n"
NAMES = {"ctr": "CTR", "ctcvr": "CTCVR"}
COLOURS = {
    "MTGR": "#d9730d",
    "variant": "#e8a35c",
    "DLRM": "#1f6fb4",
    "HSTU": "#8a5bb5",
    "LightGBM": "#b42318",
    "ablation": "#777777",
    "no cross": "#2f8f4e",
}
_MAIN = ("MTGR", "variant", "DLRM", "HSTU", "LightGBM")


def reports() -> list[dict[str, Any]]:
    """What `compare` has written, by dataset."""
    return [json.loads(path.read_text()) for path in sorted(RESULTS.glob("evidence_*.json"))]


def tables() -> str:
    """The tables of `docs/evidence.md`: a section for each dataset, and what there is to know on foodlog."""
    known = json.loads(steps.RESULT.read_text())
    told = (
        f"### What there is to know\n\n{known['impressions']:,} impressions of "
        f"{known['days'][1] - known['days'][0]} days after {known['days'][0]}. GAUC by request, CTR / CTCVR; "
        "in brackets 95 % over users, of CTCVR.\n\n"
    )
    return "\n".join([*map(_section, reports()), told + steps.table(known)])


def _section(report: Mapping[str, Any]) -> str:
    days = report["days"]
    first = next(iter(report["models"].values()))["mean"]
    users = " / ".join(f"{first[f'{task}_gauc_users']:,.0f}" for task in TASKS)
    lines = [
        f"### {report['dataset']}",
        "",
        f"Learned {days['learn'][0]} to {days['learn'][-1]}, settings chosen on {days['choose'][0]} to "
        f"{days['choose'][-1]} by {report['budget']} trials each, scored {days['test'][0]} to "
        f"{days['test'][-1]}: {report['candidates']:,} candidates, {users} users counted in CTR / CTCVR "
        "GAUC. "
        f"+- is the standard deviation over seeds; in brackets 95 % over users.",
        "",
        "| | GAUC, frozen | GAUC by request, live | AUC, live | log loss, live | predicted | "
        f"minus `{report['best_dlrm']}`, CTR | CTCVR |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, model in sorted(report["models"].items(), key=_order):
        if model["family"] in _MAIN:
            lines.append(_row(report, f"`{name}`", model["mean"], model))
    lines += [_row(report, name, metrics, None) for name, metrics in report["baselines"].items()]
    ours = report["models"].get("tiny", {}).get("minus", {})
    others = [name for name in ours if report["models"][name]["family"] in _MAIN]
    lines += ["", "`tiny` minus others, GAUC frozen:", "", "| | CTR | CTCVR |", "|---|---|---|"]
    lines += [f"| `{name}` | {' | '.join(_gain(ours[name], task) for task in TASKS)} |" for name in others]
    for family, than, told in (
        ("ablation", "tiny", "`tiny` with a part left out, by its settings:"),
        ("no cross", "no_cross", "Without cross features, by the settings chosen with them (CTR / CTCVR):"),
    ):
        kinds = ("gauc", "gauc_request", "auc")
        if not any(model["family"] == family for model in report["models"].values()):
            continue
        lines += [
            "",
            told,
            "",
            f"| | GAUC, frozen | GAUC by request, live | AUC, live | minus `{than}`, CTR | CTCVR |",
        ]
        lines.append("|---|---|---|---|---|---|")
        for name, model in sorted(report["models"].items(), key=_order):
            if model["family"] == family:
                cells = [
                    _pair(model["mean"], _spread(model) if kind == "gauc" else None, kind) for kind in kinds
                ]
                cells += [_gain(model["minus"].get(than), task) for task in TASKS]
                lines.append(f"| `{name}` | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def journey_tables() -> str:
    """The tables of `docs/journey.md`: the test weeks, the trials before them, sizes, lengths and days."""
    parts = (
        ("The test weeks", journey_table.RESULT, journey_table.table),
        ("Trials on weeks 47 and 48", journey_trials.RESULT, journey_trials.tables),
        ("Sizes, lengths, days", journey_scaling.RESULT, journey_scaling.table),
    )
    return "\n".join(
        f"### {told}\n\n{table(json.loads(result.read_text()))}" for told, result, table in parts
    )


def _order(item: tuple[str, Mapping[str, Any]]) -> tuple[int, float]:
    model = item[1]
    return list(COLOURS).index(model["family"]), -float(model["mean"]["ctcvr_gauc"])


def _pair(mean: Mapping[str, Any], stdev: Mapping[str, Any] | None, kind: str) -> str:
    """CTR and CTCVR of a metric; empty where it has no meaning."""
    names = [f"{task}_{kind}" for task in TASKS]
    if any(mean.get(name) is None for name in names):
        return ""
    return " / ".join(f"{mean[name]:.4f}" + (f" +-{stdev[name]:.4f}" if stdev else "") for name in names)


def _spread(model: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Standard deviations over seeds, where there are several."""
    return model["stdev"] if len(model["seeds"]) > 1 else None


def _gain(minus: Mapping[str, Any] | None, task: str) -> str:
    if minus is None:
        return ""
    gain = minus[task]
    return f"{gain['gain']:+.4f} [{gain['low']:+.4f}, {gain['high']:+.4f}]"


def _row(
    report: Mapping[str, Any], name: str, mean: Mapping[str, float], model: Mapping[str, Any] | None
) -> str:
    stdev = _spread(model) if model else None
    minus = model["minus"].get(report["best_dlrm"]) if model else None
    copc = " / ".join(f"{1 / mean[f'{task}_copc']:.2f}" for task in TASKS)
    cells = [
        _pair(mean, stdev, "gauc"),
        _pair(mean, stdev, "gauc_request"),
        _pair(mean, None, "auc"),
        _pair(mean, None, "log_loss"),
        copc,
        *(_gain(minus, task) for task in TASKS),
    ]
    return f"| {name} | {' | '.join(cells)} |"


def page() -> str:
    """The HTML page; it loads nothing."""
    parts = [*(_dataset(report) for report in reports()), _journey()]
    legend = " ".join(
        f'<span style="color:{colour}">&#9679; {family}</span>' for family, colour in COLOURS.items()
    )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>MTGR: the evidence</title>'
        f"<style>{STYLE}</style></head><body><h1>Is MTGR worth it?</h1>"
        f'<p class="muted">{legend}</p>{"".join(parts)}</body></html>\n'
    )


def _dataset(report: Mapping[str, Any]) -> str:
    models = sorted(report["models"].items(), key=_order)
    days = report["days"]["test"]
    parts = [f"<h2>{escape(report['dataset'])}, {days[0]} to {days[-1]}</h2>"]
    for task in TASKS:
        rows = [
            _bar(name, model, model["mean"][f"{task}_gauc"], *model["interval"][task])
            for name, model in models
            if model["family"] in _MAIN
        ]
        if "oracle" in report["baselines"]:
            best = report["baselines"]["oracle"][f"{task}_gauc"]
            rows.append(charts.Bar(name="oracle", value=best, colour=charts.COLOURS["oracle"]))
        parts.append(charts.bars(rows, f"{NAMES[task]} GAUC, frozen, 95 % over users", "GAUC"))
    for told, than, families in (
        ("others", "tiny", _MAIN),
        ("with a part left out", "tiny", ("ablation",)),
        ("others without cross features", "no_cross", ("no cross",)),
    ):
        for task in TASKS:
            rows = [
                _bar(name, model, *(model["minus"][than][task][end] for end in ("gain", "low", "high")))
                for name, model in models
                if than in model["minus"] and model["family"] in families
            ]
            title = f"{NAMES[task]} GAUC minus that of {than}: {told}; paired, 95 % over users"
            if rows:
                parts.append(charts.bars(rows, title, "difference", 0.0))
    kinds = list(models[0][1]["segments"])
    for kind in kinds:
        parts.append(charts.bars([
            _bar(name, model, model["segments"][kind]["ctcvr"])
            for name, model in models if model["family"] in _MAIN and kind in model["segments"]
        ], f"CTCVR GAUC, frozen: {kind}", "GAUC"))  # fmt: skip
    return _in_rows(parts)


def _journey() -> str:
    """The test weeks of journey, and what more compute is worth there."""
    result = json.loads(journey_table.RESULT.read_text())
    scaling = json.loads(journey_scaling.RESULT.read_text())
    models = result["models"]
    names = sorted(models, key=lambda name: -float(models[name]["pooled"]["ctcvr_gauc_request"]["mean"]))
    values = [
        charts.Bar(
            name=_short(name),
            value=models[name]["pooled"]["ctcvr_gauc_request"]["mean"],
            colour=COLOURS[_family(name)],
        )
        for name in names
    ]
    gains = [
        charts.Bar(
            name=_short(name),
            value=-gain["gain"],
            low=-gain["high"],
            high=-gain["low"],
            colour=COLOURS[_family(name)],
        )
        for name, gain in result["mtgr_minus"].items()
    ]
    sizes = [
        charts.Bar(
            name=f"{size}, {one['flops_a_row'] / 1e6:,.0f} MFLOPs",
            value=float(np.mean(one["ctcvr_gauc_request"])),
            colour=COLOURS["MTGR"],
        )
        for size, one in scaling["sizes"].items()
    ]
    parts = ["<h2>journey, weeks 49 to 52</h2>"]
    parts.append(charts.bars(values, "conversion GAUC by trip", "GAUC"))
    title = (
        f"conversion GAUC by trip minus that of {_short(result['mtgr'])} (MTGR); paired, 95 % over households"
    )
    parts.append(charts.bars(gains, title, "difference", 0.0))
    parts.append(charts.bars(sizes, "MTGR by blocks x width: conversion GAUC by trip", "GAUC"))
    return _in_rows(parts)


def _short(name: str) -> str:
    """The family of a model of journey; with how many of its settings are changed, which tells two apart."""
    family, *changes = name.split(",")
    return f"{family} +{len(changes)}" if changes else family


def _family(name: str) -> str:
    if name.startswith("lightgbm"):
        return "LightGBM"
    model = config_of(name).model
    return "MTGR" if type(model) is MtgrConfig else "variant" if isinstance(model, MtgrConfig) else "DLRM"


def _in_rows(parts: Sequence[str]) -> str:
    return "".join(f'<div class="row">{part}</div>' if part.startswith("<svg") else part for part in parts)


def _bar(
    name: str, model: Mapping[str, Any], value: float, low: float | None = None, high: float | None = None
) -> charts.Bar:
    return charts.Bar(name=name, value=value, low=low, high=high, colour=COLOURS[model["family"]])


def with_tables(text: str, tables: str) -> str:
    """A document with tables between its marks.

    Raises:
        CommandError: It has no marks.
    """
    before, first, rest = text.partition(MARKS[0])
    _, last, after = rest.partition(MARKS[1])
    if not (first and last):
        raise CommandError(f"the document has no lines {MARKS[0].strip()} and {MARKS[1].strip()}")
    return f"{before}{first}{tables}{last}{after}"


def main(argv: Sequence[str] | None = None) -> int:
    """Writes the page and the document's tables; see `command.run` for the exit codes."""
    parser = command.parser("benchmarks.evidence.page", __doc__)

    def body(arguments: argparse.Namespace) -> Mapping[str, Any]:
        write_text(DOCUMENT, with_tables(DOCUMENT.read_text(), tables()))
        write_text(JOURNEY, with_tables(JOURNEY.read_text(), journey_tables()))
        write_text(PAGE, page())
        return {"page": str(PAGE), "documents": [str(DOCUMENT), str(JOURNEY)]}

    return command.run(parser, body, argv)


if __name__ == "__main__":
    sys.exit(main())
