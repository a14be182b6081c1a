"""The days of a run, from `FROM`, `TO` and `DAYS`, and the raw logs that they need."""

from __future__ import annotations

from scripts.embedded.components import python
from scripts.embedded.settings import EmbeddedSettings, days_asked_for, simulation_asked_for
from spark_jobs.contract.clock import days_between, parse_day, shift_day
from spark_jobs.contract.command import UsageError

# First day and number of days when nothing else is asked for.
_DEFAULTS = {"foodlog": ("2026-03-01", 3), "kuairand": ("2022-04-25", 4), "journey": ("2017-11-20", 3)}


def days_from_environment(dataset: str, *, required: bool = False) -> list[str]:
    """The days asked for.

    Args:
        dataset: Name of the dataset.
        required: The days have to be given: `FROM`, and `TO` or `DAYS`.

    Raises:
        UsageError: A day or number is wrong, or no day is left.
    """
    first, number = _DEFAULTS.get(dataset, ("", 0))
    given = days_asked_for()
    if (required or not first) and not (given["FROM"] and (given["TO"] or given["DAYS"])):
        raise UsageError("give the days: FROM=2026-03-01 TO=2026-03-07, or FROM=2026-03-01 DAYS=7")
    if given["TO"] and given["DAYS"]:
        raise UsageError("give TO or DAYS, not both")
    for name in ("FROM", "TO"):
        try:
            parse_day(given[name] or "2026-03-01")
        except ValueError as error:
            raise UsageError(f"{name}: {error}") from error
    if given["DAYS"] and (not given["DAYS"].isdecimal() or not 1 <= int(given["DAYS"]) <= 400):
        raise UsageError(f"DAYS={given['DAYS']} is not a number of days from 1 to 400")
    first = given["FROM"] or first
    days = days_between(first, given["TO"] or shift_day(first, int(given["DAYS"] or number) - 1))
    if not days:
        raise UsageError(f"FROM={first} lies after TO={given['TO']}")
    return days


def seed(settings: EmbeddedSettings) -> dict[str, list[str]]:
    """Command that takes in the history from before the log, by name; none where the source knows of none.

    Its events lie on days of which no gate has seen a delivery. It is ingested before the first day.
    """
    from spark_jobs.sources import has_history  # needs PySpark, which a command's --help need not wait for

    if not has_history(settings.dataset):
        return {}
    return {"history": python("spark_jobs.ingest", "--dataset", settings.dataset, "--history")}


def simulation(settings: EmbeddedSettings, days: list[str]) -> dict[str, list[str]]:
    """Command that writes the raw logs of the days, by name; none for a dataset with logs of its own.

    journey's are made of the retailer's tables, once; what was before the first day becomes their history.
    `USERS` and `IMPRESSIONS` (a day) change the size of the simulated app. With `SIMULATE=0`, or a folder
    of raw logs, nothing is simulated: logs of foodlog's layout are somebody's own.

    Raises:
        UsageError: Both a folder and a simulation are asked for, or a size is no number.
    """
    simulate, sizes = simulation_asked_for()
    if simulate and settings.data is not None:
        raise UsageError(
            f"DATA={settings.data} holds raw logs and SIMULATE=1 would write others: give one of them"
        )
    if settings.dataset == "journey" and settings.data is None:
        return {"journey": python("spark_jobs.journey", "--first-day", days[0])}
    if settings.dataset != "foodlog" or simulate is False or settings.data is not None:
        return {}
    options = []
    for variable, option in (("USERS", "--users"), ("IMPRESSIONS", "--impressions-a-day")):
        value = sizes[variable]
        if value:
            options += [option, value]
    command = python(
        "spark_jobs.simulate", "--dataset", "foodlog", "--from", days[0], "--to", days[-1], *options
    )
    return {"simulate": command}
