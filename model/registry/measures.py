"""Which registered versions a day's candidates are measured against: who serves, the best of the last days.

Nobody who has seen the day is a measure of it. A day that is run again, after later ones, is measured against
whom it was decided against; where it was not decided, against the champion of then.

The best of the last days keeps small losses from adding up: each day's model may be a little worse than the
day before's, and after ten days the sum is not little. It is the version that stood highest above the item
mean on its own day, of those that served or are of the champion's preset, and is scored again on the day's
rows, since numbers of two days do not compare. One more model a day is scored, whatever the number of days.
Presets that never won are left out: their lead was not shown, and the champion's preset would age behind it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from model.judging.contest import Contest, Measure
from model.judging.records import EVALUATION, newest
from model.registry import versions as registry
from model.registry.versions import Version
from model.runs.store import Run
from spark_jobs.contract.clock import shift_day

DAYS = 14
LEVEL = "above_item_mean"  # tag of a decided version: its primary metric less the item mean's, on its own day


def contests_of(dataset: str, runs: Sequence[Run]) -> list[Contest]:
    """The contest of each run of a day.

    Raises:
        RegistryError: The champion's alias has vanished, or a measure's files are damaged.
        TrackingError: MLflow is not reachable or refuses.
    """
    versions = registry.versions(dataset)
    champion = registry.aliased(dataset, registry.CHAMPION)
    return [_contest(run, versions, champion) for run in runs]


def _contest(run: Run, versions: Sequence[Version], champion: Version | None) -> Contest:
    own = next((version for version in versions if version.digest == run.digest), None)
    others = [v for v in versions if v.digest != run.digest and run.ds not in v.seen_days]
    before = _decided_evaluation(run, own)
    if before is not None:
        named = {who: (before.get(who) or {}).get("digest") for who in ("champion", "best")}
        present = {who: next((v for v in others if v.digest == named[who]), None) for who in named}
        gone = [who for who in named if named[who] and present[who] is None]
        note = f"the {' and the '.join(gone)} of then is deleted" if gone else str(before.get("note") or "")
        return Contest(
            run=run, champion=_measure(present["champion"]), best=_measure(present["best"]), note=note
        )
    measure, note = _champion_of_then(run, others, champion)
    best = best_of(run.ds, len(run.seen_days), others, champion.preset if champion else "")
    if best is not None and measure is not None and best.digest == measure.digest:
        best = None
    return Contest(run=run, champion=_measure(measure), best=_measure(best), note=note)


def _decided_evaluation(run: Run, own: Version | None) -> Mapping[str, Any] | None:
    """The evaluation that a decided run was judged by; None before it is decided."""
    path = newest(run.path, EVALUATION)
    if own is None or registry.DECISION not in own.tags or not path.exists():
        return None
    try:
        evaluation: Mapping[str, Any] = json.loads(path.read_text())
    except ValueError:
        return None  # it is evaluated again, and the new record says that the old one is damaged
    return evaluation


def _champion_of_then(
    run: Run, others: Sequence[Version], champion: Version | None
) -> tuple[Version | None, str]:
    """Who the run is measured against, and a note where it is not the present champion."""
    if champion is None or champion in others:
        return champion, ""
    served = [v for v in others if v.ds < run.ds and _served(v) and registry.ROLLED_BACK not in v.tags]
    then = max(served, key=lambda version: (version.ds, version.version), default=None)
    why = "is this very run" if champion.digest == run.digest else f"has seen {run.ds}"
    instead = (
        f"measured against {then}, the champion before that day" if then else "measured without a champion"
    )
    return then, f"{champion} {why} and is no measure: {instead}"


def best_of(ds: str, num_seen: int, others: Sequence[Version], preset: str) -> Version | None:
    """The version of the last days that stood highest above the item mean on its own day.

    Args:
        ds: The day that is judged.
        num_seen: How many days the candidate has seen: a version that has seen more is no measure of it.
        others: Versions that have not seen the day.
        preset: The champion's: versions of other presets count only if they served.
    """
    first = shift_day(ds, -DAYS)
    field = [
        version
        for version in others
        if first <= version.ds < ds
        and LEVEL in version.tags
        and version.status == registry.READY
        and version.tags.get("alarm") != "true"
        and registry.ROLLED_BACK not in version.tags
        and len(version.seen_days) <= num_seen
        and (_served(version) or version.preset == preset)
    ]
    return max(field, key=lambda version: (float(version.tags[LEVEL]), version.version), default=None)


def _served(version: Version) -> bool:
    return version.tags.get(registry.DECISION) == "promoted" or registry.RESTORED in version.tags


def _measure(version: Version | None) -> Measure | None:
    if version is None:
        return None
    return Measure(
        version=version.version,
        preset=version.preset,
        ds=version.ds,
        digest=version.digest,
        seen_days=frozenset(version.seen_days),
        path=registry.fetch(version),
    )
