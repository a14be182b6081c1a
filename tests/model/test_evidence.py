"""The evidence: the control, the order of days, trials that go on, a comparison from samples to a page."""

import dataclasses
import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks.evidence import choice, compare, contenders, page, world, worth
from benchmarks.evidence.contenders import CONTENDERS, Contender
from benchmarks.evidence.days import Days
from model.config.presets import PRESETS
from spark_jobs.contract.clock import HISTORY_DS
from spark_jobs.contract.command import CommandError, UsageError
from spark_jobs.lake import verdicts
from tests.model.test_training import DAYS, TABLES, lake  # noqa: F401

THREE = Days(learn=DAYS[:1], choose=DAYS[1:2], test=DAYS[2:])


def frame_of(rows):
    columns = zip(*rows, strict=True)
    names = ("user_id", "window_start_ms", "time_ms", "label_click", "label_conversion")
    return {name: np.array(values) for name, values in zip(names, columns, strict=True)}


def test_the_control_knows_earlier_outcomes_of_the_window_and_no_others():
    rows = [
        # user, window, time, click, conversion: in no order
        (1, 0, 30, 0, 0),  # after one click of two
        (1, 0, 10, 1, 0),  # the first, with its neighbour
        (1, 0, 10, 0, 0),
        (1, 5, 40, 1, 1),  # another window
        (2, 0, 50, 0, 0),  # another user
        (1, 0, 60, 1, 1),  # after one click of three
    ]
    scores = worth.control(frame_of(rows))
    expected = [1.1 / 3, 0.1, 0.1, 0.1, 0.1, 1.1 / 4]
    np.testing.assert_allclose(scores["ctr_live"], expected, rtol=1e-6)
    assert len(set(scores["ctr_frozen"].tolist())) == len(set(scores["ctcvr_frozen"].tolist())) == 1


def test_days_are_in_order_and_nobody_is_tested_on_what_was_chosen_by():
    with pytest.raises(UsageError, match="not in this order"):
        Days(learn=DAYS[:2], choose=DAYS[1:2], test=DAYS[2:])
    with pytest.raises(UsageError, match="not in this order"):
        Days(learn=DAYS[:1], choose=DAYS[1:2], test=())


def test_every_contender_has_a_config_and_an_ablation_differs_by_what_it_leaves_out():
    assert {one.preset for one in CONTENDERS.values() if isinstance(one, Contender)} <= set(PRESETS)
    for name, one in CONTENDERS.items():
        assert (one.tuned_as or name) in CONTENDERS
        assert set(one.as_it_is()) == set(one.space())
        if isinstance(one, Contender):
            chosen = {"dense_lr": 2e-3, "batch_tokens": 1000, "passes": 1}
            made = one.config(chosen, seed=7)
            assert (made.train.dense_lr, made.train.seed) == (2e-3, 7)
            base = CONTENDERS[one.tuned_as or name].config(chosen, seed=7)
            differing = {
                field.name
                for part in ("model", "train")
                for field in dataclasses.fields(getattr(made, part))
                if getattr(getattr(made, part), field.name) != getattr(getattr(base, part), field.name)
            }
            left_out = set(one.model) | set(one.train) if one.tuned_as else set()
            assert differing - {"shares_items"} == left_out - {"shares_items"}


class Study:
    """What `choose` needs of Optuna: settings in a fixed order, the queued ones first."""

    def __init__(self):
        self.queue, self.told = [], []

    def enqueue_trial(self, settings):
        self.queue.append(settings)

    def ask(self, space):
        drawn = {key: values[len(self.told) % len(values)] for key, values in space.items()}
        return SimpleNamespace(params=self.queue.pop() if self.queue else drawn)

    def tell(self, trial, value):
        self.told.append(value)


def test_trials_are_kept_and_a_choice_goes_on_where_it_was_cut_off(tmp_path, monkeypatch):
    optuna = SimpleNamespace(
        logging=SimpleNamespace(set_verbosity=lambda level: None, WARNING=30),
        distributions=SimpleNamespace(
            FloatDistribution=lambda *ends, log: ends, CategoricalDistribution=lambda values: values
        ),
        samplers=SimpleNamespace(TPESampler=lambda **options: None),
        create_study=lambda **options: Study(),
    )
    monkeypatch.setitem(sys.modules, "optuna", optuna)
    tried = []

    def value(contender, settings, samples, days):
        tried.append(settings)
        if len(tried) == 3:
            raise KeyboardInterrupt
        return {1000: 0.7, 2000: 0.9, 4000: 0.8}[settings["batch_tokens"]]

    monkeypatch.setattr(choice, "worth", value)
    arguments = ("tiny", CONTENDERS["tiny"], None, THREE, 4, tmp_path)
    with pytest.raises(KeyboardInterrupt):
        choice.choose(*arguments)
    assert tried[0] == CONTENDERS["tiny"].as_it_is()
    best = choice.choose(*arguments)
    assert len(tried) == 5  # the third one again, no other
    assert best["batch_tokens"] == 2000
    kept = json.loads((tmp_path / "tiny.json").read_text())
    assert [one["gauc"] for one in kept] == [0.8, 0.9, 0.8, 0.7]
    for change, is_other in ((1 + 1e-15, False), (1 + 1e-6, True)):  # of another machine; of other trials
        settings = {**kept[0]["settings"], "dense_lr": kept[0]["settings"]["dense_lr"] * change}
        (tmp_path / "tiny.json").write_text(json.dumps([{**kept[0], "settings": settings}, *kept[1:]]))
        if is_other:
            with pytest.raises(ValueError, match="holds other trials than these"):
                choice.choose(*arguments)
        else:
            assert choice.choose(*arguments) == best


@pytest.mark.usefixtures("lake")
def test_a_comparison_from_samples_to_a_page(tmp_path, monkeypatch):
    def small(preset):
        fields = {"d_model": 16, "token_hidden": 16, "head_hidden": 8, "tables": TABLES}
        return Contender(family="MTGR" if preset == "tiny" else "DLRM", preset=preset, model=fields)

    made = {"tiny": small("tiny"), "user_tower": small("user_tower"), "dnn": small("dnn")}
    made["no_cross"] = dataclasses.replace(
        small("tiny"),
        family="ablation",
        model={**small("tiny").model, "without": ("cross",)},
        tuned_as="tiny",
    )
    for module in (contenders, compare):
        monkeypatch.setattr(module, "CONTENDERS", made)
    chosen = []

    def choose(name, *rest):
        chosen.append(name)
        return {"dense_lr": 1e-3, "batch_tokens": 400, "passes": 1}

    monkeypatch.setattr(compare, "choose", choose)
    monkeypatch.setattr(compare, "version", lambda name: "0")
    out = tmp_path / "evidence_foodlog.json"
    days = ["--learn", DAYS[0], DAYS[0], "--choose", DAYS[1], DAYS[1], "--test", DAYS[2], DAYS[2]]
    given = ["--dataset", "foodlog", *days, "--work", str(tmp_path / "work"), "--out", str(out), "--seeds"]
    assert compare.main([*given, "1", "--models", "user_tower"]) == 0
    assert compare.main([*given, "1", "2", "--models", "tiny", "no_cross"]) == 0
    assert chosen == ["user_tower", "tiny", "tiny"]
    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "work").rglob("*.npz")}
    report = json.loads(out.read_text())
    assert compare.main([*given, "1", "2", "--models", "tiny"]) == 0
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "work").rglob("*.npz")} == written
    assert json.loads(out.read_text())["models"] == report["models"]
    assert set(report["models"]) == {"tiny", "user_tower", "no_cross"}
    assert set(report["baselines"]) >= {"item_mean", "earlier labels alone"}
    assert report["baselines"]["earlier labels alone"]["ctr_gauc"] == 0.5
    assert list(report["models"]["tiny"]["seeds"]) == ["1", "2"]
    gain = report["models"]["tiny"]["minus"]["user_tower"]["ctcvr"]
    assert gain["low"] <= gain["gain"] <= gain["high"]
    assert report["summary"]["foodlog_mtgr_minus_best_dlrm"] == pytest.approx(gain["gain"], abs=1e-5)

    monkeypatch.setattr(page, "RESULTS", tmp_path)
    table = page.tables()
    assert "| `tiny` |" in table
    assert "| earlier labels alone | 0.5000 / 0.5000 |" in table
    assert ">no_cross<" in page.page()
    assert compare.main(["--dataset", "foodlog"]) == 2
    assert compare.main([*given, "1", "--models", "huge"]) == 2


@pytest.fixture
def allowed(tmp_path, monkeypatch):
    """Days that were allowed, of tables that are not there."""
    monkeypatch.setenv("MTGR_VAR", str(tmp_path))
    monkeypatch.delenv("MTGR_LAKE", raising=False)
    days = set()

    def allow(dataset, suite, some, reason):
        path = verdicts.path_of(dataset, suite, some[0])
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}")
        days.update(some)

    monkeypatch.setattr(verdicts, "allow", allow)
    return days


def test_a_log_is_taken_in_after_what_was_before_it(allowed, monkeypatch):
    asked = []

    def run(arguments):
        asked.append(arguments[2:])
        if "--history" in arguments:
            verdicts.allow("kuairand", "events", [HISTORY_DS], "before the log")
        return 0

    monkeypatch.setattr(world.ingest, "main", run)
    monkeypatch.setattr(world.build_samples, "main", run)
    days = ["--from", DAYS[0], "--to", DAYS[0]]
    assert world.main(["--dataset", "kuairand", *days]) == 0
    assert asked == [["--history"], ["--ds", DAYS[0]], ["--ds", DAYS[0]]]
    assert world.main(["--dataset", "kuairand", *days]) == 0
    assert len(asked) == 3


def test_the_world_is_built_a_day_once_and_stops_where_a_command_fails(allowed):
    ran = []

    def run(argv):
        ran.append(argv)
        return 1 if argv[-1] == DAYS[1] else 0

    world.step(run, "foodlog", "events", DAYS[0])
    world.step(run, "foodlog", "events", DAYS[0])
    assert ran == [["--dataset", "foodlog", "--ds", DAYS[0]]]
    with pytest.raises(CommandError, match=f"events of {DAYS[1]}: exit code 1"):
        world.step(run, "foodlog", "events", DAYS[1])
    assert allowed == {DAYS[0]}


def test_the_document_and_the_page_are_of_the_result_files():
    for document, tables in ((page.DOCUMENT, page.tables()), (page.JOURNEY, page.journey_tables())):
        assert page.with_tables(document.read_text(), tables) == document.read_text()
    assert page.PAGE.read_text() == page.page()
    with pytest.raises(CommandError, match="the document has no lines <!-- tables -->"):
        page.with_tables("words", "tables")
