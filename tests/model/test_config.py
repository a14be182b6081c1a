"""Presets are the paper's, and a config survives its own JSON."""

import dataclasses
import json

import pytest

from model.config.presets import PRESETS, large, medium, preset_named, small, tiny, xl
from model.config.run import Config
from model.embeddings.rules import Keeping
from model.rankers.known import ranker_config
from model.training.schedule import rate_share


@pytest.mark.parametrize(
    ("preset", "num_blocks", "d_model", "dense_lr", "gflops"),
    [
        (small, 3, 512, 3e-4, 5.47),
        (medium, 5, 768, 3e-4, 18.59),
        (large, 15, 768, 1e-4, 55.76),
        (xl, 22, 1024, 1e-4, 137.87),
    ],
)
def test_sizes_are_the_papers(preset, num_blocks, d_model, dense_lr, gflops):
    found = preset()
    assert (found.model.num_blocks, found.model.d_model, found.model.head_dim) == (num_blocks, d_model, 256)
    assert found.model.flops(500) / 1e9 == pytest.approx(gflops, abs=0.006)
    assert (found.train.dense_lr, found.train.precision) == (dense_lr, "bfloat16")
    assert (found.model.architecture, found.model.max_static) == ("mtgr", 1000)


@pytest.mark.parametrize("preset", [small, medium, large, xl])
def test_the_papers_presets_learn_within_a_daily_job_of_eight_steps(preset):
    train = preset().train
    shares = [rate_share(train, step, (step + 1) * train.batch_tokens) for step in range(8)]
    assert shares == sorted(shares)
    assert shares[0] < 0.5
    assert shares[4:] == [1.0] * 4


@pytest.mark.parametrize("name", PRESETS)
def test_config_round_trip(name):
    config = preset_named(name)
    assert config.preset == name
    assert Config.from_dict(json.loads(config.to_json(dataset="foodlog"))) == config


@pytest.mark.parametrize("name", [name for name in PRESETS if name not in ("small", "medium", "large", "xl")])
def test_every_ranker_has_a_size_for_a_gpu(name):
    config = preset_named(f"{name}_512")
    assert (config.preset, config.model.d_model, config.model.head_dim) == (f"{name}_512", 512, 128)
    assert (config.model.max_static, config.train.precision) == (1000, "bfloat16")
    assert config.model.architecture == preset_named(name).model.architecture
    assert config.model.without == preset_named(name).model.without
    with pytest.raises(ValueError, match="unknown preset 'dnn_wide'; known: tiny"):
        preset_named("dnn_wide")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_rows": -1}, "max_rows is -1; use at least 1, or 0 for no limit"),
        ({"ttl_days": -1}, "ttl_days is -1; use at least 1, or 0 for no limit"),
        ({"eviction": "lru"}, "eviction 'lru' without max_rows would never happen; set max_rows"),
        ({"eviction": "fifo", "max_rows": 9}, "eviction is 'fifo'; use one of none, lru, lfu"),
    ],
)
def test_rules_of_dynamic_tables_that_cannot_be(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(tiny().train, **changes)


def test_rules_of_dynamic_tables_reach_them():
    train = dataclasses.replace(tiny().train, ttl_days=7, admission=2, max_rows=500, eviction="lfu")
    assert train.keeping() == Keeping(ttl_days=7, admission=2, max_rows=500, eviction="lfu")
    assert tiny().train.keeping() == Keeping(ttl_days=90)


def test_a_config_from_before_a_field_has_its_default():
    values = json.loads(tiny().to_json())
    for name in ("max_rows", "eviction"):
        del values["train"][name]
    assert Config.from_dict(values) == tiny()


def test_refused_values_are_named():
    with pytest.raises(ValueError, match="unknown preset 'huge'; known: tiny"):
        preset_named("huge")
    with pytest.raises(ValueError, match="d_model 64 is not a multiple of num_heads 3"):
        dataclasses.replace(tiny().model, num_heads=3)
    with pytest.raises(ValueError, match="frozen_share is 2"):
        dataclasses.replace(tiny().train, frozen_share=2)
    with pytest.raises(
        ValueError, match="max_rows is 500, but id_tables 'hashed' have a fixed number of rows"
    ):
        dataclasses.replace(
            tiny(),
            model=dataclasses.replace(tiny().model, id_tables="hashed"),
            train=dataclasses.replace(tiny().train, max_rows=500, eviction="lru"),
        )
    with pytest.raises(ValueError, match="architecture is 'rnn'"):
        ranker_config({"architecture": "rnn", "d_model": 8})
    with pytest.raises(ValueError, match="not a run's config"):
        Config.from_dict({"preset": "tiny", "model": {"architecture": "mtgr", "layers": 3}, "train": {}})
