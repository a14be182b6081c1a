"""Builds the log that foodlog's evidence is of: `MTGR_VAR=var/evidence python -m benchmarks.evidence.world`.

The default world's raw logs, ingested from its first day on, so that histories and statistics are weeks old
when the first samples are made. One process does it all, by the commands of the daily run but without gates:
what is simulated is allowed as it is, which is why it lies in a `MTGR_VAR` of its own. Run again, it goes on
with the days that are missing.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from spark_jobs import build_samples, ingest, simulate
from spark_jobs.contract import command, locations
from spark_jobs.contract.clock import days_between
from spark_jobs.contract.command import CommandError
from spark_jobs.contract.foodlog import FOODLOG
from spark_jobs.lake import verdicts

FIRST = "2026-02-16"  # the world's first day


def main(argv: Sequence[str] | None = None) -> int:
    """Builds; see `command.run` for the exit codes."""
    parser = command.parser("benchmarks.evidence.world", __doc__)
    for name, default, told in (
        ("--from", "2026-03-17", "first day with samples"),
        ("--to", "2026-03-26", "last day, included"),
    ):
        command.add_day(parser, name, required=False, dest=name[2:], default=default, help=told)

    def body(arguments: argparse.Namespace) -> Mapping[str, Any]:
        first, last = getattr(arguments, "from"), arguments.to
        days = days_between(FIRST, last)
        done(simulate.main(["--from", FIRST, "--to", last]), "simulate")
        for day in days:
            step(ingest.main, "events", day)
        for day in days_between(first, last):
            step(build_samples.main, "samples", day)
        return {"samples": locations.table(FOODLOG.name, "samples"), "days": len(days)}

    return command.run(parser, body, argv)


def step(run: Any, suite: str, day: str) -> None:
    """Makes the partition of a day, unless it was made and allowed before."""
    if verdicts.path_of(FOODLOG.name, suite, day).exists():
        return
    done(run(["--dataset", FOODLOG.name, "--ds", day]), f"{suite} of {day}")
    verdicts.allow(FOODLOG.name, suite, [day], "simulated for the evidence")


def done(code: int, what: str) -> None:
    """Stops where a command failed.

    Raises:
        CommandError: It did.
    """
    if code:
        raise CommandError(f"{what}: exit code {code}; its reason is above")


if __name__ == "__main__":
    sys.exit(main())
