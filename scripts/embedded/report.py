"""The end of a run: a table of the days with all presets of each, who is champion and why, where to look."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scripts.embedded.settings import EmbeddedSettings
from spark_jobs.contract import locations
from spark_jobs.contract.datasets import dataset_named

if TYPE_CHECKING:
    from model.registry.versions import Version

METRICS = ("ctr_auc", "ctr_gauc", "ctcvr_auc", "ctcvr_gauc")
HEADINGS = (
    "day", "preset", "version", "CTR AUC", "CTR GAUC", "CTCVR AUC", "CTCVR GAUC", "decision", "seconds"
)  # fmt: skip
NO_RUN = "no run of this day"


def load_meanwhile() -> None:
    """Begins to load, beside what runs, what a report needs: MLflow and PyTorch are ten seconds of a core."""
    # What fails here is told, and fails again in the report, which then says it as its own.
    threading.Thread(target=_load, name="loading", daemon=True).start()


def _load() -> None:
    from model.registry import store, versions  # noqa: F401

    store.client()


def rows(
    settings: EmbeddedSettings, seconds: Mapping[str, float], outcomes: Mapping[str, str]
) -> list[tuple[str, ...]]:
    """A row for each preset of a day, and one for what kept a day from being done.

    Args:
        settings: Whose days.
        seconds: Days in order, with the seconds that each took.
        outcomes: By day, which task failed or why there was nothing to do, see `Watch`.
    """
    from model.registry import versions as registry

    versions = {version.digest: version for version in registry.versions(settings.dataset)}
    champion = registry.aliased(settings.dataset, registry.CHAMPION)
    lines: list[tuple[str, ...]] = []
    for day, taken in seconds.items():
        of_day = [
            _row(evaluation, versions, champion)
            for preset in _presets(settings)
            if (evaluation := _json(_run(settings, preset, day) / "evaluation.json"))
        ]
        if day in outcomes or not of_day:
            blank = ("-",) * (len(HEADINGS) - 3)
            of_day.append((*blank, _outcome(settings.dataset, day, outcomes.get(day, NO_RUN))))
        for place, row in enumerate(of_day):
            lines.append((day, *row, f"{taken:.0f}") if place == 0 else ("", *row, ""))
    return lines


def _presets(settings: EmbeddedSettings) -> list[str]:
    """The presets asked for, and others that have runs, such as the champion's own."""
    folder = locations.runs() / settings.dataset
    others = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    return list(dict.fromkeys((*settings.presets, *others)))


def _run(settings: EmbeddedSettings, preset: str, day: str) -> Path:
    return locations.runs() / settings.dataset / preset / day


def _row(
    evaluation: Mapping[str, Any], versions: Mapping[str, Version], champion: Version | None
) -> tuple[str, ...]:
    candidate = evaluation["candidate"]
    version = versions.get(candidate["digest"])
    metrics = (_metric(candidate, name) for name in METRICS)
    decision = "not decided"
    if version is not None and version.tags.get("decision"):
        decision = version.tags["decision"] + (", alarm" if version.tags.get("alarm") == "true" else "")
    if version is not None and champion is not None and version.version == champion.version:
        decision = "champion"
    return (evaluation["preset"], str(version.version if version else "-"), *metrics, decision)


def _metric(metrics: Mapping[str, Any], name: str) -> str:
    value = metrics.get(name)
    return "-" if value is None else f"{value:.4f}"


def _outcome(dataset: str, day: str, outcome: str) -> str:
    """Which task failed and, of a gate, by which rules."""
    task = outcome.split()[0]
    folder = locations.var() / "gates" / dataset / task.removeprefix("gate_")
    verdicts = [_json(path) for path in sorted(folder.rglob(f"{day}.json"))] if "gate_" in task else []
    rules = [
        finding["rule"]
        for verdict in verdicts
        for finding in verdict.get("findings", ())
        if not finding["success"]
    ]
    return f"{outcome}: {', '.join(dict.fromkeys(rules))}" if rules else outcome


def _json(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return content


def table(headings: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Lines and their headings in aligned columns."""
    widths = [max(len(row[i]) for row in (headings, *lines)) for i in range(len(headings))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in (headings, *lines)
    )


def where(settings: EmbeddedSettings) -> str:
    """The champion and why it is, and a line for each place to look."""
    docs: Path = locations.var() / "data_docs" / "index.html"
    lines = (
        ("champion", champion_and_why(settings)),
        ("MLflow", f"{locations.tracking_uri()} (make ui: http://127.0.0.1:{settings.mlflow_port})"),
        ("Airflow", f"{settings.database} (make ui: {settings.airflow_url})"),
        ("data docs", str(docs)),
        ("tables", f"{locations.lake()}/{settings.dataset}"),
    )
    return "\n".join(f"{name:<10} {place}" for name, place in lines)


def champion_and_why(settings: EmbeddedSettings) -> str:
    """The champion and what decided for it; where there is none, why the newest version is not."""
    from model.registry import versions as registry

    champion = registry.aliased(settings.dataset, registry.CHAMPION)
    versions = registry.versions(settings.dataset)
    version = champion or (versions[-1] if versions else None)
    if version is None:
        return "none yet"
    record = _json(_run(settings, version.preset, version.ds) / "promotion.json")
    primary = dataset_named(settings.dataset).limits.primary
    reasons = [
        reason for reason in record.get("reasons", ()) if champion is None or reason.startswith(primary)
    ]
    if registry.RESTORED in version.tags:
        reasons = [f"restored by a rollback, {version.tags[registry.RESTORED]}"]
    why = "; ".join(reasons) or "its decision is not on this machine"
    return f"{version}: {why}" if champion is not None else f"none yet; {version}: {why}"
