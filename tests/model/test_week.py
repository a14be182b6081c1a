"""A feature is added, and one removed, in the middle of a week: training, evaluation, registry, serving."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from model import promote, register, rollback
from model.data.synthetic import random_samples
from model.judging.contest import Measure
from model.judging.scoring import CannotScoreError, Scorer
from model.registry import packaging
from model.registry import record as run_record
from model.registry import versions as registry
from model.registry.store import client
from model.runs.store import load_run
from model.training import loop as training
from spark_jobs.contract.features import Dataset
from tests.model.conftest import pass_gate
from tests.model.test_lineage import (
    CPU,
    WEEK,
    build,
    build_anew,
    config_for,
    evaluate,
    with_feature,
    without_feature,
)
from tests.model.test_register_command import upload
from tests.model.test_training import DATASET


def measure_of(version: registry.Version) -> Measure:
    return Measure(
        version=version.version,
        preset=version.preset,
        ds=version.ds,
        digest=version.digest,
        seen_days=frozenset(version.seen_days),
        path=registry.fetch(version),
    )


def retrain(dataset: Dataset, ds: str) -> tuple[dict[str, Any], Mapping[str, Any], registry.Version]:
    """The day's run, its evaluation and its version, as the commands make them."""
    made = training.train(dataset, config_for(dataset), ds, CPU, run_record.log_training)
    run = load_run(dataset.name, "tiny", ds)
    champion = registry.aliased(dataset.name, registry.CHAMPION)
    evaluation = evaluate(dataset, run, measure_of(champion) if champion else None)
    pass_gate(run)
    version, _ = register.register(dataset, run)
    return made, evaluation, version


def serve(version: registry.Version, dataset: Dataset) -> dict[str, Any]:
    """Scores of the version's files for rows as a dataset declares them."""
    return Scorer.load(registry.fetch(version)).score(random_samples(dataset, 20, seed=9))


@pytest.mark.usefixtures("var")
def test_features_come_and_go_in_the_middle_of_a_week(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.setattr(packaging, "log_model", upload)
    build(DATASET, *WEEK[:4])
    _, _, first = retrain(DATASET, WEEK[2])
    with registry.exclusive("foodlog", "test"):
        registry.set_champion("foodlog", first)  # noise has no champion by the rules
    served = serve(first, DATASET)

    wider = with_feature(DATASET)
    build_anew(wider, *WEEK[:6])
    made, evaluation, second = retrain(wider, WEEK[3])
    assert (made["base"], made["trained_days"]) == (None, WEEK[:3])
    assert evaluation["champion"]["version"] == first.version
    assert evaluation["left_out"] is None
    decision = promote.promote(wider, [load_run("foodlog", "tiny", WEEK[3])])["tiny"]
    assert not [why for why in decision["reasons"] if "compared with" in why]  # judged beside the champion
    made, _, third = retrain(wider, WEEK[4])
    assert made["base"] == WEEK[3]
    for name, scores in serve(first, wider).items():  # a request has more than it reads
        assert np.isfinite(scores).all(), name

    narrower = without_feature(DATASET)  # the new one goes again, and weather with it
    build_anew(narrower, *WEEK[:6])
    made, evaluation, fourth = retrain(narrower, WEEK[5])
    assert (made["base"], made["trained_days"]) == (None, WEEK[:5])
    assert evaluation["champion"] is None
    assert evaluation["left_out"]["reason"] == "feature weather is no longer declared"
    decision = promote.promote(narrower, [load_run("foodlog", "tiny", WEEK[5])])["tiny"]
    assert not decision["alarm"], decision["reasons"]
    written = json.loads(Path(decision["decision"]).read_text())
    assert written["left_out"]["digest"] == first.digest
    page = client().get_model_version("mtgr-foodlog", str(fourth.version)).description
    assert f"version {first.version}, cannot score this day (feature weather is no longer declared)" in page
    with pytest.raises(CannotScoreError, match="feature weather is no longer declared"):
        Scorer.load(registry.fetch(first), rows_of=narrower)

    # Any of them can be rolled back to, and scores the rows that it was made for as it ever did.
    for version, dataset in ((third, wider), (second, wider), (first, DATASET)):
        answer = rollback.rollback("foodlog", version.version)
        assert answer["champion"] == version.version
        assert list(answer["seen_days"]) == list(version.seen_days)
        scores = serve(version, dataset)
        assert all(np.isfinite(values).all() for values in scores.values())
    for name, values in served.items():
        np.testing.assert_array_equal(scores[name], values)
