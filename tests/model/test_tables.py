"""Hash buckets and widths are the model's: sizes of presets and of one's own, ids as rows of tables."""

import dataclasses
import json

import numpy as np
import pytest
import torch

from model.config.presets import preset_named, small, tiny
from model.config.run import Config
from model.data.encoder import mix64
from model.embeddings.sizes import SIZES, TableSize, table_sizes
from model.embeddings.tables import rows_of
from model.rankers.protocol import build_ranker
from spark_jobs.contract.declare import category, id_feature
from spark_jobs.contract.features import Owner
from spark_jobs.contract.foodlog import FOODLOG
from spark_jobs.contract.kuairand import KUAIRAND
from tests.expectations.mini import MINI


def pairs(sizes):
    return {name: (size.rows, size.width) for name, size in sizes.items()}


def test_the_presets_have_their_sizes():
    found = pairs(tiny().model.table_sizes(FOODLOG))
    assert found == {
        "user_id": (100_000, 32), "city": (16, 8), "age_band": (8, 8), "budget_band": (8, 8),
        "member": (3, 8), "cell": (10_000, 16), "item_id": (100_000, 32), "merchant_id": (20_000, 32),
        "cuisine": (32, 16), "price_band": (8, 8), "hour": (24, 8), "weekday": (7, 8), "weather": (8, 8),
        "action": (3, 8),
    }  # fmt: skip
    found = pairs(tiny().model.table_sizes(KUAIRAND))
    assert found["user_id"] == (50_000, 32)
    assert found["onehot_feat17"] == (2_000, 8)
    assert (found["item_id"], found["author_id"], found["music_id"]) == (
        (20_000, 32),
        (20_000, 16),
        (20_000, 16),
    )
    assert (found["tag"], found["tab"]) == ((256, 16), (32, 8))
    wide = pairs(small().model.table_sizes(FOODLOG))
    assert (wide["city"], wide["cuisine"], wide["cell"]) == ((16, 32), (32, 32), (10_000, 16))


def test_a_dataset_without_an_entry_has_sizes_by_rule():
    sizes = pairs(table_sizes(MINI, {"item_id": TableSize(rows=70, width=4)}, 0))
    assert (sizes["user_id"], sizes["item_id"], sizes["weather"]) == ((100_000, 32), (70, 4), (4, 8))


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ({"item": TableSize(rows=9, width=4)}, "has no embedding table 'item'; it has user_id"),
        ({"weather": TableSize(rows=9, width=4)}, "'weather' has 9 rows, but its category 4 values"),
    ],
)
def test_sizes_that_do_not_fit_the_declaration_are_refused(chosen, message):
    with pytest.raises(ValueError, match=message):
        table_sizes(MINI, chosen, 0)


@pytest.mark.parametrize(("rows", "width"), [(1, 8), (0, 8), (-5, 8), (8, 0)])
def test_a_table_too_small_is_refused(rows, width):
    with pytest.raises(ValueError, match="use at least 2 and 1"):
        TableSize(rows=rows, width=width)


def test_a_run_keeps_the_sizes_it_was_made_with(monkeypatch):
    config = tiny().sized(FOODLOG)
    again = Config.from_dict(json.loads(config.to_json(dataset="foodlog")))
    assert again == config
    monkeypatch.setitem(SIZES, "foodlog", {})  # another day's choice
    assert pairs(again.model.table_sizes(FOODLOG))["cell"] == (10_000, 16)
    assert again.sized(FOODLOG) == config
    assert pairs(preset_named("tiny").model.table_sizes(FOODLOG))["cell"] == (100_000, 32)


def test_ids_of_64_bits_become_rows_as_without_a_sign():
    ids = np.array([0, 1, -1, 2**63 - 1, -(2**63), 2**31, 2**53 + 1], np.int64)
    for rows in (2, 3, 256, 10_000, 100_000, 2**31 - 1, 2**40 + 3):
        expected = [int(value) % rows for value in mix64(ids)]
        got = rows_of(torch.from_numpy(ids).unsqueeze(0), torch.tensor([[True]]), torch.tensor([[rows]]))
        assert got[0].tolist() == expected
    categories = torch.arange(7).unsqueeze(0)
    assert torch.equal(rows_of(categories, torch.tensor([[False]]), torch.tensor([[7]])), categories)


def test_tables_have_the_config_sizes():
    features = (
        *MINI.features,
        id_feature("shop", Owner.ITEM, "the shop"),
        category("kind", Owner.ITEM, 5, ""),
    )
    dataset = dataclasses.replace(MINI, features=features)
    model = dataclasses.replace(
        tiny().model, tables={"shop": TableSize(rows=11, width=6), "kind": TableSize(rows=5, width=3)}
    )
    dynamic = build_ranker(dataset, model, seed=1).inputs.embeddings.dynamic
    assert [(c.name, c.embedding_dim) for c in dynamic["width_6"].embedding_configs()] == [("shop", 6)]
    model = dataclasses.replace(model, id_tables="hashed")
    embeddings = build_ranker(dataset, model, seed=1).inputs.embeddings
    assert not embeddings.dynamic
    state = {name.split(".")[-2]: tuple(t.shape) for name, t in embeddings.tables.state_dict().items()}
    assert (state["shop"], state["kind"], state["weather"]) == ((11, 6), (5, 3), (4, 8))
