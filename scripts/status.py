"""How things stand, on one screen: `make status` (DATASET=...). Reads, and changes nothing.

The last day that is done, the champion and why it is, days that are missing, gates and runs that failed,
labels that may still change, and what the disk holds. What Airflow and MLflow know is read from copies of
their databases.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

from scripts.embedded import databases, ports, report
from scripts.embedded.clock import print_line
from scripts.embedded.components import DAGS
from scripts.embedded.past import PastRun, past_runs
from scripts.embedded.settings import EmbeddedSettings, dataset_asked_for
from scripts.embedded.tables import TABLES, TableState, table_state
from spark_jobs.contract import command, locations
from spark_jobs.contract.clock import days_between, parse_day, shift_day
from spark_jobs.contract.datasets import dataset_named
from spark_jobs.lake import verdicts
from spark_jobs.lake.verdicts import Standing, Standings

_MOST = 4  # of a kind that are named; a screen is not a report
_SUITES = ("events", "samples")


def status(settings: EmbeddedSettings) -> str:
    """The screen.

    Raises:
        CommandError: A table, a verdict or the registry cannot be read.
    """
    name = settings.dataset
    tables = {table: state for table in TABLES if (state := table_state(name, table)) is not None}
    days = {suite: tables[suite].days if suite in tables else [] for suite in _SUITES}
    stands = {suite: verdicts.standings(name, suite, days[suite]) for suite in _SUITES}
    with databases.only_read(settings.database) as (airflow, has_registry):
        past = past_runs(airflow)
        champion = report.champion_and_why(settings) if has_registry else "none yet"
    is_running = ports.is_running(settings)
    lines = [
        ("", f"{name} in {locations.var()}, {datetime.now(UTC):%Y-%m-%d %H:%M} UTC; "
             f"{(settings.home / 'running').read_text() if is_running else 'nothing'} is running"),
        ("last day", _last_day(stands["samples"], past)),
        ("champion", champion),
        ("missing", _missing(days, past)),
        *(("gates", line) for line in _gates(name, stands)),
        ("runs", _runs(past)),
        ("labels", _labels(name, days["events"])),
        *(("disk", line) for line in _disk(tables)),
    ]  # fmt: skip
    told = [
        f"{'' if heading == before else heading:<10}{line}"
        for (before, _), (heading, line) in pairwise(lines)
    ]
    return "\n".join([lines[0][1], *told])


def _some(parts: Sequence[str]) -> str:
    """The newest of some things, and how many there are besides."""
    more = f"; and {len(parts) - _MOST} before" if len(parts) > _MOST else ""
    return ", ".join(parts[-_MOST:]) + more


def _last_day(samples: Standings, past: Mapping[tuple[str, str], PastRun]) -> str:
    usable = samples.usable
    if not usable:
        return "none yet: no day's samples have passed their gate"
    day = usable[-1]
    runs = [f"{dag} {past[dag, day]}" for dag in DAGS if (dag, day) in past]
    age = (datetime.now(UTC).date() - parse_day(day)).days
    return ", ".join([f"{day}, {age} days ago: samples {samples.of[day]}", *runs])


def _missing(days: Mapping[str, list[str]], past: Mapping[tuple[str, str], PastRun]) -> str:
    """Days between the first and the last of which anything is known that have no samples."""
    known = sorted({*days["events"], *days["samples"], *(day for _, day in past)})
    if not known:
        return "no day has been delivered yet"
    expected = days_between(known[0], known[-1])
    missing = [
        f"{day} ({'delivered, no samples' if day in days['events'] else 'not delivered'})"
        for day in expected
        if day not in days["samples"]
    ]
    of = f"of {len(expected)} days from {known[0]} to {known[-1]}"
    return f"{len(missing)} {of}: {_some(missing)}" if missing else f"none {of}"


def _gates(dataset: str, stands: Mapping[str, Standings]) -> Iterator[str]:
    """Failed gates with their rules, then what an operator has allowed and what was not judged."""
    failed, numbers = [], dict.fromkeys(Standing, 0)
    for suite, of_suite in stands.items():
        for day, standing in of_suite.of.items():
            numbers[standing] += 1
            if standing is Standing.FAILED:
                failed.append(f"{suite} of {day}: {_rules(verdicts.path_of(dataset, suite, day))}")
    folder = locations.var() / "gates" / dataset / "evaluation"
    for path in sorted(folder.glob("*/*.json"), key=lambda path: path.stem):
        verdict = verdicts.read(path) or {"success": True}
        is_allowed = not verdict["success"] and verdict.get("allowed")
        standing = Standing.ALLOWED if is_allowed else Standing.FAILED
        numbers[Standing.PASSED if verdict["success"] else standing] += 1
        if not verdict["success"] and not is_allowed:
            failed.append(f"evaluation of {path.parent.name} {path.stem}: {_rules(path)}")
    yield ", ".join(f"{number} {standing}" for standing, number in numbers.items() if number) or "none yet"
    yield from (f"FAILED {one}" for one in failed[-_MOST:])
    if len(failed) > _MOST:
        yield f"and {len(failed) - _MOST} before"


def _rules(path: Path) -> str:
    findings: list[dict[str, Any]] = (verdicts.read(path) or {}).get("findings", [])
    causes = [one["rule"] for one in findings if not one["success"] and not one.get("follows")]
    return f"{', '.join(causes)} ({path})"


def _runs(past: Mapping[tuple[str, str], PastRun]) -> str:
    """Runs whose last try failed, or that are under way."""
    told = [f"{run.dag_id} of {run.ds} {run}" for run in past.values() if run.state != "success"]
    return _some(sorted(told)) or (f"the last of each of {len(past)} succeeded" if past else "none yet")


def _labels(dataset: str, deliveries: Sequence[str]) -> str:
    """Days whose labels may still change: a later delivery may bring late clicks and orders of them."""
    late_days = dataset_named(dataset).late_days
    if not deliveries:
        return "none yet"
    newest = deliveries[-1]
    open_days = [day for day in deliveries if shift_day(day, late_days) > newest]
    verdict = verdicts.read(verdicts.path_of(dataset, "events", newest)) or {}
    share = verdict.get("facts", {}).get("immature_share")
    told = f"all mature, {late_days} days after their day"
    if open_days:
        told = f"not mature: {_some(open_days)}: a delivery brings records up to {late_days} days late"
    if share is None:  # judged by no gate, or a log whose outcomes come with the impression
        return told
    return f"{told}; {share:.1%} of the impressions of {newest} had an open window when its delivery ended"


def _disk(tables: Mapping[str, TableState]) -> Iterator[str]:
    """Tables with what they hold now and, with older versions, on the disk; then the other folders."""
    headings = ("table", "rows", "days", "version", "files", "MB now", "MB on disk")
    rows = [
        (
            state.name,
            str(sum(state.rows.values())),
            str(len(state.days)),
            str(state.version),
            str(state.files),
            _mb(state.size),
            "-" if state.kept is None else _mb(state.kept),
        )
        for state in tables.values()
    ]
    if rows:
        yield from report.table(headings, rows).splitlines()
    var = locations.var()
    folders = {
        "runs": locations.runs(),
        "MLflow": var / "mlflow",
        "models": var / "models",
        "data docs": var / "data_docs",
        "Airflow": var / "airflow",
    }
    existing = next(path for path in (var, *var.parents) if path.exists())
    sizes = [f"{name} {_mb(locations.size_of(folder))} MB" for name, folder in folders.items()]
    yield ", ".join([*sizes, f"{shutil.disk_usage(existing).free / 1e9:.1f} GB free"])


def _mb(size: int) -> str:
    return f"{size / 1e6:.1f}"


def _run(arguments: argparse.Namespace) -> None:
    print_line(status(EmbeddedSettings(dataset=dataset_asked_for())))


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the screen; see `command.run` for the exit codes."""
    return command.run(command.parser("scripts.status", __doc__), _run, argv, for_people=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
