"""MTGR learns what only its parts can tell: from random to a stated GAUC in seconds.

A candidate is clicked if its cuisine is among those of the behaviours that it may see: of the static history,
or of earlier real-time events; a third of the candidates have the cuisine of some real-time event, be it
earlier or later. No number, no id and no statistic tells anything, so that only attention between a
candidate and the right behaviours ranks the candidates of rows that were never seen.

Broken on purpose, the quick case gives: no attention, or a gate of zeros, or only itself to see, .49 to .50;
the full mask, which sees later events, .51; no gate .87; static tokens that see earlier ones only .89.
"""

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from hstu_ops import gated_attention

from model.config.presets import tiny
from model.data.batch import JaggedBatch
from model.data.encoder import SampleEncoder, id_features
from model.data.synthetic import random_samples
from model.embeddings.sizes import TableSize, table_sizes
from model.judging.metrics import group_auc
from model.rankers import mtgr
from model.rankers.protocol import build_ranker
from spark_jobs.contract.features import Group
from spark_jobs.contract.foodlog import FOODLOG

ROWS, HELD_OUT = 500, 150
CUISINES = 16
# After so many steps, with items shared (which finds matches at once) and as the paper has it.
QUICK, LEARNED_QUICKLY = 60, 0.915
STEPS, LEARNED = 220, 0.85
SIZES = {
    name: TableSize(rows=min(size.rows, 300), width=8) for name, size in table_sizes(FOODLOG, {}, 0).items()
}
MODEL = dataclasses.replace(
    tiny().model, d_model=32, token_hidden=32, head_hidden=32, id_tables="hashed", tables=SIZES
)


def log_of_matches() -> JaggedBatch:
    """Rows of which the cuisines and the labels are as above, everything else random."""
    table = random_samples(FOODLOG, ROWS, seed=1, max_static=12, max_realtime=6, max_candidates=12)
    batch = SampleEncoder(FOODLOG).encode(table)
    rng = np.random.default_rng(1)
    place = [feature.name for feature in id_features(FOODLOG, Group.CANDIDATE)].index("cuisine")
    cuisines = {
        group: [rng.integers(0, CUISINES, int(length)) for length in lengths]
        for group, lengths in batch.lengths.items()
    }
    visible = torch.split(batch.candidate_visible, batch.lengths[Group.CANDIDATE].tolist())
    labels = []
    for row in range(ROWS):
        static, realtime, candidate = (cuisines[group][row] for group in batch.lengths)
        for known, share in ((static, 0.5), (realtime, 0.6)):
            of_known = rng.random(len(candidate)) < share
            if len(known):
                candidate[of_known] = rng.choice(known, int(of_known.sum()))
        labels.append(
            [
                one in static or one in realtime[:earlier]
                for one, earlier in zip(candidate, visible[row].tolist(), strict=True)
            ]
        )
    for group in Group:  # nothing else tells rows or candidates apart
        batch.ids[group].zero_()
        batch.numbers[group].zero_()
    for group, values in cuisines.items():
        batch.ids[group][place] = torch.from_numpy(np.concatenate(values))
    click = torch.tensor(np.concatenate(labels), dtype=torch.float32)
    return dataclasses.replace(batch, labels=click.expand(2, -1).clone())


def gauc_after(num_steps: int, **changes: Any) -> float:
    """GAUC by row of rows that were held out, of a model that has taken so many steps."""
    batch = log_of_matches()
    ranker = build_ranker(FOODLOG, dataclasses.replace(MODEL, **changes), seed=1)
    ranker.inputs.scaler.fit(batch)
    optimizer = torch.optim.Adam(ranker.parameters(), lr=4e-3)
    order = torch.Generator().manual_seed(1)
    for _ in range(num_steps):
        rows = HELD_OUT + torch.randperm(ROWS - HELD_OUT, generator=order)[:60]
        part = batch.select(rows).laid_out()
        loss = torch.nn.functional.binary_cross_entropy_with_logits(ranker(part), part.labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    held_out = batch.select(torch.arange(HELD_OUT))
    with torch.inference_mode():
        score = ranker(held_out)[0]
    group = torch.arange(HELD_OUT).repeat_interleave(held_out.num_candidates_B())
    return group_auc(group.numpy(), held_out.labels[0].numpy(), score.numpy()).gauc


def without_gate(uvqk: torch.Tensor, *rest: Any, **options: Any) -> torch.Tensor:
    ones = torch.ones_like(uvqk[:, :1])
    return gated_attention(torch.cat([ones, uvqk[:, 1:]], dim=1), *rest, **options)


def without_attention(
    uvqk: torch.Tensor, offsets: torch.Tensor, visible: torch.Tensor, *rest: Any, **options: Any
) -> torch.Tensor:
    return gated_attention(uvqk, offsets, torch.zeros_like(visible), *rest, **options)


def test_mtgr_learns_in_seconds_what_only_attention_can_tell():
    assert abs(gauc_after(0) - 0.5) < 0.1
    assert gauc_after(QUICK, shares_items=True) > LEARNED_QUICKLY


@pytest.mark.slow
@pytest.mark.parametrize(
    ("broken", "changes", "most"),
    [
        (without_attention, {}, 0.6),
        (gated_attention, {"mask": "full"}, 0.6),
        (gated_attention, {"mask": "causal"}, LEARNED_QUICKLY),
        (without_gate, {}, LEARNED_QUICKLY),
    ],
)
def test_what_is_broken_does_not_learn(monkeypatch, broken, changes, most):
    monkeypatch.setattr(mtgr, "gated_attention", broken)
    assert gauc_after(QUICK, shares_items=True, **changes) < most


@pytest.mark.slow
def test_mtgr_learns_as_the_paper_has_it():
    assert gauc_after(STEPS) > LEARNED
