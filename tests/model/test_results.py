"""What `docs/model.md` shows is what the files say, and pooling groups by user and day."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from model import results
from model.config.presets import preset_named
from model.judging.metrics import Array, group_auc
from spark_jobs.contract.datasets import dataset_named
from spark_jobs.contract.kuairand import KUAIRAND

ROOT = Path(__file__).parents[2]


def test_a_model_is_a_preset_with_changed_fields() -> None:
    changed = results.config_of("tiny,train.warmup_steps=50,model.max_static=30")
    assert (changed.train.warmup_steps, changed.model.max_static) == (50, 30)
    assert results.config_of("user_tower") == preset_named("user_tower")
    changed = results.config_of("tiny,model.without=cross+item_statistic,model.shares_items=True").model
    assert (changed.without, changed.shares_items) == (("cross", "item_statistic"), True)
    unchanged = results.config_of("hstu,model.without=,train.cuda_graphs=False")
    assert (unchanged.model.without, unchanged.train.cuda_graphs) == ((), False)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("huge", "unknown preset 'huge'"),
        ("tiny,warmup=5", "'warmup' is no field"),
        ("tiny,train.warmup=5", r"'train.warmup' is no field"),
        ("tiny,train.passes=two", "train.passes: invalid literal"),
        ("tiny,train.frozen_share=2", "frozen_share is 2.0"),
        ("tiny,model.shares_items=1", "'1' is neither True nor False"),
    ],
)
def test_a_model_that_cannot_be_is_refused_by_name(model: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        results.config_of(model)


def test_wrong_usage_is_refused(caplog: pytest.LogCaptureFixture) -> None:
    assert results.main(["--dataset", "kuairand"]) == 2
    assert results.main(["--dataset", "kuairand", "--days", "2022-13-01"]) == 2
    assert results.main(["--dataset", "none", "--days", "2022-05-05"]) == 2


def a_day(window: int, rng: np.random.Generator) -> tuple[dict[str, Array], dict[str, Array]]:
    user = rng.integers(0, 40, 400)
    click = rng.integers(0, 2, 400)
    frame = {
        "user_id": user,
        "window_start_ms": np.full(400, window),
        "request_id": np.arange(400),
        "label_click": click,
        "label_conversion": click * rng.integers(0, 2, 400),
    }
    names = ("ctr_frozen", "ctcvr_frozen", "ctr_live", "ctcvr_live")
    return frame, {name: rng.random(400) for name in names}


def test_days_are_pooled_by_user_and_day() -> None:
    rng = np.random.default_rng(1)
    days = [(f"2022-05-0{n}", *a_day(n, rng)) for n in (5, 6)]
    parts = [(day, frame, {"model": scores}, 1.0) for day, frame, scores in days]
    found = results.measured(KUAIRAND, parts)["model"]
    by_day = [group_auc(f["user_id"], f["label_click"], s["ctr_frozen"]) for _, f, s in days]
    weights = [part.weight.sum() for part in by_day]
    expected = np.average([part.gauc for part in by_day], weights=weights)
    assert found["pooled"]["ctr_gauc"] == pytest.approx(expected)
    assert found["days"]["2022-05-06"]["ctr_gauc"] == pytest.approx(by_day[1].gauc)
    assert found["pooled"]["ctr_gauc_users"] <= 40 < found["pooled"]["ctr_gauc_groups"]


def test_spread_is_over_seeds() -> None:
    seeds = [{"pooled": {"ctr_gauc": value}} for value in (0.61, 0.62, 0.63)]
    assert results.summary(seeds)["ctr_gauc"] == pytest.approx({"mean": 0.62, "stdev": 0.01})
    assert results.summary(seeds[:1])["ctr_gauc"]["stdev"] == 0


def test_documented_figures_are_those_of_the_files() -> None:
    assert results.tables() in (ROOT / "docs" / "model.md").read_text()


@pytest.mark.parametrize("name", results.FILES)
def test_files_say_how_they_were_made(name: str) -> None:
    report = json.loads((results.FOLDER / f"{name}.json").read_text())
    assert report["command"].startswith("python -m model.results --dataset ")
    assert not report["commit"].endswith("+dirty")
    assert report["candidates"] > 10_000
    for model in report["models"].values():
        for metric, ceiling in dataset_named(report["dataset"]).limits.ceilings.items():
            assert model["pooled"][metric]["mean"] <= ceiling  # beyond, it is a leak
            assert all(beaten["pooled"][metric] < model["pooled"][metric]["mean"]
                       for name, beaten in report["baselines"].items() if name != "oracle")  # fmt: skip
