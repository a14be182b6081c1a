"""Where MTGR starts, and what each ablation leaves out: nothing else, and that wholly."""

import dataclasses
import json

import pytest
import torch

from model.config.presets import tiny
from model.config.run import Config
from model.data.encoder import SampleEncoder, number_names
from model.data.synthetic import random_batch, random_samples
from model.judging.scoring import Scorer
from model.rankers.inputs import runs_of
from model.rankers.mtgr import seen
from model.rankers.protocol import build_ranker
from spark_jobs.contract.features import Group, Owner
from spark_jobs.contract.foodlog import FOODLOG

BASE = dataclasses.replace(tiny().model, ops_backend="reference")


def ranker_of(**changes):
    ranker = build_ranker(FOODLOG, dataclasses.replace(BASE, **changes), seed=1).eval()
    ranker.inputs.scaler.fit(random_batch(FOODLOG, 30, seed=9))
    return ranker


@torch.inference_mode()
def scores(ranker, rows):
    return ranker(SampleEncoder(FOODLOG).encode(rows))


def row_with(**least):
    """A row with at least so many tokens of each sequence, and more real-time events than one sees."""
    rows = random_samples(FOODLOG, 200, seed=8).to_pylist()
    return next(
        row
        for row in rows
        if all(
            len(row[f"{group}_{FOODLOG.in_group(Group(group))[0].name}"]) >= n for group, n in least.items()
        )
        and max(row["candidate_visible"]) < len(row["realtime_time_ms"])
    )


@torch.inference_mode()
def first_block(**changes):
    """Scores alpha q k of the first block, and by how much it moves a token, at the start."""
    ranker = ranker_of(**changes)
    batch = random_batch(FOODLOG, 20, seed=2)
    by_group = ranker.inputs(batch)
    tokens = torch.cat([by_group[group].flatten(0, -2) for group in Group])
    where = dataclasses.replace(batch.layout(), group=torch.zeros(len(tokens), dtype=torch.int32))
    block = ranker.blocks[0]
    _, normed = block.norm_in(tokens, None, None, where.group)
    q, k = block.uvqk(normed).view(-1, 4, block.num_heads, block.head_dim)[:, 2:].unbind(1)
    attention = block.alpha * torch.einsum("ind,jnd->nij", q, k)
    _, added = block(tokens, None, None, where, None)
    return attention, added.std()


def test_attention_starts_about_as_a_mean_and_a_block_as_a_small_step():
    attention, moved = first_block()
    assert attention.mean() == pytest.approx(1, abs=0.25)
    assert (attention > 0).float().mean() > 0.95
    unbiased, moved_before = first_block(score_start=0.0, block_start=1.0)
    assert unbiased.mean() == pytest.approx(0, abs=0.25)
    assert moved < 0.15 * moved_before


def test_without_owners_their_features_do_not_matter():
    row = row_with(candidate=2)
    cross = [f.name for f in FOODLOG.of(Owner.CROSS)]
    statistics = [f.name for f in FOODLOG.of(Owner.ITEM_STATISTIC)]
    other = dict(row)
    for name in cross:
        other[f"candidate_{name}"] = [min(0.5 + value, 1.0) for value in row[f"candidate_{name}"]]
    without = ranker_of(without=("cross",))
    assert torch.equal(scores(without, [row]), scores(without, [other]))
    for whole in (ranker_of(), ranker_of(without=("item_statistic",))):
        assert not torch.equal(scores(whole, [row]), scores(whole, [other]))
    other = row | {f"candidate_{name}": [0.5] * len(row["candidate_item_id"]) for name in statistics}
    without = ranker_of(without=("item_statistic",))
    assert torch.equal(scores(without, [row]), scores(without, [other]))
    assert not torch.equal(scores(ranker_of(), [row]), scores(ranker_of(), [other]))


def test_without_static_behaviours_they_do_not_matter():
    row = row_with(static=3, candidate=1)
    other = row | {"static_item_id": [one + 1000 for one in row["static_item_id"]]}
    encoder = SampleEncoder(FOODLOG, max_static=0)
    ranker = ranker_of(max_static=0)
    with torch.inference_mode():
        assert encoder.encode([row]).lengths[Group.STATIC].tolist() == [0]
        assert torch.equal(ranker(encoder.encode([row])), ranker(encoder.encode([other])))
        assert not torch.equal(scores(ranker, [row]), scores(ranker, [other]))


def test_a_model_that_learned_no_real_time_state_scores_without_it():
    row = row_with(realtime=2, candidate=1)
    row["candidate_visible"] = [len(row["realtime_item_id"])] * len(row["candidate_visible"])
    for share, is_live in ((1.0, False), (0.3, True)):
        config = dataclasses.replace(tiny(), train=dataclasses.replace(tiny().train, frozen_share=share))
        got = Scorer(FOODLOG, config, ranker_of()).score([row])
        assert (got["ctr_live"] != got["ctr_frozen"]).any() == is_live


def test_the_full_mask_knows_what_comes_later_and_the_causal_one_less():
    row = row_with(static=2, realtime=2, candidate=2)
    place = row["candidate_visible"].index(min(row["candidate_visible"]))
    later = row | {"realtime_item_id": [*row["realtime_item_id"][:-1], row["realtime_item_id"][-1] + 1000]}
    moved = {
        mask: not torch.equal(scores(ranker_of(mask=mask), [row])[:, place],
                              scores(ranker_of(mask=mask), [later])[:, place])
        for mask in ("dynamic", "causal", "full")
    }  # fmt: skip
    assert moved == {"dynamic": False, "causal": False, "full": True}
    batch = random_batch(FOODLOG, 5, seed=2)
    where = batch.layout()
    starts = where.offsets[:-1].repeat_interleave(where.offsets.diff())
    places = torch.arange(where.num_tokens) - starts
    causal = seen(where, "causal", "group").visible_end
    assert (causal == torch.minimum(places, where.visible_end)).all()
    assert (causal < where.visible_end).any()
    full = seen(where, "full", "group").visible_end
    assert (full == batch.tokens_B().repeat_interleave(where.offsets.diff())).all()


def test_one_layer_norm_has_one_scale_and_shift():
    ranker = ranker_of(norm="layer")
    assert [len(block.norm_in.weight_GD) for block in ranker.blocks] == [1, 1]
    assert [len(block.norm_out.weight_GD) for block in ranker_of().blocks] == [4, 4]
    rows = random_samples(FOODLOG, 3, seed=1)
    assert torch.equal(scores(ranker, rows), scores(ranker_of(), rows))  # until they have learned


def test_shared_items_see_items_of_both_groups_alike():
    inputs = ranker_of(shares_items=True).inputs
    names = {group: [f.name for f in inputs.embeddings.features[group]] for group in Group}
    width = inputs.embeddings.sizes
    expected = [f.name for f in FOODLOG.of(Owner.ITEM) if f.name != "price"]
    for group in (Group.STATIC, Group.REALTIME, Group.CANDIDATE):
        columns = [c for run in inputs.item_columns[group] for c in range(run.start, run.stop)]
        owners = [f.name for f in inputs.embeddings.features[group] for _ in range(width[f.table].width)]
        assert list(dict.fromkeys(owners[c] for c in columns)) == expected
        assert names[group][: len(expected)] == expected
    assert runs_of([0, 1, 4, 5, 6, 9]) == [slice(0, 2), slice(4, 7), slice(9, 10)]
    assert number_names(FOODLOG, Group.CANDIDATE)[0] == "price"


def test_what_is_left_out_survives_the_config_and_mistakes_are_named():
    config = dataclasses.replace(tiny(), model=dataclasses.replace(BASE, without=("cross",), mask="full"))
    assert Config.from_dict(json.loads(config.to_json())) == config
    for changes, message in (
        ({"without": ("profile",)}, "without names 'profile'; use cross, item_statistic, realtime_statistic"),
        ({"mask": "none"}, "mask is 'none'; use one of dynamic, causal, full"),
        ({"norm": "batch"}, "norm is 'batch'; use one of group, layer"),
        ({"max_static": -1}, "max_static is -1; use 0 for no static behaviours"),
        ({"score_start": -1.0}, "score_start is -1.0; it must not be negative"),
    ):
        with pytest.raises(ValueError, match=message):
            dataclasses.replace(BASE, **changes)
