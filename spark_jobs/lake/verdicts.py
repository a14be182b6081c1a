"""What a gate has found of a partition, and whether it may be used: read by every later stage.

One JSON file a partition, written by `expectations.gate` alone:
`$MTGR_VAR/gates/<dataset>/<suite>/<ds>.json`, for evaluations `.../evaluation/<preset>/<ds>.json`.

A verdict is of the rows that it judged: the table (by its id) and the commit that wrote the partition. When a
partition is written again, by a redelivery or by late records, its verdict is of the past and the partition
counts as not judged, until the gate has seen it. Commits that change no row of it (OPTIMIZE, VACUUM, other
partitions), and deletions (retention, privacy), leave the verdict as it is.

| standing | what | later stages |
|---|---|---|
| passed | every rule holds | take it |
| allowed | a rule does not hold, and an operator said why it may be used | take it, and record why |
| failed | a rule does not hold | leave it out |
| unjudged | no verdict, or one of other rows | refuse, or read the version that passed |
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from spark_jobs.contract import locations
from spark_jobs.contract.clock import HISTORY_DS
from spark_jobs.lake.log import LakeError, Written, exists, written

_PARTITION_COLUMN = {"events": "delivery_ds", "samples": "ds"}


class NotPassedError(LakeError):
    """Something is about to be used that no gate has passed; the message says which gate to run."""


class Standing(StrEnum):
    """Whether a partition may be used, see above."""

    PASSED = "passed"
    ALLOWED = "allowed"
    FAILED = "failed"
    UNJUDGED = "unjudged"

    @property
    def is_usable(self) -> bool:
        """Whether later stages take it."""
        return self in (Standing.PASSED, Standing.ALLOWED)


@dataclass(frozen=True, kw_only=True)
class Standings:
    """How partitions of a table stand.

    Args:
        dataset: Name of the dataset.
        suite: `events` or `samples`.
        of: Day to standing, ascending.
        reasons: Day to why an operator allowed it; days that are, or were in `earlier`, allowed only.
        failed: Day to the commit that failed; days that failed only.
        earlier: Day to the commit whose rows may be used; days written again since and not judged yet.
        table: Delta's id of the table; empty when there is none.
    """

    dataset: str
    suite: str
    of: Mapping[str, Standing]
    reasons: Mapping[str, str]
    failed: Mapping[str, int]
    earlier: Mapping[str, int]
    table: str

    def days(self, *standings: Standing) -> list[str]:
        """Days of these standings, ascending."""
        return [day for day, standing in self.of.items() if standing in standings]

    @property
    def usable(self) -> list[str]:
        """Days that may be used, ascending."""
        return [day for day, standing in self.of.items() if standing.is_usable]

    def require_judged(self, days: Iterable[str]) -> None:
        """Refuses days that no gate has judged as they are now.

        Raises:
            NotPassedError: There are some; names them and the command.
        """
        days = [day for day in days if self.of.get(day) is Standing.UNJUDGED]
        if days:
            raise NotPassedError(
                f"{self.dataset}: no gate has judged {self.suite} of {', '.join(days)} as they are now, so "
                f"they are not used; run: {command(self.dataset, self.suite, days)}"
            )

    def require_usable(self, ds: str) -> None:
        """Refuses one day unless it may be used.

        Raises:
            NotPassedError: It failed or was not judged.
        """
        self.require_judged([ds])
        if self.of.get(ds) is Standing.FAILED:
            raise NotPassedError(
                f"{self.dataset}: {self.suite} of {ds} did not pass their gate and are not used: see "
                f"{path_of(self.dataset, self.suite, ds)}; mend the day, or say why it may be used: "
                f'{command(self.dataset, self.suite, [ds])} --allow "<why>"'
            )


def command(dataset: str, suite: str, days: Iterable[str], preset: str | None = None) -> str:
    """The command that gates days."""
    more = f" --preset {preset}" if preset else ""
    return f"python -m expectations.gate --dataset {dataset} --suite {suite}{more} --ds {' '.join(days)}"


def partition_of(suite: str, ds: str, of_history: Collection[str] = ()) -> str:
    """The partition that a suite judges for a day, as commits name it: of events, the day's delivery.

    Args:
        suite: `events` or `samples`.
        ds: The day.
        of_history: Days that only the history from before the log brought: its delivery is judged.
    """
    return f"{_PARTITION_COLUMN[suite]}={HISTORY_DS if ds in of_history else ds}"


def path_of(dataset: str, suite: str, ds: str, preset: str | None = None) -> Path:
    """Where the verdict of a partition lies."""
    folder = locations.var() / "gates" / dataset / suite
    return (folder / preset if preset else folder) / f"{ds}.json"


def write(path: Path, verdict: Mapping[str, Any]) -> None:
    """Writes a verdict in one step: a reader sees the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = json.dumps(verdict, indent=1, sort_keys=True, allow_nan=False)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(content + "\n")
            file.flush()
            os.fsync(file.fileno())
        Path(name).chmod(0o644)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def read(path: Path) -> dict[str, Any] | None:
    """Reads a verdict; None where there is none.

    Raises:
        ValueError: The file is no verdict; names it and the remedy.
    """
    try:
        verdict = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(verdict, dict) and isinstance(verdict["success"], bool):
            return verdict
    except FileNotFoundError:
        return None
    except (ValueError, KeyError):
        pass
    raise ValueError(f"{path} is no verdict of a gate: delete it and run the gate of that day again")


def standings(
    dataset: str,
    suite: str,
    days: Iterable[str],
    version: int | None = None,
    of_history: Collection[str] = (),
) -> Standings:
    """How partitions of a table stand.

    Args:
        dataset: Name of the dataset.
        suite: `events` (partitions are deliveries) or `samples`.
        days: The partitions.
        version: Version of the table that is about to be read; the newest by default.
        of_history: Further partitions, of the delivery that brought the history, see `partition_of`.

    Raises:
        ValueError: A verdict cannot be read.
        LakeError: The table cannot be read.
    """
    uri = locations.table(dataset, suite)
    log = written(uri, version) if exists(uri) else None
    of: dict[str, Standing] = {}
    reasons: dict[str, str] = {}
    failed: dict[str, int] = {}
    earlier: dict[str, int] = {}
    for day in sorted({*days, *of_history}):
        verdict = read(path_of(dataset, suite, day))
        standing = _standing(verdict, log, partition_of(suite, day, of_history))
        of[day] = standing
        if verdict is not None and standing is Standing.UNJUDGED and _was_usable(verdict, log):
            earlier[day] = int(verdict["version"])
        if verdict is not None and (
            standing is Standing.ALLOWED or (day in earlier and not verdict["success"])
        ):
            reasons[day] = str(verdict["allowed"])
        if verdict is not None and standing is Standing.FAILED:
            failed[day] = int(verdict["version"])
    return Standings(
        dataset=dataset,
        suite=suite,
        of=of,
        reasons=reasons,
        failed=failed,
        earlier=earlier,
        table="" if log is None else log.table,
    )


def _was_usable(verdict: Mapping[str, Any], log: Written | None) -> bool:
    """Whether a verdict of rows that are not the newest let these be used."""
    version = verdict.get("version")
    if log is None or verdict.get("table") != log.table or not isinstance(version, int):
        return False
    return version <= log.newest and bool(verdict["success"] or verdict.get("allowed"))


def _standing(verdict: Mapping[str, Any] | None, log: Written | None, partition: str) -> Standing:
    if (
        verdict is None
        or log is None
        or not log.holds(partition, verdict.get("table"), verdict.get("version"))
    ):
        return Standing.UNJUDGED
    if verdict["success"]:
        return Standing.PASSED
    return Standing.ALLOWED if verdict.get("allowed") else Standing.FAILED


def file_digest(path: Path) -> str:
    """SHA-256 of a file: what the verdict of an evaluation is of."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def require_evaluation(dataset: str, preset: str, ds: str, path: Path) -> str:
    """Refuses an evaluation that its gate has not passed as it is now.

    Args:
        dataset: Name of the dataset.
        preset: Preset of the run.
        ds: Day of the run.
        path: Its `evaluation.json`.

    Returns:
        Why an operator allowed it; empty when it passed.

    Raises:
        NotPassedError: It failed or was not judged.
    """
    verdict = read(path_of(dataset, "evaluation", ds, preset))
    gate = command(dataset, "evaluation", [ds], preset)
    if verdict is None or verdict.get("table") != file_digest(path):
        raise NotPassedError(f"no gate has judged {path} as it is now, so it is not used; run: {gate}")
    if not (verdict["success"] or verdict.get("allowed")):
        raise NotPassedError(
            f"{path} did not pass its gate and is not used: "
            f"see {path_of(dataset, 'evaluation', ds, preset)}; "
            f'mend it, or say why it may be used: {gate} --allow "<why>"'
        )
    return "" if verdict["success"] else str(verdict["allowed"])


def allow(
    dataset: str, suite: str, days: Iterable[str], reason: str, of_history: Collection[str] = ()
) -> None:
    """Says of partitions as they are now, without a gate, why they may be used; for tests and benchmarks.

    Args:
        dataset: Name of the dataset.
        suite: `events` or `samples`.
        days: The partitions.
        reason: Why; later stages record it.
        of_history: See `partition_of`.
    """
    log = written(locations.table(dataset, suite))
    for day in days:
        verdict = {
            "dataset": dataset,
            "suite": suite,
            "ds": day,
            "success": False,
            "allowed": reason,
            "table": log.table,
            "version": log.version_of(partition_of(suite, day, of_history)),
            "facts": {},
            "findings": [],
        }
        write(path_of(dataset, suite, day), verdict)
