"""The scoring engine, its GPU kernels run by Triton's interpreter, and what it keeps of prefixes."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model.config.presets import preset_named
from model.serving.engine import cannot_serve
from model.serving.prefixes import PrefixCache

INTERPRETED = """
import dataclasses, json, sys
import numpy as np, torch
from model.config.presets import tiny
from model.data.synthetic import random_samples
from model.embeddings.dynamic import DynamicEmbeddingCollection
from model.judging.scoring import Scorer
from model.rankers.protocol import build_ranker
from model.serving.collate import Bucket, Part
from model.serving.engine import Engine
from model.serving.passes import Pass
from spark_jobs.contract.datasets import dataset_named

dataset, base = dataset_named("foodlog"), tiny()
sizes = {"num_blocks": 2, "d_model": 32, "token_hidden": 16, "head_hidden": 16}
changes = {**sizes, **json.loads(sys.argv[1])}
config = dataclasses.replace(base, model=dataclasses.replace(base.model, **changes)).sized(dataset)
ranker = build_ranker(dataset, config.model, 1)
with torch.no_grad():
    for parameter in ranker.parameters():
        parameter += 0.1 * torch.randn_like(parameter)
    scaler = ranker.inputs.scaler
    scaler.mean_F.uniform_(0, 2), scaler.std_F.uniform_(0.5, 2), scaler.fitted_F.fill_(1)
    scaler.fitted_F[3] = 0
for tables in ranker.inputs.embeddings.dynamic.values():
    count = len(tables.configs)
    tables.ids, tables.starts = torch.arange(0, 500, 2).repeat(count), torch.arange(count + 1) * 250
    tables.vectors = torch.randn(count * 250, tables.width)
scorer = Scorer(dataset, config, ranker)
sizes = {"max_static": 60, "max_realtime": 12, "max_candidates": 4}
batch = scorer.encoder.encode(random_samples(dataset, 2, seed=int(sys.argv[2]), **sizes))
batch.numbers["profile"][0, 0] = float("nan")
wanted = scorer.score_batch(batch)
wanted = np.stack([wanted["ctr_live"], wanted["ctcvr_live"]])
engine = Engine(ranker, config, device="cpu", cache_bytes=2_000_000)
engine.shared.num_processors = 30  # so that keys are cut into parts
roomy = Bucket(rows=4, static=150, realtime=40, candidates=24)
engine.passes = {part: [Pass(engine.shared, part, roomy)] for part in Part}
off = {"whole": engine.score(batch)}
off |= {name: engine.score(batch, "ab") for name in ("missing", "kept")}
refused = []
try:
    engine.score(batch.select(torch.tensor([1, 0])), ["c", "b"])  # another request under a key that is held
except ValueError as error:
    refused = [str(error), len(engine.cache)]
broken = engine.passes[Part.PREFIX][0]
broken.run = lambda *_: 1 / 0
try:
    engine.score(batch, "xy")
except ZeroDivisionError:
    refused.append(len(engine.cache))
engine.passes = {part: [] for part in Part}
off |= {"without room": engine.score(batch), "one": engine.score(batch.select(torch.tensor([1])))}
first = int(batch.num_candidates_B()[0])
wanted_one = wanted[:, first : first + int(batch.num_candidates_B()[1])]
worst = {n: float(np.abs(s - (wanted_one if n == "one" else wanted)).max()) for n, s in off.items()}
counts = vars(engine.cache.counts)
print(json.dumps({"worst": worst, "spread": float(wanted.std()), "counts": counts, "refused": refused}))
"""


def interpreted(changes: dict[str, object], seed: int) -> dict[str, dict[str, float]]:
    """What the engine's scores differ by from evaluation's, in a process whose kernels are interpreted."""
    done = subprocess.run(
        [sys.executable, "-c", INTERPRETED, json.dumps(changes), str(seed)],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    result: dict[str, dict[str, float]] = json.loads(done.stdout.splitlines()[-1])
    return result


def check(result: dict[str, dict[str, float]]) -> None:
    assert max(result["worst"].values()) < 1e-5, result
    assert float(result["spread"]) > 0.01  # type: ignore[arg-type]
    assert result["counts"] == {"hits": 3, "misses": 5, "evictions": 0}
    # Another request under a key that is held is refused; what was not written is not kept.
    message, *held = result["refused"]
    assert message.startswith("key 'b' has kept a prefix of")
    assert held == [2, 2]


def test_an_engine_scores_as_evaluation_does_whatever_the_bucket_and_whatever_is_kept() -> None:
    check(interpreted({}, seed=3))


@pytest.mark.slow
@pytest.mark.parametrize("seed", [4, 5])
@pytest.mark.parametrize(
    "changes",
    [
        {"id_tables": "hashed"},
        {"without": ["cross", "item_statistic"], "shares_items": True},
        {"num_heads": 1, "num_blocks": 1},
        {"max_static": 35, "num_blocks": 3},  # cuts a row, and leaves the two of different lengths
    ],
)
def test_every_model_scores_as_evaluation_does(changes: dict[str, object], seed: int) -> None:
    check(interpreted(changes, seed))


def cache_of(num_pages: int) -> PrefixCache:
    return PrefixCache(
        num_pages * 2 * 2 * 64 * 4 * 4, num_blocks=2, dim=4, dtype=torch.float32, device=torch.device("cpu")
    )


@settings(max_examples=60, deadline=None)
@given(
    num_pages=st.integers(1, 12),
    asked=st.lists(st.tuples(st.integers(0, 8), st.integers(1, 300)), max_size=40),
)
def test_no_page_is_two_requests_and_the_least_recent_go_first(
    num_pages: int, asked: list[tuple[int, int]]
) -> None:
    cache = cache_of(num_pages)
    order: list[int] = []  # keys held, least recent first
    for key, length in asked:
        prefix = cache.get(key)
        assert (prefix is not None) == (key in order)
        if prefix is None:
            before = list(order)
            prefix = cache.put(key, length)
            if -(-length // 64) > num_pages:
                assert prefix is None
                assert len(cache) == len(before)
                continue
            assert prefix is not None
            assert prefix.length == length
            gone = len(before) + 1 - len(cache)
            order = [*before[gone:], key]  # those that went were the least recent
        else:
            order = [*(other for other in order if other != key), key]
        held = [page for other in order for page in cache._held[other].pages]
        assert len(held) == len(set(held))
        assert sorted(held + cache._free) == list(range(num_pages))
    assert list(cache._held) == order
    cache.clear()
    assert sorted(cache._free) == list(range(num_pages))


def test_prefixes_of_the_same_batch_do_not_put_each_other_out() -> None:
    cache = cache_of(2)
    assert cache.put("a", 64) is not None
    assert cache.put("b", 64, keep=["a", "b"]) is not None
    assert cache.put("c", 64, keep=["a", "b", "c"]) is None
    assert cache.put("c", 64, keep=["b", "c"]) is not None
    assert cache.counts.evictions == 1
    assert cache.get("a") is None


def test_a_budget_of_less_than_a_page_is_refused() -> None:
    with pytest.raises(ValueError, match="prefix cache of 100 bytes does not hold a page, which takes 2048"):
        PrefixCache(100, num_blocks=1, dim=4, dtype=torch.float32, device=torch.device("cpu"))


@pytest.mark.parametrize(
    ("preset", "change", "reason"),
    [
        ("tiny", {}, None),
        ("tiny", {"shares_items": True}, None),
        ("tiny", {"token_layers": 2}, "one hidden layer, not by 2"),
        ("tiny", {"mask": "causal"}, "not with mask causal"),
        ("tiny_dcn", {}, "the engine computes mtgr, not mtgr_dcn"),
        ("dcn", {}, "the engine computes mtgr, not dcn"),
    ],
)
def test_what_the_engine_does_not_compute_it_says(
    preset: str, change: dict[str, Any], reason: str | None
) -> None:
    config = preset_named(preset)
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, **change))
    said = cannot_serve(config)
    assert said is None if reason is None else said is not None and reason in said
