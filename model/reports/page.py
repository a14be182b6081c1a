"""A day as one HTML page: nothing is loaded from elsewhere, no number is there that no record holds.

The page lies at `$MTGR_VAR/data_docs/reports/<dataset>/<day>.html`, beside the data docs and served with
them, and goes with every MLflow run of the day as `report.html`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from model.reports import charts, words
from model.reports.contenders import Contender, contenders, gauc_chart
from model.reports.records import BASELINES, TASKS, Day, Judged, read_day, series_of
from model.runs.files import write_text
from spark_jobs.contract import locations
from spark_jobs.lake import verdicts

REPORT = "report.html"
STYLE = """
body{font:15px/1.5 system-ui,sans-serif;color:#24292f;margin:0 auto;max-width:1040px;padding:16px 24px 60px}
h1{font-size:24px;margin:8px 0 2px}h2{font-size:18px;margin:34px 0 8px;border-bottom:1px solid #d9dde3}
h3{font-size:15px;margin:18px 0 4px}.lead{font-size:17px;margin:0 0 6px}
table{border-collapse:collapse;margin:6px 0;font-size:13.5px}
th,td{padding:3px 12px 3px 0;text-align:left;vertical-align:top;border-bottom:1px solid #eceff2}
th{color:#57606a;font-weight:600}td.n,th.n{text-align:right;font-variant-numeric:tabular-nums}
.failed,.no{color:#b42318;font-weight:600}.passed{color:#1a7f37}.allowed{color:#9a6700}
.muted{color:#57606a}code{font-size:12.5px;overflow-wrap:anywhere}svg{max-width:100%;height:auto}
.point:hover{opacity:.55}.row{display:flex;flex-wrap:wrap;gap:16px}summary{cursor:pointer;color:#57606a}
"""
_VOLUMES = (
    ("events", "impressions", "impressions"),
    ("events", "clicks", "clicks"),
    ("events", "conversions", "conversions"),
    ("events", "users", "users seen"),
    ("samples", "rows", "sample rows"),
    ("samples", "candidates", "candidates ranked"),
    ("samples", "static_tokens", "history tokens"),
    ("samples", "realtime_tokens", "real-time tokens"),
)
_MATURITY = {
    "events": ("immature_share", "labelled_impressions", "late_rows", "quarantined_share"),
    "samples": ("ctr", "ctcvr", "built_share", "left_out_share"),
}
_MEANINGS = {
    "immature_share": "share of impressions whose attribution window outlasts the delivery",
    "labelled_impressions": "share of clicks and conversions on time whose impression is there",
    "late_rows": "events of earlier days that this delivery brought",
    "quarantined_share": "share of records in quarantine",
    "ctr": "click rate of the candidates",
    "ctcvr": "conversion rate of the candidates",
    "built_share": "share of impressions that became candidates, of those that should",
    "left_out_share": "share of impressions that no sample holds",
}


def path_of(dataset: str, ds: str) -> Path:
    """Where the page of a day lies."""
    return locations.var() / "data_docs" / "reports" / dataset / f"{ds}.html"


def write(dataset: str, ds: str) -> Path:
    """Writes the page of a day from its records, replacing an older one; returns where it lies.

    Raises:
        RunError, ValueError, LakeError: As `read_day`.
    """
    path = path_of(dataset, ds)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, page(read_day(dataset, ds)))
    return path


def page(day: Day) -> str:
    """The page of a day."""
    title = f"{day.dataset} {day.ds}"
    parts = (
        f"<h1>{escape(title)}</h1><p class='lead'>{escape(words.headline(day))}</p>",
        _section("Decision", _decision(day)),
        _section("Ranking", _ranking(day)),
        _section("GAUC by segment", _segments(day)),
        _section("Calibration", _calibration(day)),
        _section("Gates", _gates(day)),
        _section("Volumes", _volumes(day)),
        _section("Label maturity", _maturity(day)),
        _section("Lineage", _lineage(day)),
    )
    return (
        "<!DOCTYPE html><html lang='en'><head><meta charset='utf-8'>"
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body>{''.join(parts)}</body></html>\n"
    )


def _section(title: str, content: str) -> str:
    return f"<h2>{title}</h2>{content or '<p class=muted>No record of it.</p>'}"


def _table(headings: Sequence[str], rows: Iterable[Sequence[str]], numbers: int = 0) -> str:
    """A table of cells that are HTML already; the last `numbers` columns are right-aligned."""
    first = len(headings) - numbers

    def line(cells: Sequence[str], tag: str) -> str:
        marked = (f"<{tag}{' class=n' if i >= first else ''}>{cell}</{tag}>" for i, cell in enumerate(cells))
        return f"<tr>{''.join(marked)}</tr>"

    return f"<table>{line(headings, 'th')}{''.join(line(row, 'td') for row in rows)}</table>"


def _count(value: Any) -> str:
    return "-" if value is None else f"{value:,.0f}"


def _share(value: Any) -> str:
    return "-" if value is None else f"{value:.4f}"


def _metric(name: str, value: Any) -> str:
    return _count(value) if name.endswith(("rows", "users")) else _share(value)


def _decision(day: Day) -> str:
    rows = [
        (escape(one.preset), escape(words.decision(one)), escape(words.reasons(one)) or "-")
        for one in day.runs
    ]
    if not rows:
        return ""
    notes = {str((one.decision or {}).get("note") or "") for one in day.runs} - {""}
    parts = [_table(("preset", "decision", "why"), rows), *(f"<p>{escape(note)}.</p>" for note in notes)]
    for one in day.runs:
        findings = (one.decision or {}).get("findings") or ()
        lines = [
            (escape(f["rule"]), "yes" if f["holds"] else "<span class=no>no</span>", escape(f["reason"]))
            for f in sorted(findings, key=lambda f: bool(f["holds"]))
        ]
        if lines:
            broken = sum(not f["holds"] for f in findings)
            told = f"{len(lines)} rules for {escape(one.preset)}, {broken} do not hold"
            parts.append(
                f"<details><summary>{told}</summary>{_table(('rule', 'holds', ''), lines)}</details>"
            )
    return "".join(parts)


def _ranking(day: Day) -> str:
    evaluations = {one.preset: one.evaluation for one in day.runs if one.evaluation is not None}
    if not evaluations:
        return ""
    first = next(iter(evaluations.values()))
    rows = contenders(first, {preset: evaluation["candidate"] for preset, evaluation in evaluations.items()})
    kinds = ("auc", "gauc", "gauc_users", "log_loss", "copc", "calibration_error")
    parts = []
    for task, label in TASKS.items():
        parts.append(gauc_chart(rows, task, "of the day"))
        cells = [
            (escape(one.name), *(_metric(kind, one.metrics.get(f"{task}_{kind}")) for kind in kinds))
            for one in rows
        ]
        headings = (label, "AUC", "GAUC", "users", "log loss", "labels over predicted", "calibration error")
        parts.append(_table(headings, cells, len(kinds)))
    for preset, history in day.history.items():
        series = series_of(history, "ctcvr_gauc")
        if max((len(points) for points in series.values()), default=0) > 1:
            title = f"CTCVR GAUC of {preset} by day, each day on its own rows"
            parts.append(charts.lines(series, BASELINES, title, "GAUC"))
    return "".join(parts)


def _segments(day: Day) -> str:
    parts = []
    for one in day.runs:
        segments = (one.evaluation or {}).get("segments") or {}
        ours, theirs = segments.get("candidate") or {}, segments.get("champion") or {}
        if not ours:
            continue
        parts.append(f"<h3>{escape(one.preset)}</h3>")
        rows = [
            Contender(kind=who, name=f"{name.replace('_', ' ')}, {who}", metrics=metrics)
            for name in sorted(ours, key=_place_of)
            for who, of in (("candidate", ours), ("champion", theirs))
            if (metrics := of.get(name)) is not None
        ]
        parts += [gauc_chart(rows, task, "by segment") for task in TASKS]
    return "".join(parts)


def _place_of(segment: str) -> tuple[int, str]:
    """Segments in the order of the first number in their names; those without one come first."""
    numbers = re.findall(r"\d+", segment)
    return (int(numbers[0]) if numbers else -1, segment)


def _calibration(day: Day) -> str:
    drawn = [
        charts.calibration(bins, f"{one.preset}: {TASKS[task]}")
        for one in day.runs
        for task, bins in one.bins.items()
    ]
    told = (
        "<p class=muted>Live scores in ten bins of equal size, with 95 % intervals; dashed: calibrated.</p>"
    )
    return f"{told}<div class=row>{''.join(drawn)}</div>" if drawn else ""


def _gates(day: Day) -> str:
    rows = [_gate(day, suite, of.get(day.ds), None) for suite, of in day.verdicts.items()]
    rows += [_gate(day, f"evaluation of {one.preset}", one.verdict, one.preset) for one in day.runs]
    return _table(("gate", "verdict", "rules", "what did not hold", "verdict's file"), rows)


def _gate(
    day: Day, name: str, verdict: Mapping[str, Any] | None, preset: str | None
) -> tuple[str, str, str, str, str]:
    stands = words.standing(verdict)
    findings = (verdict or {}).get("findings") or ()
    broken = [_broken(finding) for finding in findings if not finding["success"]]
    if allowed := (verdict or {}).get("allowed"):
        broken.insert(0, f"allowed: {escape(str(allowed))}")
    place = verdicts.path_of(day.dataset, name.split()[0], day.ds, preset)
    file = f"<code>{escape(str(place.relative_to(locations.var())))}</code>" if verdict else "-"
    told = f"<span class={stands.split()[-1]}>{stands}</span>"
    return name, told, str(len(findings)) if verdict else "-", "<br>".join(broken) or "-", file


def _broken(finding: Mapping[str, Any]) -> str:
    value = finding["observed"]
    observed = f"{value:g}" if isinstance(value, int | float) else str(value)
    told = f"{finding['rule']}: {finding['description']} ({observed}, {finding['bounds']})"
    return escape(told)


def _volumes(day: Day) -> str:
    days = sorted({ds for of in day.verdicts.values() for ds in of})[-7:]
    rows = []
    for suite, fact, name in _VOLUMES:
        values = [((day.verdicts[suite].get(ds) or {}).get("facts") or {}).get(fact) for ds in days]
        if any(value is not None for value in values):
            rows.append((name, *map(_count, values)))
    return _table(("", *days), rows, len(days)) if rows else ""


def _maturity(day: Day) -> str:
    rows = []
    for suite, facts in _MATURITY.items():
        verdict = day.verdicts[suite].get(day.ds) or {}
        for fact in facts:
            value = (verdict.get("facts") or {}).get(fact)
            if value is not None:
                rows.append((_MEANINGS[fact], _metric(fact, value)))
    return _table(("", "value"), rows, 1) if rows else ""


def _lineage(day: Day) -> str:
    parts = []
    for source in day.sources:
        of = ", ".join(
            f"{name} {value}" for name, value in source.inputs.items() if isinstance(value, int | str)
        )
        files = "<br>".join(f"<code>{escape(file)}</code>" for file in source.files)
        parts.append(
            f"<h3>{escape(Path(source.table).name)}: {escape(source.partition)}</h3>"
            + _table(("", ""), [
                ("table", f"<code>{escape(source.table)}</code>, version {source.version}"),
                ("written by", f"{escape(source.stage)}, code <code>{escape(source.code)}</code>"),
                ("made from", escape(of) or "-"),
                ("files", files or "-"),
            ])
        )  # fmt: skip
    return "".join([*parts, *(_model(one) for one in day.runs)])


def _model(one: Judged) -> str:
    record, rows = one.run.record, []
    for link in record.get("lineage") or ():
        days = ", ".join(f"{ds} (samples version {version})" for ds, version in sorted(link["days"].items()))
        code, made = link.get("git_sha", "unknown"), link.get("digest") or record["digest"]
        rows.append((escape(str(link.get("ds", ""))), escape(days), f"<code>{escape(str(code))}</code>",
                     escape(f"{link.get('device', '-')}, torch {link.get('torch', '-')}"),
                     f"<code>{escape(str(made)[:12])}</code>"))  # fmt: skip
    judged = one.evaluation or {}
    run_id = record.get("mlflow_run_id")
    told = [f"files in <code>{escape(str(one.run.path))}</code>"]
    told += [f"MLflow run <code>{escape(str(run_id))}</code>"] if run_id else []
    told += [f"judged on samples version {judged['samples_version']}"] if judged else []
    headings = ("trained for", "on", "by the code", "device", "digest")
    return f"<h3>model: {escape(one.preset)}</h3><p>{'; '.join(told)}.</p>{_table(headings, rows)}"
