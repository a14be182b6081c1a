"""What a run remembers: its declaration, the commits that trained it, its settings; that it is on disk."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from deltalake import write_deltalake

from model.config.run import Config
from model.data.reader import SamplesTable
from model.data.synthetic import random_samples
from model.judging.contest import Contest, Measure
from model.judging.contest import evaluate as evaluate_all
from model.judging.scoring import Scorer
from model.runs import files
from model.runs.files import RunError
from model.runs.store import CHECKPOINT, WEIGHTS, Run, load_run
from model.training import loop as training
from model.training import progress
from spark_jobs.contract import locations
from spark_jobs.contract.declare import number
from spark_jobs.contract.features import Dataset, Owner
from spark_jobs.lake import verdicts
from tests.model.test_training import DATASET, config, unlogged

CPU = torch.device("cpu")
WEEK = [f"2026-03-0{day}" for day in range(1, 8)]


def with_feature(dataset: Dataset) -> Dataset:
    """The dataset with one more feature of its items, between the others."""
    place = [feature.name for feature in dataset.features].index("price")
    new = number("spiciness", Owner.ITEM, 0, 5, "how hot the dish is")
    return dataclasses.replace(dataset, features=(*dataset.features[:place], new, *dataset.features[place:]))


def without_feature(dataset: Dataset, name: str = "weather") -> Dataset:
    return dataclasses.replace(dataset, features=tuple(f for f in dataset.features if f.name != name))


def changed(dataset: Dataset, name: str, **fields: Any) -> Dataset:
    features = (dataclasses.replace(f, **fields) if f.name == name else f for f in dataset.features)
    return dataclasses.replace(dataset, features=tuple(features))


def build(dataset: Dataset, *days: str) -> None:
    """Builds the samples of days, in a table of the dataset's columns; an operator lets them be used."""
    uri = locations.table(dataset.name, "samples")
    for ds in days:
        table = random_samples(dataset, 40, seed=WEEK.index(ds), ds=ds)
        write_deltalake(uri, table, partition_by=["ds"], mode="overwrite", predicate=f"ds = '{ds}'")
    verdicts.allow(dataset.name, "samples", WEEK, "a test")


def build_anew(dataset: Dataset, *days: str) -> None:
    """As after a change of the declaration: the table is moved away and built again."""
    uri = Path(locations.table(dataset.name, "samples"))
    uri.rename(uri.with_name(f"samples-{len(list(uri.parent.iterdir()))}"))
    build(dataset, *days)


def config_for(dataset: Dataset, **changes: Any) -> Config:
    """The small config, with the tables that the dataset has."""
    base: Config = config(**changes)
    declared = {feature.table for feature in dataset.features}
    tables = {name: size for name, size in base.model.tables.items() if name in declared}
    return dataclasses.replace(base, model=dataclasses.replace(base.model, tables=tables))


def train(dataset: Dataset, ds: str, **changes: Any) -> dict[str, Any]:
    return training.train(dataset, config_for(dataset, **changes), ds, CPU, unlogged)


def champion_of(run: Run) -> Measure:
    return Measure(
        version=1,
        preset="tiny",
        ds=run.ds,
        digest=run.digest,
        seen_days=frozenset(run.seen_days),
        path=run.path,
    )


def evaluate(dataset: Dataset, run: Run, champion: Measure | None) -> Mapping[str, Any]:
    """The run's evaluation beside a champion."""
    return evaluate_all(dataset, [Contest(run=run, champion=champion)])["tiny"].evaluation


@pytest.fixture(autouse=True)
def lake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MTGR_VAR", str(tmp_path))
    for name in ("MTGR_LAKE", "MTGR_RUNS", "RANK"):
        monkeypatch.delenv(name, raising=False)
    build(DATASET, *WEEK[:3])
    return tmp_path


def test_a_new_feature_begins_a_lineage_and_the_champion_goes_on_scoring(
    caplog: pytest.LogCaptureFixture,
) -> None:
    train(DATASET, WEEK[2])
    champion = load_run(DATASET.name, "tiny", WEEK[2])
    expected = Scorer.load(champion.path).score(random_samples(DATASET, 40, seed=3, ds=WEEK[3]))
    wider = with_feature(DATASET)
    build_anew(wider, *WEEK[:4])
    made = train(wider, WEEK[3])
    assert (made["base"], made["trained_days"]) == (None, WEEK[:3])
    assert "(feature spiciness is new): a new lineage begins from scratch" in caplog.text
    written = evaluate(wider, load_run(DATASET.name, "tiny", WEEK[3]), champion_of(champion))
    assert written["champion"]["digest"] == champion.digest
    assert 0 < written["champion"]["ctr_auc"] < 1
    # It reads of a row what it read before: columns that it does not know are left out.
    row = random_samples(DATASET, 40, seed=3, ds=WEEK[3])
    extra = row.append_column("candidate_spiciness", row["candidate_price"])
    for name, scores in Scorer.load(champion.path).score(extra).items():
        np.testing.assert_array_equal(scores, expected[name])
    # The day after, the new lineage goes on as if nothing had been.
    caplog.clear()
    build(wider, WEEK[4])
    made = train(wider, WEEK[4])
    assert (made["base"], made["trained_days"]) == (WEEK[3], [WEEK[3]])
    assert "does not continue" not in caplog.text


def test_a_lost_feature_begins_a_lineage_and_the_champion_says_what_it_lacks(
    caplog: pytest.LogCaptureFixture,
) -> None:
    train(DATASET, WEEK[2])
    champion = load_run(DATASET.name, "tiny", WEEK[2])
    narrower = without_feature(DATASET)
    # The table keeps the column; days built since leave it null.
    build(DATASET, WEEK[3])
    rows = random_samples(narrower, 40, seed=3, ds=WEEK[3])
    uri = locations.table(DATASET.name, "samples")
    write_deltalake(uri, rows, mode="overwrite", predicate=f"ds = '{WEEK[3]}'", schema_mode="merge")
    verdicts.allow(DATASET.name, "samples", WEEK, "a test")
    made = train(narrower, WEEK[3])
    assert (made["base"], made["trained_days"]) == (None, WEEK[:3])
    assert "(feature weather is no longer declared): a new lineage begins from scratch" in caplog.text
    written = evaluate(narrower, load_run(DATASET.name, "tiny", WEEK[3]), champion_of(champion))
    reason = "feature weather is no longer declared"
    assert written["champion"] is None
    assert written["left_out"] == {"version": 1, "digest": champion.digest, "reason": reason}
    assert (
        f"the champion, version 1, cannot score {WEEK[3]}: {reason}; the candidate is judged without it"
        in caplog.text
    )
    # Its own rows it scores as ever, and so does what serves it.
    assert np.isfinite(Scorer.load(champion.path).score(random_samples(DATASET, 5))["ctr_live"]).all()


def test_a_description_and_a_wider_range_change_nothing(caplog: pytest.LogCaptureFixture) -> None:
    first = train(DATASET, WEEK[2])
    champion = load_run(DATASET.name, "tiny", WEEK[2])
    other = changed(changed(DATASET, "price", high=50_000), "weather", description="the weather there")
    again = train(other, WEEK[2])
    assert (again["changed"], again["digest"]) == (False, first["digest"])
    table = random_samples(other, 40, seed=3, ds=WEEK[3])
    dear = pa.array([[20_000.0] * len(row) for row in table["candidate_price"].to_pylist()],
                    table["candidate_price"].type)  # fmt: skip
    table = table.set_column(table.column_names.index("candidate_price"), "candidate_price", dear)
    uri = locations.table(DATASET.name, "samples")
    write_deltalake(uri, table, partition_by=["ds"], mode="overwrite", predicate=f"ds = '{WEEK[3]}'")
    verdicts.allow(DATASET.name, "samples", WEEK, "a test")
    made = train(other, WEEK[3])
    assert (made["base"], made["trained_days"]) == (WEEK[2], [WEEK[2]])
    written = evaluate(other, load_run(DATASET.name, "tiny", WEEK[3]), champion_of(champion))
    assert 0 < written["champion"]["ctr_auc"] < 1  # prices of today are no reason not to judge it
    assert "does not continue" not in caplog.text


def test_a_finished_day_is_made_again_when_its_declaration_has_changed(
    caplog: pytest.LogCaptureFixture,
) -> None:
    first = train(DATASET, WEEK[1])
    wider = with_feature(DATASET)
    build_anew(wider, *WEEK[:3])
    again = train(wider, WEEK[1])
    assert again["changed"]
    assert again["digest"] != first["digest"]
    assert f"{WEEK[1]} is made again, the declaration has changed: feature spiciness is new" in caplog.text
    assert load_run(DATASET.name, "tiny", WEEK[1]).config()[0].features == wider.features


def test_a_run_of_earlier_code_is_not_continued_and_a_damaged_one_not_passed_over(
    caplog: pytest.LogCaptureFixture,
) -> None:
    train(DATASET, WEEK[1])
    run = load_run(DATASET.name, "tiny", WEEK[1])
    values = json.loads((run.path / "config.json").read_text())
    (run.path / "config.json").write_text("{}")
    with pytest.raises(RunError, match="is damaged"):
        train(DATASET, WEEK[2])
    del values["declaration"]
    (run.path / "config.json").write_text(json.dumps(values))
    record = {**run.record, "digest": files_digest(run.path)}
    (run.path / "train.json").write_text(json.dumps(record))
    assert train(DATASET, WEEK[2])["base"] is None
    assert "keeps no declaration, as runs of earlier versions" in caplog.text


def files_digest(path: Path) -> str:
    from model.runs.store import digest_of

    return digest_of(path)


def test_a_finished_run_of_other_settings_is_not_taken_for_the_one_asked_for() -> None:
    first = train(DATASET, WEEK[1])
    with pytest.raises(RunError, match=r"finished and of other settings.*\(train.dense_lr 0.001 -> 0.002\)"):
        train(DATASET, WEEK[1], dense_lr=0.002)
    assert train(DATASET, WEEK[1])["digest"] == first["digest"]


def test_what_trained_is_summed_over_resumes(monkeypatch: pytest.MonkeyPatch, lake: Path) -> None:
    whole = train(DATASET, WEEK[2], batch_tokens=200)
    expected = load_run(DATASET.name, "tiny", WEEK[2]).record
    monkeypatch.setenv("MTGR_RUNS", str(lake / "killed"))
    commits = iter(("a" * 40, "b" * 40, "b" * 40))
    monkeypatch.setattr(progress, "git_sha", lambda *_: next(commits))
    clock = iter(range(0, 10_000, 100))
    monkeypatch.setattr(training, "time", SimpleNamespace(monotonic=lambda: float(next(clock))))

    class KilledError(Exception):
        pass

    for allowed in (1, 2):
        reached: list[str] = []

        def die(phase: str, reached: list[str] = reached, allowed: int = allowed) -> None:
            reached.append(phase)
            if reached.count("train:checkpoint_saved") == allowed:
                raise KilledError

        with monkeypatch.context() as patch:
            patch.setattr(training, "reach", die)
            with pytest.raises(KilledError):
                train(DATASET, WEEK[2], batch_tokens=200)
    made = train(DATASET, WEEK[2], batch_tokens=200)
    record = load_run(DATASET.name, "tiny", WEEK[2]).record
    assert made["digest"] == whole["digest"]
    assert record["tokens"] == expected["tokens"]
    assert record["seconds"] == 100 * (record["num_steps"] // 3 + 1)  # one tick each, and one to the end
    assert record["git_sha"] == f"{'a' * 40},{'b' * 40}"
    (link,) = record["lineage"]
    assert (link["git_sha"], link["days"]) == (record["git_sha"], dict.fromkeys(WEEK[:2], 2))
    assert {"device": "cpu", "world_size": 1, "torch": torch.__version__}.items() <= link.items()


def test_a_lineage_has_a_link_for_each_training(monkeypatch: pytest.MonkeyPatch) -> None:
    for number_, ds in enumerate(WEEK[1:3]):
        monkeypatch.setattr(progress, "git_sha", lambda *_, sha=str(number_) * 40: sha)
        train(DATASET, ds)
    first, second = (load_run(DATASET.name, "tiny", ds) for ds in WEEK[1:3])
    one, two = second.record["lineage"]
    assert one == {**first.record["lineage"][0], "digest": first.digest}
    assert (one["git_sha"], two["git_sha"]) == ("0" * 40, "1" * 40)
    assert (one["days"], two["days"]) == ({WEEK[0]: 2}, {WEEK[1]: 2})


def test_days_that_were_deleted_are_not_forgotten(caplog: pytest.LogCaptureFixture) -> None:
    from deltalake import DeltaTable

    caplog.set_level(logging.INFO)
    train(DATASET, WEEK[2])
    DeltaTable(locations.table(DATASET.name, "samples")).delete(f"ds = '{WEEK[0]}'")
    build(DATASET, WEEK[3])
    made = train(DATASET, WEEK[3])
    assert (made["base"], made["trained_days"]) == (WEEK[2], [WEEK[2]])
    assert list(load_run(DATASET.name, "tiny", WEEK[3]).seen_days) == WEEK[:3]
    assert f"has seen {WEEK[0]}, which the samples table has no more" in caplog.text


def test_a_run_is_on_the_disk_before_it_has_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every file of it was synced before its rename, and the folder before its own."""
    synced: list[str] = []
    fsync, replace = os.fsync, os.replace

    def noted(descriptor: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        fsync(descriptor)

    def renamed(source: Path, target: Path) -> None:
        assert str(source) in synced, f"{source} becomes {target} and may be empty after a power cut"
        replace(source, target)
        synced.append(f"renamed {target}")

    monkeypatch.setattr(files.os, "fsync", noted)
    monkeypatch.setattr(files.os, "replace", renamed)
    train(DATASET, WEEK[1])
    path = load_run(DATASET.name, "tiny", WEEK[1]).path
    published = synced.index(f"renamed {path}")
    folder = max(place for place, name in enumerate(synced[:published]) if name.endswith(".partial"))
    for name in (WEIGHTS, CHECKPOINT, "config.json", "train.json"):
        assert synced.index(f"renamed {path.with_name(f'.{path.name}.partial')}/{name}") < folder
    assert str(path.parent) in synced[published:]


def test_numbers_are_standardised_on_a_sample_of_the_whole_day(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not on its first rows, the lowest user ids; and whatever the order of its files."""
    monkeypatch.setattr("model.data.reader.CHUNK_TOKENS", 640)
    rows = random_samples(DATASET, 600, seed=1, ds=WEEK[0])
    uri = locations.table(DATASET.name, "samples")
    samples = []
    for order in (np.arange(600), np.random.default_rng(0).permutation(600)):
        table = rows.take(pa.array(order))
        write_deltalake(uri, table.slice(0, 250), mode="overwrite", predicate=f"ds = '{WEEK[0]}'")
        write_deltalake(uri, table.slice(250), mode="append")
        samples.append(SamplesTable(DATASET).sample(WEEK[0], 100, rows.column_names))
    assert samples[0].combine_chunks().equals(samples[1].combine_chunks())
    users = samples[0]["user_id"].to_numpy()
    assert len(set(users.tolist())) == 100
    assert 250 < users.mean() < 350  # of users 0 to 599; the first rows would give 50
    whole = SamplesTable(DATASET).sample(WEEK[0], 1000, ["user_id", "window_start_ms"])
    assert sorted(whole["user_id"].to_pylist()) == list(range(600))
