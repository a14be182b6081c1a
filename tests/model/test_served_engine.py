"""The engine behind the server: what is captured, what is kept, by which name, and what is counted."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from model.data.batch import JaggedBatch
from model.data.encoder import SampleEncoder
from model.data.synthetic import random_samples
from model.serving.buckets import buckets_for
from model.serving.collate import Part, needed
from model.serving.scorers import prefix_keys
from spark_jobs.contract.foodlog import FOODLOG

LONG = {"max_static": 90, "max_realtime": 20, "max_candidates": 30}


def encoded(number: int, seed: int = 1) -> JaggedBatch:
    return SampleEncoder(FOODLOG, 1000).encode(random_samples(FOODLOG, number, seed=seed, **LONG))


def test_batches_of_requests_like_those_expected_fit_a_bucket_with_little_room_to_spare() -> None:
    expected, asked = encoded(96), encoded(300, seed=2)
    buckets = buckets_for(expected, 1000, 32, 20_000)
    assert {bucket.rows for bucket in buckets} == {1, 2, 4, 8, 16, 32}
    rng = np.random.default_rng(3)
    fitting, spare = [], []
    for _ in range(300):
        rows = torch.from_numpy(rng.integers(0, asked.num_rows, rng.integers(1, 33)))
        size = needed(asked.select(rows))
        rooms = [sum(b.places(Part.WHOLE)) for b in buckets if size.fits(b, Part.WHOLE)]
        fitting.append(bool(rooms))
        if rooms:
            spare.append(min(rooms) / sum(size.places(Part.WHOLE)))
    assert np.mean(fitting) > 0.98
    assert np.mean(spare) < 2.2  # rows alone leave up to twice, one and a half times on average


def test_a_bucket_is_there_for_whatever_one_request_may_be_and_none_beyond_the_tokens_of_a_batch() -> None:
    buckets = buckets_for(encoded(96), 1000, 32, 600)
    one = max((bucket for bucket in buckets if bucket.rows == 1), key=lambda bucket: bucket.static)
    assert (one.static, one.realtime) == (1008, 112)
    assert max(bucket.rows for bucket in buckets) == 4


def test_a_prefix_is_named_by_all_that_decides_it_and_by_nothing_else() -> None:
    batch = encoded(6)
    keys = prefix_keys(batch)
    assert len(set(keys)) == 6
    order = torch.tensor([4, 1])
    assert prefix_keys(batch.select(order)) == [keys[4], keys[1]]  # neighbours
    later = batch.frozen()
    later.ids["candidate"] += 1  # type: ignore[index]
    later.numbers["realtime"] += 1  # type: ignore[index]
    assert prefix_keys(later) == keys
    for group in ("profile", "static"):
        for values in ("ids", "numbers"):
            changed = encoded(6)
            getattr(changed, values)[group][0, -1] += 1  # of the last request
            assert [a == b for a, b in zip(prefix_keys(changed), keys, strict=True)] == [True] * 5 + [False]


INTERPRETED = """
import functools, json, sys
import numpy as np, torch
from model.data.synthetic import random_samples
from model.judging.scoring import Scorer
from model.serving import holder
from model.serving.scorers import EngineOptions, EngineScorer
from spark_jobs.contract.foodlog import FOODLOG
from tests.model.packages import folder_of, make_package

def on_cpu(package, device, options, expected, **sizes):
    return EngineScorer(package, device, options, expected, **sizes)

holder.scorer_of = on_cpu
windows = random_samples(FOODLOG, 3)
packages = [make_package(FOODLOG, version, seed=version, windows=windows) for version in (1, 2)]
encoder = Scorer(FOODLOG, packages[0].config, packages[0].ranker()).encoder
batch = encoder.encode(random_samples(FOODLOG, 2, seed=5))
options = EngineOptions(prefix_mb=16)
worst, counted = 0.0, []
for package in packages:
    served = holder.Served(folder_of(FOODLOG, package.version), "cpu", 20_000, engine=options)
    served.counted()
    expected = Scorer(FOODLOG, package.config, package.ranker()).live(batch)
    for _ in range(2):
        worst = max(worst, float(np.abs(served.score(batch) - expected).max()))
        counted.append({" ".join(key): number for key, number in served.counted().items()})
print(json.dumps({"worst": worst, "counted": counted, "tokens": batch.num_tokens}))
"""


@pytest.mark.slow
def test_a_package_is_served_by_the_engine_and_another_one_begins_with_nothing_kept(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", INTERPRETED],
        env={**os.environ, "TRITON_INTERPRET": "1", "MTGR_VAR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["worst"] < 1e-5
    first, second, *other = result["counted"]
    assert first["prefixes misses"] == 2
    assert second["prefixes hits"] == 2
    assert "prefixes misses" not in second
    assert other == [first, second]
    assert first["passes eager"] == 2  # prefixes, then the rest
    assert second["passes eager"] == 1
    assert first["places token"] == result["tokens"]
    assert 0 < second["places token"] < first["places token"]
    assert all("passes graph" not in one and "places padding" not in one for one in result["counted"])
