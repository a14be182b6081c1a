"""What a version was trained from: its days as ranges in a tag, all else in the artifact `lineage.json`.

A tag is for searching and reading at a glance, and databases bound it (Postgres takes 8,000 characters, which
the table versions of 420 days fill); the artifact holds a link for each training, without a bound.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from model.registry.store import TrackingError, with_named_errors
from spark_jobs.contract.clock import days_between, shift_day

LINEAGE = "lineage"


def as_ranges(days: Iterable[str]) -> str:
    """Days as ranges: `2026-03-01..2026-03-05 2026-03-08`."""
    ranges: list[tuple[str, str]] = []
    for day in sorted(set(days)):
        if ranges and shift_day(ranges[-1][1], 1) == day:
            ranges[-1] = (ranges[-1][0], day)
        else:
            ranges.append((day, day))
    return " ".join(first if first == last else f"{first}..{last}" for first, last in ranges)


def days_of(ranges: str) -> tuple[str, ...]:
    """The days that `as_ranges` wrote, ascending.

    Raises:
        ValueError: The text is not of that form.
    """
    if ranges.startswith("{"):  # written before there were ranges
        return tuple(sorted(json.loads(ranges)))
    days: list[str] = []
    for part in ranges.split():
        first, _, last = part.partition("..")
        days += days_between(first, last or first)
    return tuple(days)


@with_named_errors
def read_lineage(run_id: str) -> list[dict[str, Any]]:
    """The links of a run's lineage, oldest first, as `lineage.json` of its MLflow run has them.

    Raises:
        TrackingError: It has none, or MLflow is not reachable.
    """
    import mlflow

    with tempfile.TemporaryDirectory(prefix="mtgr-lineage-") as folder:
        path = mlflow.artifacts.download_artifacts(
            run_id=run_id, artifact_path=f"{LINEAGE}.json", dst_path=folder
        )
        try:
            links: list[dict[str, Any]] = json.loads(Path(path).read_text())["links"]
            return links
        except (ValueError, KeyError, TypeError) as error:
            raise TrackingError(
                f"{LINEAGE}.json of the MLflow run {run_id} is no lineage: {error}"
            ) from error
