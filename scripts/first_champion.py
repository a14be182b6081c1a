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
import json
import logging
import sys
from collections.abc import Sequence

from spark_jobs.contract import parse_day
from spark_jobs.datasets import dataset_named

logger = logging.getLogger(__name__)
BASELINE = "user_tower"


def steps(dataset: str, ds: str) -> int:
    """Trains, evaluates, registers and promotes the baseline; the first exit code that is not 0, or 0."""
    arguments = ["--dataset", dataset, "--ds", ds, "--preset", BASELINE]
    for name in ("train", "evaluate", "register", "promote"):
        code: int = importlib.import_module(f"model.{name}").main(arguments)
        if code:
            logger.error("%s of the baseline failed with exit code %d", name, code)
            return code
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command. Exit code 0 done, or refused by the rules; 1 failed or an alarm, 2 wrong usage."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.first_champion", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--ds", required=True, help="day, YYYY-MM-DD")
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(levelname)s %(name)s: %(message)s")
    try:
        dataset = dataset_named(arguments.dataset).name
        parse_day(arguments.ds)
    except ValueError as error:
        logger.error("%s", error)
        return 2
    from model import registry
    from model.mlflow_store import TrackingError

    try:
        champion = registry.aliased(dataset, registry.CHAMPION)
        code = steps(dataset, arguments.ds) if champion is None else 0
        version = registry.aliased(dataset, registry.CHAMPION)
    except (TrackingError, registry.RegistryError) as error:
        logger.error("%s", error)
        return 1
    if code == 0 and version is None:
        logger.warning("the baseline was refused as first champion: see its decision above")
    result = {
        "ds": arguments.ds,
        "made": champion is None and version is not None,
        "version": version and version.version,
    }
    sys.stdout.write(json.dumps(result) + "\n")
    return code


if __name__ == "__main__":
    sys.exit(main())
