"""What a backfill would do, from what is there: `make backfill PLAN=1`. Reads, and changes nothing.

Which days have a run already, and how long those took, is read from a copy of Airflow's database; what the
tables hold from Delta's logs; what would be trained by the rules of training itself (`store.base_of`), with
the runs of the days before taken for made and the gates for passed.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from scripts.embedded import databases, report
from scripts.embedded.components import DAGS
from scripts.embedded.past import PastRun, past_runs
from scripts.embedded.settings import EmbeddedSettings
from scripts.embedded.tables import table_state
from spark_jobs.contract.datasets import dataset_named
from spark_jobs.lake.verdicts import Standing, standings

if TYPE_CHECKING:
    from model.runs.store import Run

PRODUCER, CONSUMER = DAGS
HEADINGS = ("", "day", "last run", "took", "events", "samples", "models", "is replaced", "trains on")
# Of a run's states, those that a backfill leaves alone, by what it is told to reprocess.
_LEFT = {
    "none": {"success", "failed", "queued", "running"},
    "failed": {"success"},
    "completed": set(),
}


@dataclass(frozen=True, kw_only=True)
class PlannedDay:
    """What a backfill would do with a day.

    Args:
        ds: The day.
        place: When it runs, from 1; None when it is left alone.
        last: How its last run ended; None where it has none.
        seconds: How long its last runs of both DAGs took; None where they have not ended.
        there: Table to what it holds of the day, in words; only tables that hold something.
        models: Presets that have a run of the day.
        trains: Preset to the days that its run would learn.
    """

    ds: str
    place: int | None
    last: PastRun | None
    seconds: float | None
    there: Mapping[str, str]
    models: Sequence[str]
    trains: Mapping[str, Sequence[str]]

    def row(self) -> tuple[str, ...]:
        """The day as a line of the table."""
        replaced = [*self.there, *(preset for preset in self.models if self.trains.get(preset))]
        by_days: dict[str, list[str]] = {}
        for preset, days in self.trains.items():
            if days:
                by_days.setdefault(_range(days), []).append(preset)
        trained = "; ".join(f"{days} ({', '.join(presets)})" for days, presets in by_days.items())
        is_left = self.place is None
        return (
            "-" if is_left else str(self.place),
            self.ds,
            str(self.last or "none"),
            "-" if self.seconds is None else f"{self.seconds:.0f} s",
            self.there.get("events", "-"),
            self.there.get("samples", "-"),
            ", ".join(self.models) or "-",
            "left alone" if is_left else ", ".join(replaced) or "nothing",
            "-" if is_left else trained or "nothing new",
        )


def plan(
    settings: EmbeddedSettings, days: Sequence[str], reprocess: str
) -> tuple[list[PlannedDay], float | None]:
    """What a backfill of the days would do, oldest day first; and how many seconds a day has usually taken.

    Args:
        settings: Of the embedded run.
        days: The days, ascending.
        reprocess: `none`, `failed` or `completed`.

    Raises:
        CommandError: A table, a run or the registry cannot be read.
    """
    name = settings.dataset
    with databases.only_read(settings.database) as (airflow, has_registry):
        past = past_runs(airflow)
        presets = _presets(settings, has_registry)
    there = {table: _there(name, table) for table in ("events", "samples")}
    # What is unfinished is ended before a backfill starts, as failed: `AirflowApi.end_unfinished`.
    last = {day: past.get((PRODUCER, day)) for day in days}
    left = _LEFT[reprocess]
    reprocessed = [day for day in days if (run := last[day]) is None or run.state not in left]
    trains = _trains(name, presets, there["samples"], reprocessed)
    models = {preset: _runs(name, preset) for preset in presets}
    planned = [
        PlannedDay(
            ds=day,
            place=reprocessed.index(day) + 1 if day in reprocessed else None,
            last=last[day],
            seconds=_took(past, day),
            there={table: held[day][1] for table, held in there.items() if day in held},
            models=[preset for preset, runs in models.items() if any(run.ds == day for run in runs)],
            trains=trains.get(day, {}),
        )
        for day in days
    ]
    taken = [seconds for day in {day for _, day in past} if (seconds := _took(past, day)) is not None]
    return planned, statistics.median(taken) if taken else None


def _presets(settings: EmbeddedSettings, has_registry: bool) -> list[str]:
    """The presets that are trained: the challengers, and the champion's own."""
    if not has_registry:
        return list(settings.presets)
    from model.registry import versions as registry

    champion = registry.aliased(settings.dataset, registry.CHAMPION)
    return list(dict.fromkeys((*settings.presets, *([champion.preset] if champion else []))))


def _there(dataset: str, table: str) -> dict[str, tuple[Standing, str]]:
    """Day to how it stands with its gate, and how much a table holds of it, in words."""
    state = table_state(dataset, table)
    if state is None:
        return {}
    stands = standings(dataset, table, state.days).of
    return {day: (stands[day], f"{state.rows[day]} {stands[day]}") for day in state.days}


def _runs(dataset: str, preset: str) -> list[Run]:
    from model.runs.store import complete_runs

    return complete_runs(dataset, preset)


def _took(past: Mapping[tuple[str, str], PastRun], day: str) -> float | None:
    seconds = [run.seconds for dag in DAGS if (run := past.get((dag, day))) is not None]
    known = [taken for taken in seconds if taken is not None]
    return sum(known) if known and len(known) == len(seconds) else None


def _trains(
    dataset: str,
    presets: Sequence[str],
    samples: Mapping[str, tuple[Standing, str]],
    reprocessed: Sequence[str],
) -> dict[str, dict[str, list[str]]]:
    """Day to preset to the days that it would learn."""
    from model.runs.files import RunError
    from spark_jobs.contract.declaration import differences

    declared = dataset_named(dataset)

    def fits(run: Run) -> bool:
        if not run.path.is_dir():  # taken for made
            return True
        try:
            return not differences(run.config()[0], declared)
        except RunError:  # of another version of this code: training begins anew, too
            return False

    usable = {day for day, (standing, _) in samples.items() if standing is not Standing.FAILED}
    planned: dict[str, dict[str, list[str]]] = {day: {} for day in reprocessed}
    for preset in presets:
        runs = {run.ds: run for run in _runs(dataset, preset)}
        for day in reprocessed:
            before = sorted(other for other in usable.union(reprocessed) if other < day)
            if before:
                planned[day][preset] = _learn(dataset, preset, runs, before, day, fits)
    return planned


def _learn(
    dataset: str, preset: str, runs: dict[str, Run], before: list[str], day: str, fits: Callable[[Run], bool]
) -> list[str]:
    """The days that the run of `day` would learn; from then on it counts as made in `runs`."""
    from model.runs.store import Run, base_of, run_path

    base = base_of([runs[ds] for ds in sorted(runs)], before, day, fits)
    seen = {} if base is None else base.seen_days
    unseen = [other for other in before if other not in seen]
    wanted = {*seen, *unseen}
    if day in runs and set(runs[day].seen_days) == wanted and fits(runs[day]):
        return []
    runs[day] = Run(
        path=run_path(dataset, preset, day).with_suffix(".planned"),
        record={"ds": day, "seen_days": dict.fromkeys(sorted(wanted), 0)},
    )
    return unseen


def _range(days: Sequence[str]) -> str:
    return days[0] if len(days) == 1 else f"{len(days)} days {days[0]} to {days[-1]}"


def told(
    settings: EmbeddedSettings,
    planned: Sequence[PlannedDay],
    usual: float | None,
    reprocess: str,
    simulates: bool,
) -> str:
    """The plan for a person who decides; `usual` are the seconds of a day that has no time of its own."""
    runs = [day for day in planned if day.place is not None]
    late_days = dataset_named(settings.dataset).late_days
    lines = [
        f"{settings.dataset}: a backfill of {planned[0].ds} to {planned[-1].ds} with REPROCESS={reprocess} "
        f"runs {len(runs)} of {len(planned)} days, oldest first, one at a time",
        "",
        report.table(HEADINGS, [day.row() for day in planned]),
        "",
        _how_long(runs, usual),
    ]
    if runs:
        lines += [
            "a partition that would become what it is stays as it is; records in a delivery that belong to "
            f"one of the {late_days} days before it make that day's samples again, too",
            "trained is what the gates pass: here every day that runs is taken for passed",
        ]
    if simulates:
        lines.append(f"SIMULATE=1: the raw logs of all {len(planned)} days are simulated first")
    return "\n".join([*lines, "nothing was changed: PLAN=1"])


def _how_long(runs: Sequence[PlannedDay], usual: float | None) -> str:
    known = [day.seconds for day in runs if day.seconds is not None]
    unknown = len(runs) - len(known)
    if not runs:
        return "nothing to do"
    if usual is None:
        return "how long it takes is not known: no day has run to its end here"
    took = [f"{len(known)} took {sum(known):.0f} s last time"] if known else []
    guess = [f"{unknown} never ran to the end, which takes {usual:.0f} s (the median)"] if unknown else []
    total = sum(known) + unknown * usual
    return f"about {total:.0f} s, and the start of the components: of the days {', '.join(took + guess)}"
