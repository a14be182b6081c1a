r"""Builds the samples that the evidence is of: `MTGR_VAR=var/evidence python -m benchmarks.evidence.world`.

By default foodlog's: the default world's raw logs, ingested from its first day on, so that histories and
statistics are weeks old when the first samples are made. Of another dataset, whose log is there, the days,
after what was before the log:

    MTGR_VAR=var/evidence MTGR_KUAIRAND=<folder> python -m benchmarks.evidence.world --dataset kuairand \
        --from 2022-04-25 --to 2022-05-06

One process does it all, by the commands of the daily run but without gates: what they would judge is allowed
as it is, which is why it lies in a `MTGR_VAR` of its own. Run again, it goes on with the days that are
missing.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from spark_jobs import build_samples, ingest, simulate
from spark_jobs.contract import command, locations
from spark_jobs.contract.clock import HISTORY_DS, days_between
from spark_jobs.contract.command import CommandError
from spark_jobs.contract.foodlog import FOODLOG
from spark_jobs.lake import verdicts
from spark_jobs.sources import has_history

FIRST = "2026-02-16"  # the world's first day


def main(argv: Sequence[str] | None = None) -> int:
    """Builds; see `command.run` for the exit codes."""
    parser = command.parser("benchmarks.evidence.world", __doc__)
    command.add_dataset(parser, required=False)
    for name, default, told in (
        ("--from", "2026-03-17", "first day with samples"),
        ("--to", "2026-03-26", "last day, included"),
    ):
        command.add_day(parser, name, required=False, dest=name[2:], default=default, help=told)

    def body(arguments: argparse.Namespace) -> Mapping[str, Any]:
        dataset = (arguments.dataset or FOODLOG).name
        first, last = getattr(arguments, "from"), arguments.to
        earliest = first
        if dataset == FOODLOG.name:
            earliest = FIRST
            done(simulate.main(["--from", earliest, "--to", last]), "simulate")
        if has_history(dataset) and not verdicts.path_of(dataset, "events", HISTORY_DS).exists():
            done(ingest.main(["--dataset", dataset, "--history"]), "history")
        days = days_between(earliest, last)
        for day in days:
            step(ingest.main, dataset, "events", day)
        for day in days_between(first, last):
            step(build_samples.main, dataset, "samples", day)
        return {"samples": locations.table(dataset, "samples"), "days": len(days)}

    return command.run(parser, body, argv)


def step(run: Any, dataset: str, suite: str, day: str) -> None:
    """Makes the partition of a day, unless it was made and allowed before."""
    if verdicts.path_of(dataset, suite, day).exists():
        return
    done(run(["--dataset", dataset, "--ds", day]), f"{suite} of {day}")
    verdicts.allow(dataset, suite, [day], "made for the evidence")


def done(code: int, what: str) -> None:
    """Stops where a command failed.

    Raises:
        CommandError: It did.
    """
    if code:
        raise CommandError(f"{what}: exit code {code}; its reason is above")


if __name__ == "__main__":
    sys.exit(main())
