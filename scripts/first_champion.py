"""Makes the first champion: `python -m scripts.first_champion --dataset foodlog --ds 2026-03-02`.

A model is promoted because it beats the champion, so there has to be one: the baseline, the article's
UserTower DLRM, trained, evaluated, registered and promoted by the same commands as any model, once. When
there is a champion, nothing is done. A baseline that the rules refuse, as after the first day of a log that
has no history yet, is no failure: the day's model is judged next, and the next day tries again. One process
for all: each would import PyTorch and MLflow anew.
"""

from __future__ import annotations

import argparse
import importlib
import logging
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from spark_jobs.contract import command
from spark_jobs.contract.command import RefusedError

logger = logging.getLogger(__name__)
BASELINE = "user_tower"
GATE = "expectations.gate"
STEPS = ("model.train", "model.evaluate", GATE, "model.register", "model.promote")


def steps(dataset: str, ds: str) -> int:
    """Makes the baseline, step by step, and ends at the first that fails.

    Returns:
        The exit code that is not 0, or 0; an evaluation that its gate refuses is no failure either.
    """
    arguments = ["--dataset", dataset, "--ds", ds, "--preset", BASELINE]
    for name in STEPS:
        more = ["--suite", "evaluation"] if name == GATE else []
        code: int = importlib.import_module(name).main([*arguments, *more])
        if code and name == GATE:
            logger.warning("the gate of its evaluation did not pass the baseline: see above")
            return 0
        if code:
            logger.error("%s of the baseline failed with exit code %d", name, code)
            return code
    return 0


def _run(arguments: argparse.Namespace) -> Mapping[str, Any]:
    from model.registry import versions as registry

    dataset = arguments.dataset.name
    champion = registry.aliased(dataset, registry.CHAMPION)
    code = steps(dataset, arguments.ds) if champion is None else 0
    version = registry.aliased(dataset, registry.CHAMPION)
    result = {
        "ds": arguments.ds,
        "made": champion is None and version is not None,
        "version": version and version.version,
    }
    if code:
        raise RefusedError("no first champion", result)
    if version is None:
        logger.warning("the baseline was refused as first champion: see its decision above")
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Makes the first champion; a refusal by the rules is no failure. Exit codes: `command.run`."""
    parser = command.parser("scripts.first_champion", __doc__)
    command.add_dataset(parser)
    command.add_day(parser, help="day, YYYY-MM-DD")
    return command.run(parser, _run, argv)


if __name__ == "__main__":
    sys.exit(main())
