"""A day's contest: all presets of the day and what they are measured against score the same rows, once.

What a candidate is measured against is a registered version that has not seen the day: the champion, and the
best version of the last days. Beside it stand the other presets of the day, trained on the same days. The
evaluation of each is written beside its run, and again only when something that it was made from has changed:
then as a further record, which says what (`records.py`).
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from model.data.reader import SamplesTable, judged_day
from model.judging.baselines import oracle
from model.judging.evaluation import (
    LABELS,
    Array,
    groups_of,
    metrics_of,
    rates_of,
    score_day,
    segments_of,
    without_nan,
    write_scores,
)
from model.judging.metrics import GroupAuc, group_auc, paired_gain
from model.judging.records import EVALUATION, newest, path_of, records, scores_of, write_record
from model.judging.scoring import Scorer
from model.runs.files import RunError
from model.runs.store import Run, read_config
from spark_jobs.contract.declaration import unreadable
from spark_jobs.contract.features import Dataset
from spark_jobs.contract.phases import reach

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Measure:
    """A registered version that candidates are measured against.

    Attributes:
        version: Its number in the registry.
        preset: Its preset.
        ds: Day it was made for.
        digest: SHA-256 of its config and weights, checked.
        seen_days: Days it was trained on.
        path: Folder with its files.
    """

    version: int
    preset: str
    ds: str
    digest: str
    seen_days: frozenset[str]
    path: Path


@dataclass(frozen=True, kw_only=True)
class Contest:
    """A run of the day and what it is measured against.

    Attributes:
        run: The candidate.
        champion: The champion, or who it was at the time; None when there was none.
        best: The best version of the last days, where it is another than the champion.
        note: What an operator should know of the choice; else empty.
        left_out: A champion that cannot score the day's rows: its `version`, its `digest` and the `reason`.
    """

    run: Run
    champion: Measure | None = None
    best: Measure | None = None
    note: str = ""
    left_out: Mapping[str, Any] | None = None

    @property
    def preset(self) -> str:
        """Of the run."""
        return str(self.run.record["preset"])

    def check(self) -> None:
        """Refuses whoever has seen the day: what it says of the day is memory.

        Raises:
            RunError: The run, or what it is measured against, has seen the day, or the run is damaged.
        """
        self.run.verify()
        ds = self.run.ds
        if ds in self.run.seen_days:
            raise RunError(
                f"{self.run.path} was trained on {ds}; a day is evaluated by a run that has not seen it"
            )
        for measure in (self.champion, self.best):
            if measure is not None and ds in measure.seen_days:
                raise RunError(f"version {measure.version} has seen {ds}: it is no measure of that day")


@dataclass(frozen=True, kw_only=True)
class Judged:
    """An evaluation that stands beside its run.

    Attributes:
        evaluation: Its content.
        path: Its file.
        changed: Whether it was written now.
    """

    evaluation: Mapping[str, Any]
    path: Path
    changed: bool


def evaluate(dataset: Dataset, contests: Sequence[Contest], device: str = "cpu") -> dict[str, Judged]:
    """Evaluates the presets of a day on one version of the samples.

    Args:
        dataset: Of the runs.
        contests: One a preset, all of one day.
        device: Where to score.

    Returns:
        By preset.

    Raises:
        RunError: A run or measure has seen the day, or a run is damaged.
        SamplesUnavailableError: The day has no samples.
        NotPassedError: No gate has passed them, and no operator allowed them.
        ValueError: Rows or scores are broken.
    """
    start = time.monotonic()
    for contest in contests:
        contest.check()
    contests = [_of_able(contest, dataset) for contest in contests]
    (ds,) = {contest.run.ds for contest in contests}
    samples, allowed = judged_day(dataset, ds)
    day_version = samples.written_at(ds)
    wanted = {c.preset: {**_inputs(c, contests, day_version), "samples_allowed": allowed} for c in contests}
    judged = {contest.preset: _standing(contest, wanted[contest.preset]) for contest in contests}
    if any(one is None for one in judged.values()):
        day = _Day(dataset, samples, ds, contests, device)
        reach("evaluate:scored")
        for contest in contests:
            if judged[contest.preset] is None:
                judged[contest.preset] = _write(day, contest, contests, wanted[contest.preset], start)
                reach("evaluate:written")
    return {preset: one for preset, one in judged.items() if one is not None}


def _of_able(contest: Contest, dataset: Dataset) -> Contest:
    """The contest without who cannot score rows as the dataset is declared now, which is said."""
    left_out = None
    able: dict[str, Measure | None] = {"champion": contest.champion, "best": contest.best}
    for name, measure in able.items():
        if measure is None or not (reason := _cannot_score(measure, dataset)):
            continue
        logger.warning(
            "the %s, version %d, cannot score %s: %s; the candidate is judged without it",
            name,
            measure.version,
            contest.run.ds,
            reason,
        )
        able[name] = None
        if name == "champion":
            left_out = {"version": measure.version, "digest": measure.digest, "reason": reason}
    return replace(contest, champion=able["champion"], best=able["best"], left_out=left_out)


def _cannot_score(measure: Measure, dataset: Dataset) -> str:
    try:
        return "; ".join(unreadable(read_config(measure.path)[0], dataset))
    except RunError as error:  # written by another version of this code
        return str(error)


def _inputs(contest: Contest, contests: Sequence[Contest], day_version: int) -> dict[str, Any]:
    return {
        "candidate": contest.run.digest,
        "day_version": day_version,
        "champion": contest.champion and contest.champion.digest,
        "best": contest.best and contest.best.digest,
        "left_out": contest.left_out and contest.left_out["digest"],
        "beside": {other.preset: other.run.digest for other in contests if other is not contest},
    }


def _inputs_in(evaluation: Mapping[str, Any]) -> dict[str, Any]:
    """What an evaluation was made from."""
    parties = ("candidate", "champion", "best", "left_out")
    digests = {who: (evaluation.get(who) or {}).get("digest") for who in parties}
    beside = {preset: other.get("digest") for preset, other in (evaluation.get("beside") or {}).items()}
    made_from = {key: evaluation.get(key) for key in ("day_version", "samples_allowed")}
    return {**digests, **made_from, "beside": beside}


def _standing(contest: Contest, wanted: Mapping[str, Any]) -> Judged | None:
    """The newest evaluation when it was made from what is wanted, and from further presets at most."""
    path = newest(contest.run.path, EVALUATION)
    if not path.exists():
        return None
    try:
        evaluation = json.loads(path.read_text())
    except ValueError as error:
        logger.warning("%s is damaged (%s): evaluated again", path, error)
        return None
    made_from = _inputs_in(evaluation)
    same = all(made_from[key] == wanted[key] for key in wanted if key != "beside")
    if not same or not wanted["beside"].items() <= made_from["beside"].items():
        return None
    return Judged(evaluation=evaluation, path=path, changed=False)


class _Day:
    """The rows of a day, scored by all who take part.

    Args:
        dataset: Of the rows.
        samples: Version of the table.
        ds: The day.
        contests: Of the day.
        device: Where to score.
    """

    def __init__(
        self, dataset: Dataset, samples: SamplesTable, ds: str, contests: Sequence[Contest], device: str
    ) -> None:
        self.dataset, self.samples = dataset, samples
        folders = {contest.run.digest: contest.run.path for contest in contests}
        measures = [m for contest in contests for m in (contest.champion, contest.best) if m is not None]
        folders |= {measure.digest: measure.path for measure in measures}
        scorers = {digest: Scorer.load(path, device, rows_of=dataset) for digest, path in folders.items()}
        self.frame, self.scores = score_day(samples, ds, scorers)
        baselines = [name for name in self.scores if name not in folders]
        true = oracle(dataset, ds, self.frame["impression_id"])
        if true is not None:
            self.scores["oracle"] = true
            baselines.append("oracle")
        self.groups = groups_of(dataset, self.frame)
        self.metrics = {who: metrics_of(dataset, self.frame, scores) for who, scores in self.scores.items()}
        self.baselines = {name: self.metrics[name] for name in baselines}
        self._frozen: dict[tuple[str, str], GroupAuc] = {}

    def paired(self, ours: str, theirs: str) -> dict[str, dict[str, float]]:
        """The gain of one model over another by task; models are named by their digests."""
        return {
            f"{task}_gauc": asdict(
                paired_gain(self._auc(ours, task), self._auc(theirs, task), self.groups["user"])
            )
            for task in LABELS
        }

    def _auc(self, who: str, task: str) -> GroupAuc:
        if (who, task) not in self._frozen:
            label: Array = self.frame[LABELS[task]]
            scores = self.scores[who][f"{task}_frozen"]
            self._frozen[who, task] = group_auc(self.groups["window"], label, scores)
        return self._frozen[who, task]


def _write(
    day: _Day, contest: Contest, contests: Sequence[Contest], wanted: Mapping[str, Any], start: float
) -> Judged:
    run = contest.run
    before = records(run.path, EVALUATION)
    path = path_of(run.path, EVALUATION, len(before) + 1)
    who = {"candidate": run.digest} | ({"champion": contest.champion.digest} if contest.champion else {})
    for name, digest in who.items():
        write_scores(scores_of(path, name), day.frame, day.scores[digest])
    evaluation = {
        "dataset": day.dataset.name,
        "preset": contest.preset,
        "ds": run.ds,
        "samples_version": day.samples.version,
        "samples_allowed": wanted["samples_allowed"],
        "day_version": wanted["day_version"],
        "candidates": len(day.frame["user_id"]),
        "users": len(np.unique(day.frame["user_id"])),
        **rates_of(day.frame),
        "candidate": {"digest": run.digest, **day.metrics[run.digest]},
        "champion": _measured(day, run, contest.champion),
        "best": _measured(day, run, contest.best),
        "left_out": contest.left_out,
        "beside": {
            other.preset: {
                "digest": other.run.digest,
                "seen_days": sorted(other.run.seen_days),
                "paired": day.paired(run.digest, other.run.digest),
                **day.metrics[other.run.digest],
            }
            for other in contests
            if other is not contest
        },
        "note": contest.note,
        "baselines": day.baselines,
        "segments": {name: segments_of(day.dataset, day.frame, day.scores[d]) for name, d in who.items()},
        "seconds": round(time.monotonic() - start, 1),
    }
    if before:
        evaluation |= {"repeat": len(before) + 1, "because": _changes(before[-1], wanted)}
        logger.warning("%s: evaluated again, because of %s", path, "; ".join(evaluation["because"]))
    evaluation = without_nan(evaluation)
    reach("evaluate:before_write")
    write_record(path, evaluation)
    return Judged(evaluation=evaluation, path=path, changed=True)


def _measured(day: _Day, run: Run, measure: Measure | None) -> dict[str, Any] | None:
    if measure is None:
        return None
    return {
        "version": measure.version,
        "preset": measure.preset,
        "ds": measure.ds,
        "digest": measure.digest,
        "days_seen": len(measure.seen_days),
        "paired": day.paired(run.digest, measure.digest),
        **day.metrics[measure.digest],
    }


def _changes(before: Path, wanted: Mapping[str, Any]) -> list[str]:
    """What differs from the record before, in words."""
    try:
        made_from = _inputs_in(json.loads(before.read_text()))
    except ValueError:
        return [f"{before.name} is damaged"]
    return [f"{key}: {made_from[key]} -> {wanted[key]}" for key in wanted if made_from[key] != wanted[key]]
