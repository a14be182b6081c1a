"""What is scored of journey, the same candidates for every model, and what scores are worth.

By default weeks 49 to 52 of the retailer's year. The frame (`frame.npz`) holds keys and labels of all
candidates once; every model's scores lie beside it, row by row.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from model.judging.evaluation import metrics_of
from model.judging.metrics import Gain, group_auc, group_ids, paired_gain
from spark_jobs.contract.clock import days_between
from spark_jobs.contract.command import CommandError
from spark_jobs.contract.journey import JOURNEY

Array = npt.NDArray[Any]
Frame = dict[str, Array]
TEST_DAYS = days_between("2017-11-27", "2017-12-24")
_KEYS = ("user_id", "window_start_ms", "request_id", "item_id", "label_click", "label_conversion")


def measured(frame: Frame, scores: Frame) -> dict[str, float]:
    """All metrics of a model's scores, with the interval of conversion GAUC by trip over households."""
    user = group_ids(frame["user_id"])
    trips = by_trip(frame, scores["ctcvr_live"])
    low, high = trips.interval(user)
    return {
        **metrics_of(JOURNEY, frame, scores),
        "ctcvr_gauc_request_low": low,
        "ctcvr_gauc_request_high": high,
    }


def by_trip(frame: Frame, score: Array, label: str = "label_conversion") -> Any:
    """AUC of each trip that has both classes."""
    return group_auc(group_ids(frame["user_id"], frame["request_id"]), frame[label], score)


def gain(frame: Frame, ours: Array, theirs: Array) -> Gain:
    """How much higher conversion GAUC by trip is, with a paired bootstrap over households."""
    return paired_gain(by_trip(frame, ours), by_trip(frame, theirs), group_ids(frame["user_id"]))


def save_frame(out: Path, frame: Frame) -> None:
    """Writes the frame, or checks that the one which is there is of the same candidates.

    Raises:
        CommandError: It is of others.
    """
    out.mkdir(parents=True, exist_ok=True)
    request, item = np.array([key.split("-") for key in frame["impression_id"]], np.int64).T
    keys = {**frame, "request_id": request, "item_id": item}
    path = out / "frame.npz"
    if not path.exists():
        part = out / f".{os.getpid()}.npz"
        np.savez_compressed(part, **{name: keys[name] for name in _KEYS})  # type: ignore[arg-type]
        part.replace(path)
        return
    with np.load(path) as held:
        if any(not np.array_equal(held[name], keys[name]) for name in _KEYS):
            raise CommandError(f"{path} is of other candidates: remove {out}, or name another folder")


def load_frame(out: Path) -> Frame:
    """The frame below a folder of results."""
    with np.load(out / "frame.npz") as held:
        return {name: held[name] for name in held.files}
