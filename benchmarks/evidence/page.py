"""The evidence as tables for `docs/evidence.md` and as one HTML page with charts, all from result files.

    python -m benchmarks.evidence.page    # writes docs/evidence.html, and the tables into docs/evidence.md

A test holds the tables of the document equal to those of the files.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from benchmarks.evidence.worth import TASKS
from model.reports import charts
from model.reports.page import STYLE
from model.runs.files import write_text
from spark_jobs.contract import command
from spark_jobs.contract.command import CommandError

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "evidence.html"
DOCUMENT = ROOT / "docs" / "evidence.md"
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
    """The tables of `docs/evidence.md`, a section for each dataset."""
    return "\n".join(_section(report) for report in reports())


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
    parts = [_dataset(report) for report in reports()]
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
            parts.append(charts.bars(rows, title, "difference", 0.0))
    kinds = list(models[0][1]["segments"])
    for kind in kinds:
        parts.append(charts.bars([
            _bar(name, model, model["segments"][kind]["ctcvr"])
            for name, model in models if model["family"] in _MAIN and kind in model["segments"]
        ], f"CTCVR GAUC, frozen: {kind}", "GAUC"))  # fmt: skip
    return "".join(f'<div class="row">{part}</div>' if part.startswith("<svg") else part for part in parts)


def _bar(
    name: str, model: Mapping[str, Any], value: float, low: float | None = None, high: float | None = None
) -> charts.Bar:
    return charts.Bar(name=name, value=value, low=low, high=high, colour=COLOURS[model["family"]])


def with_tables(text: str) -> str:
    """A document with the tables between its marks.

    Raises:
        CommandError: It has no marks.
    """
    before, first, rest = text.partition(MARKS[0])
    _, last, after = rest.partition(MARKS[1])
    if not (first and last):
        raise CommandError(f"the document has no lines {MARKS[0].strip()} and {MARKS[1].strip()}")
    return f"{before}{first}{tables()}{last}{after}"


def main(argv: Sequence[str] | None = None) -> int:
    """Writes the page and the document's tables; see `command.run` for the exit codes."""
    parser = command.parser("benchmarks.evidence.page", __doc__)

    def body(arguments: argparse.Namespace) -> Mapping[str, Any]:
        write_text(DOCUMENT, with_tables(DOCUMENT.read_text()))
        write_text(PAGE, page())
        return {"page": str(PAGE), "document": str(DOCUMENT)}

    return command.run(parser, body, argv)


if __name__ == "__main__":
    sys.exit(main())
