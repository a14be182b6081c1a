"""The end of a run: a table of the days with the versions they made, and where to look."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from scripts.embedded.settings import EmbeddedSettings
from spark_jobs.contract import locations

METRICS = ("ctr_auc", "ctr_gauc", "ctcvr_auc", "ctcvr_gauc")
HEADINGS = ("day", "version", "CTR AUC", "CTR GAUC", "CTCVR AUC", "CTCVR GAUC", "alias", "seconds")


def rows(settings: EmbeddedSettings, seconds: Mapping[str, float]) -> list[tuple[str, ...]]:
    """One row a day: metrics from its evaluation, version and alias from the registry.

    Args:
        settings: Whose days.
        seconds: Days in order, with the seconds that each took.
    """
    from model.registry import versions as registry

    versions = {version.digest: version.version for version in registry.versions(settings.dataset)}
    aliases: dict[int, list[str]] = {}
    for alias in (registry.CHAMPION, registry.CANDIDATE):
        version = registry.aliased(settings.dataset, alias)
        if version is not None:
            aliases.setdefault(version.version, []).append(alias)
    found: list[tuple[str, ...]] = []
    for day, taken in seconds.items():
        path = locations.runs() / settings.dataset / settings.preset / day / "evaluation.json"
        if not path.exists():
            found.append(
                (day, "-", "-", "-", "-", "-", "no model: nothing to learn from yet", f"{taken:.0f}")
            )
            continue
        candidate = json.loads(path.read_text())["candidate"]
        number = versions.get(candidate["digest"])
        alias = ", ".join(aliases.get(number, [])) if number is not None else ""
        found.append(
            (day, str(number or "-"), *(_metric(candidate, name) for name in METRICS), alias, f"{taken:.0f}")
        )
    return found


def _metric(metrics: Mapping[str, Any], name: str) -> str:
    value = metrics.get(name)
    return "-" if value is None else f"{value:.4f}"


def table(headings: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Lines and their headings in aligned columns."""
    widths = [max(len(row[i]) for row in (headings, *lines)) for i in range(len(headings))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in (headings, *lines)
    )


def where(settings: EmbeddedSettings) -> str:
    """The champion, and a line for each place to look."""
    from model.registry import versions as registry

    champion = registry.aliased(settings.dataset, registry.CHAMPION)
    docs: Path = locations.var() / "data_docs" / "index.html"
    lines = (
        ("champion", str(champion or "none yet")),
        ("MLflow", f"{locations.tracking_uri()} (make ui: http://127.0.0.1:{settings.mlflow_port})"),
        ("Airflow", f"{settings.database} (make ui: {settings.airflow_url})"),
        ("data docs", str(docs)),
        ("tables", f"{locations.lake()}/{settings.dataset}"),
    )
    return "\n".join(f"{name:<10} {place}" for name, place in lines)
