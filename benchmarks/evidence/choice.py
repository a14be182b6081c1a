"""Chooses a contender's settings by trials on days before the test days: as many for every one (Optuna).

The first trial is the preset as it is. A trial trains on the first days and is worth the mean of the frozen
CTR and CTCVR GAUC of the days to choose by. Trials are kept as they are made, so that an interrupted choice
goes on, with the same trials.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.evidence.contenders import RANGES, Booster, Contender
from benchmarks.evidence.days import Days
from benchmarks.evidence.trial import frame_of, joined
from model.data.reader import SamplesTable
from model.judging.evaluation import metrics_of
from model.runs.files import write_text

logger = logging.getLogger(__name__)


def choose(
    name: str, contender: Contender | Booster, samples: SamplesTable, days: Days, budget: int, folder: Path
) -> dict[str, Any]:
    """The best settings of `budget` trials, which lie in `<folder>/<name>.json`.

    Args:
        name: Of the contender.
        contender: Whose settings.
        samples: One version of a samples table.
        days: To learn and to choose by.
        budget: Trials.
        folder: Where trials are kept.
    """
    import optuna  # optional: whoever only reads the results does not need it

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    space = {
        key: optuna.distributions.FloatDistribution(*values, log=True)
        if key in RANGES
        else optuna.distributions.CategoricalDistribution(values)
        for key, values in contender.space().items()
    }
    path = folder / f"{name}.json"
    trials: list[dict[str, Any]] = json.loads(path.read_text()) if path.exists() else []
    study = optuna.create_study(
        direction="maximize", sampler=optuna.samplers.TPESampler(seed=1, n_startup_trials=3)
    )
    for number in range(budget):
        if not number:
            study.enqueue_trial(contender.as_it_is())
        trial = study.ask(space)  # drawn again where it is known: the sampler's state is what it was
        if number == len(trials):
            start = time.monotonic()
            value = worth(contender, trial.params, samples, days)
            trials.append(
                {"settings": trial.params, "gauc": value, "seconds": round(time.monotonic() - start, 1)}
            )
            folder.mkdir(parents=True, exist_ok=True)
            write_text(path, json.dumps(trials, indent=1) + "\n")
            logger.info("%s, trial %d: %.4f with %s", name, number, value, trial.params)
        if not _are_same(trials[number]["settings"], trial.params):
            raise ValueError(f"{path} holds other trials than these: remove it to choose anew")
        study.tell(trial, trials[number]["gauc"])
    best: dict[str, Any] = max(trials[:budget], key=lambda one: float(one["gauc"]))["settings"]
    return best


def _are_same(held: Mapping[str, Any], drawn: Mapping[str, Any]) -> bool:
    """Whether settings are equal; the last digit of what is drawn is not that of every machine."""
    return held.keys() == drawn.keys() and all(
        math.isclose(held[name], drawn[name], rel_tol=1e-9) if name in RANGES else held[name] == drawn[name]
        for name in held
    )


def worth(
    contender: Contender | Booster, settings: dict[str, Any], samples: SamplesTable, days: Days
) -> float:
    """Mean frozen GAUC of both tasks on the days to choose by."""
    parts = list(contender.scored_days(samples, settings, 1, days.learn, days.choose, daily=False))
    frame, _ = frame_of(samples, days.choose)
    metrics = metrics_of(samples.dataset, frame, joined([scores for _, scores, _ in parts]))
    return (metrics["ctr_gauc"] + metrics["ctcvr_gauc"]) / 2
