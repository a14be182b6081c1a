"""A model is trained over days in order and scores the days after them, as daily runs would.

Each day that is scored is trained on before the next one is. What is scored are the weights that a run would
publish. Nothing is registered: a trial leaves its scores, and what they were worth.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from benchmarks.evidence.gradient_boosting import Boosting, fit, rows_of, scores_of
from model.config.run import Config
from model.data.encoder import SampleEncoder
from model.data.reader import SamplesTable
from model.judging.evaluation import LABELS, score_day
from model.judging.scoring import Scorer
from model.rankers.protocol import build_ranker
from model.runs.sharded import ShardReader, ShardWriter
from model.training.loader import Loader, with_next
from model.training.loop import fit_constants
from model.training.parts import save
from model.training.ranks import process_group
from model.training.step import Trainer

Array = npt.NDArray[Any]
Frame = dict[str, Array]


def scored_days(
    samples: SamplesTable, config: Config, train: Sequence[str], test: Sequence[str], device: torch.device
) -> Iterator[tuple[str, Frame, float]]:
    """Trains on `train` and scores each day of `test` before it is trained on, too.

    Args:
        samples: One version of a samples table.
        config: Model and training.
        train: Days, in order.
        test: The days after them, in order.
        device: Where to compute.

    Yields:
        Day, scores of its candidates, seconds of training.
    """
    config = config.sized(samples.dataset)
    encoder = SampleEncoder(samples.dataset, config.model.max_static)
    with process_group(device):
        trainer = Trainer(samples.dataset, config, device)
        loader = Loader(encoder, config, device)
        unseen = list(train)
        for day in test:
            start = time.monotonic()
            for one in unseen:
                take_day(trainer, loader, samples, encoder, one)
            seconds = time.monotonic() - start
            _, scores = score_day(samples, day, {"model": _scorer(trainer, samples, config)})
            yield day, scores["model"], seconds
            unseen = [day]


def take_day(
    trainer: Trainer, loader: Loader, samples: SamplesTable, encoder: SampleEncoder, day: str
) -> None:
    """Trains on all passes over a day."""
    fit_constants(trainer, samples, encoder, day)
    trainer.begin_day(day)
    with loader.steps(samples, day) as steps:
        for step, following in with_next(steps):
            trainer.step(step, following)
    trainer.losses()


def _scorer(trainer: Trainer, samples: SamplesTable, config: Config) -> Scorer:
    """The model as it would be published now."""
    with tempfile.TemporaryDirectory() as folder:
        save(ShardWriter(Path(folder) / "state", {}), trainer.state(), trainer.group)
        weights = trainer.published(ShardReader(Path(folder) / "state"))
    ranker = build_ranker(samples.dataset, config.model, config.train.seed)
    ranker.load_state_dict(weights)
    return Scorer(samples.dataset, config, ranker, trainer.device)


def frame_of(samples: SamplesTable, days: Sequence[str]) -> tuple[Frame, dict[str, Frame]]:
    """Keys, labels and kinds of the candidates of days, ordered as in `scored_days`, and the item's means."""
    parts = [score_day(samples, day, {}) for day in days]
    known = np.concatenate([is_known(samples, day) for day in days])
    means = {name: joined([scores[name] for _, scores in parts]) for name in parts[0][1]}
    return joined([frame for frame, _ in parts]) | {"is_known": known}, means


def boosted_days(
    samples: SamplesTable,
    boosting: Boosting,
    train: Sequence[str],
    test: Sequence[str],
    seed: int,
    daily: bool,
) -> Iterator[tuple[str, Frame, float]]:
    """As `scored_days`, of LightGBM, which begins anew to learn a day more: daily, or not at all."""
    seen = list(train)
    boosters: dict[str, Any] = {}
    for day in test:
        start = time.monotonic()
        if daily or not boosters:
            rows = rows_of(samples, seen)
            boosters = {task: fit(samples.dataset, rows, task, boosting, seed) for task in LABELS}
        seconds = time.monotonic() - start
        yield day, scores_of(rows_of(samples, [day]), boosters), seconds
        seen.append(day)


def is_known(samples: SamplesTable, day: str) -> Array:
    """Whether the static history holds a candidate's item, bool `[C]`, in the order of `score_day`."""
    parts: list[Array] = []
    for chunk in samples.chunks(day):
        rows = chunk.sort_by([("user_id", "ascending"), ("window_start_ms", "ascending")])
        columns = (rows.column(f"{group}_item_id").to_pylist() for group in ("static", "candidate"))
        parts += [np.isin(candidates, history) for history, candidates in zip(*columns, strict=True)]
    return np.concatenate(parts)


def joined(parts: Sequence[Frame]) -> Frame:
    """Frames or scores of several days, one after the other."""
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
