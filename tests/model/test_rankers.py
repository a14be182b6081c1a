"""All rankers: the paper's mask, scores that depend on the row and its candidate alone, and that learn."""

import dataclasses

import pytest
import torch

from model.config.presets import PRESETS, tiny, tiny_dcn, user_tower
from model.data.batch import JaggedBatch
from model.data.capacity import Capacities
from model.data.encoder import SampleEncoder
from model.data.layout import layout
from model.data.synthetic import random_batch, random_samples
from model.embeddings.sizes import TableSize, table_sizes
from model.judging.metrics import group_auc
from model.rankers.protocol import build_ranker
from spark_jobs.contract.features import Group
from spark_jobs.contract.foodlog import FOODLOG

DLRM = ("dnn", "moe", "multi_embed", "wukong", "dcn", "ple", "pepnet", "din")
CASES = {
    "mtgr": dataclasses.replace(tiny().model, ops_backend="reference"),
    "mtgr_compiled": dataclasses.replace(tiny().model, ops_backend="cpu"),
    "mtgr_dcn": dataclasses.replace(tiny_dcn().model, ops_backend="cpu"),
    "user_tower": user_tower().model,
    "user_tower_softmax": dataclasses.replace(user_tower().model, target="softmax"),
    **{name: PRESETS[name]().model for name in (*DLRM, "hstu")},
}


@pytest.fixture(scope="module", params=CASES)
def ranker(request):
    ranker = build_ranker(FOODLOG, CASES[request.param], seed=1).eval()
    ranker.inputs.scaler.fit(random_batch(FOODLOG, 30, seed=9))
    return ranker


@torch.inference_mode()
def scores(ranker, rows):
    return ranker(SampleEncoder(FOODLOG).encode(rows))


def test_mask_is_the_papers_example():
    # Time order s2, s1, target3, r2, target2, r1, target1; r1 sees {U, S, r2, r1}, target1 {U, S, r2, r1,
    # self}, target2 {U, S, r2, self}, target3 {U, S, self}. Stored oldest first: s2 s1, r2 r1.
    batch = JaggedBatch(
        ids={group: torch.zeros(1, 0, dtype=torch.int64) for group in Group},
        numbers={group: torch.zeros(0, 0) for group in Group},
        lengths={
            Group.STATIC: torch.tensor([2]),
            Group.REALTIME: torch.tensor([2]),
            Group.CANDIDATE: torch.tensor([3]),
        },
        realtime_visible=torch.tensor([0, 1], dtype=torch.int32),
        candidate_visible=torch.tensor([2, 1, 0], dtype=torch.int32),
        labels=torch.zeros(2, 3),
        weights=torch.ones(3),
        frozen_numbers=torch.zeros(0),
    )
    tokens = ["U", "s2", "s1", "r2", "r1", "target1", "target2", "target3"]
    where = layout(batch)
    sees = {name: {*tokens[: int(end)], name} for name, end in zip(tokens, where.visible_end, strict=True)}
    static = {"U", "s2", "s1"}
    assert sees == {
        "U": static,
        "s2": static,
        "s1": static,
        "r2": static | {"r2"},
        "r1": static | {"r2", "r1"},
        "target1": static | {"r2", "r1", "target1"},
        "target2": static | {"r2", "target2"},
        "target3": static | {"target3"},
    }
    assert where.group.tolist() == [0, 1, 1, 2, 2, 3, 3, 3]
    assert where.candidates.tolist() == [5, 6, 7]


def test_layout_interleaves_the_groups_of_rows():
    batch = random_batch(FOODLOG, 7, seed=2)
    where = layout(batch)
    assert where.offsets.tolist() == [0, *batch.tokens_B().cumsum(0).tolist()]
    assert sorted(where.source.tolist()) == list(range(int(where.offsets[-1])))
    for row in range(7):
        alone = layout(batch.select(torch.tensor([row])))
        part = slice(int(where.offsets[row]), int(where.offsets[row + 1]))
        assert torch.equal(where.visible_end[part], alone.visible_end)
        assert torch.equal(where.group[part], alone.group)


def test_scores_do_not_depend_on_the_other_rows(ranker):
    table = random_samples(FOODLOG, 9, seed=5)
    together = scores(ranker, table).split([len(c) for c in table["label_click"].to_pylist()], dim=1)
    for row in range(9):
        alone = scores(ranker, table.slice(row, 1))
        torch.testing.assert_close(alone, together[row], rtol=0, atol=1e-6)


def test_scores_do_not_depend_on_the_other_candidates(ranker):
    row = random_samples(FOODLOG, 20, seed=6, max_candidates=5).to_pylist()
    row = max(row, key=lambda one: len(one["label_click"]))
    count = len(row["label_click"])
    together = scores(ranker, [row])
    lists = [name for name in row if name.startswith(("candidate_", "label_"))]
    for place in range(count):
        alone = scores(ranker, [row | {name: row[name][place : place + 1] for name in lists}])
        torch.testing.assert_close(alone[:, 0], together[:, place], rtol=0, atol=1e-6)


def test_a_candidate_sees_only_earlier_real_time_events(ranker):
    table = random_samples(FOODLOG, 30, seed=8, max_realtime=6)
    row = next(r for r in table.to_pylist() if 0 < max(r["candidate_visible"]) < len(r["realtime_time_ms"]))
    place = row["candidate_visible"].index(max(row["candidate_visible"]))
    first_hidden = row["candidate_visible"][place]
    before = scores(ranker, [row])
    later = list(row["realtime_item_id"])
    later[first_hidden] += 1000
    earlier = list(row["realtime_item_id"])
    earlier[first_hidden - 1] += 1000
    torch.testing.assert_close(scores(ranker, [row | {"realtime_item_id": later}]), before, rtol=0, atol=1e-6)
    changed = scores(ranker, [row | {"realtime_item_id": earlier}])
    assert (changed[:, place] - before[:, place]).abs().max() > 1e-6


def test_rows_without_history_and_a_batch_without_rows(ranker):
    table = random_samples(FOODLOG, 3, max_static=0, max_realtime=0, max_candidates=1)
    assert scores(ranker, table).isfinite().all()
    assert scores(ranker, table.slice(0, 0)).shape == (2, 0)


@pytest.mark.parametrize("name", [name for name, config in CASES.items() if config.takes_padded])
def test_padding_changes_nothing(name):
    ranker = build_ranker(FOODLOG, CASES[name], seed=1).eval()
    batch = random_batch(FOODLOG, 9, seed=2)
    ranker.inputs.scaler.fit(batch)
    padded = batch.laid_out().padded(Capacities(batch_tokens=200).of(batch.laid_out()))
    room = {Group.PROFILE: padded.room.rows, **padded.room.groups}
    with torch.inference_mode():
        embeddings = ranker.inputs.embeddings(batch)
        wider = {
            group: [torch.nn.functional.pad(one, (0, 0, 0, room[group] - len(one))) for one in some]
            for group, some in embeddings.items()
        }
        expected, got = ranker(batch), ranker(padded, wider)
    torch.testing.assert_close(got[:, : batch.num_candidates], expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", CASES)
def test_each_ranker_learns_a_few_rows_by_heart(name):
    sizes = {"d_model": 16, "num_heads": 2, "token_hidden": 16, "head_hidden": 8, "id_tables": "hashed"}
    sizes["tables"] = {
        table: TableSize(rows=min(size.rows, 300), width=8)
        for table, size in table_sizes(FOODLOG, {}, 0).items()
    }
    ranker = build_ranker(FOODLOG, dataclasses.replace(CASES[name], **sizes), seed=1)
    batch = random_batch(FOODLOG, 12, seed=7).laid_out()
    ranker.inputs.scaler.fit(batch)
    optimizer = torch.optim.Adam(ranker.parameters(), lr=1e-2)
    for _ in range(40):
        optimizer.zero_grad()
        loss = torch.nn.functional.binary_cross_entropy_with_logits(ranker(batch), batch.labels)
        loss.backward()
        optimizer.step()
    unused = [key for key, one in ranker.named_parameters() if one.grad is None or not one.grad.any()]
    assert loss.item() < 0.02
    assert not unused


def test_the_control_knows_nothing_in_the_frozen_protocol():
    # A score made of a user's own earlier outcomes in the window, with no knowledge of items: within a
    # window it ranks by labels (leaked), unless the real-time state is frozen.
    batch = random_batch(FOODLOG, 200, seed=4)
    names = [f.name for f in FOODLOG.in_group(Group.CANDIDATE) if f.kind == "number"]
    place = names.index("user_clicks_today")
    live = batch.numbers[Group.CANDIDATE][place] + batch.candidate_visible
    frozen_batch = batch.frozen()
    frozen = frozen_batch.numbers[Group.CANDIDATE][place] + frozen_batch.candidate_visible
    group = torch.arange(200).repeat_interleave(batch.num_candidates_B()).numpy()
    label = (live > live.median()).int().numpy()
    assert group_auc(group, label, live.numpy()).gauc == 1.0
    assert group_auc(group, label, frozen.numpy()).gauc == 0.5
