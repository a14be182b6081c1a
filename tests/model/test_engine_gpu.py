"""The scoring engine on a GPU: graphs, precisions, kept prefixes and full chips, against evaluation."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from model.config.presets import preset_named
from model.config.run import Config
from model.data.batch import JaggedBatch
from model.data.synthetic import random_samples
from model.embeddings.dynamic import DynamicEmbeddingCollection
from model.judging.scoring import Scorer
from model.rankers.protocol import Ranker, build_ranker
from model.serving.collate import needed
from model.serving.engine import Engine
from spark_jobs.contract.datasets import dataset_named
from spark_jobs.contract.features import Dataset, Group

pytestmark = pytest.mark.gpu

BOUNDS = {"float32": 1e-5, "bfloat16": 6e-3, "float16": 6e-3}


def model_of(preset: str) -> tuple[Dataset, Config, Ranker]:
    dataset = dataset_named("foodlog")
    config = preset_named(preset).sized(dataset)
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, precision="float32"))
    ranker = build_ranker(dataset, config.model, seed=1)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in ranker.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
        ranker.inputs.scaler.fitted_F.fill_(1)
    for tables in ranker.inputs.embeddings.dynamic.values():
        assert isinstance(tables, DynamicEmbeddingCollection)
        count = len(tables.configs)
        tables.ids, tables.starts = torch.arange(0, 500, 2).repeat(count), torch.arange(count + 1) * 250
        tables.vectors = torch.randn(count * 250, tables.width, generator=generator)
    return dataset, config, ranker


def requests_of(dataset: Dataset, config: Config, count: int) -> tuple[Scorer, JaggedBatch]:
    scorer = Scorer(dataset, config, build_ranker(dataset, config.model, seed=1))
    table = random_samples(dataset, count, seed=count, max_static=400, max_realtime=90, max_candidates=120)
    return scorer, scorer.encoder.encode(table)


def wanted_of(dataset: Dataset, config: Config, ranker: Ranker, batch: JaggedBatch) -> np.ndarray:
    scores = Scorer(dataset, config, ranker, "cuda").score_batch(batch)
    return np.stack([scores["ctr_live"], scores["ctcvr_live"]])


@pytest.mark.parametrize("precision", list(BOUNDS))
@pytest.mark.parametrize("preset", ["tiny", "small", "medium"])
@pytest.mark.parametrize("count", [1, 5, 40])  # 40 requests take the kernel that does not cut keys
def test_an_engine_scores_as_evaluation_does(preset: str, precision: str, count: int) -> None:
    dataset, config, ranker = model_of(preset)
    _, batch = requests_of(dataset, config, count)
    wanted = wanted_of(dataset, config, ranker, batch)
    assert wanted.std() > 0.005
    engine = Engine(ranker, config, precision=precision, buckets=[needed(batch)], cache_bytes=1 << 30)
    keys = list(range(count))
    for scores in (engine.score(batch), engine.score(batch, keys), engine.score(batch, keys)):
        assert np.abs(scores - wanted).max() < BOUNDS[precision]
    assert engine.cache is not None
    assert (engine.cache.counts.hits, engine.cache.counts.misses) == (count, count)


def test_neighbours_and_buckets_change_nothing() -> None:
    dataset, config, ranker = model_of("small")
    _, batch = requests_of(dataset, config, 6)
    engine = Engine(ranker, config, precision="float32", buckets=[needed(batch)])
    alone = Engine(ranker, config, precision="float32")
    together = engine.score(batch)
    ends = batch.lengths[Group.CANDIDATE].cumsum(0).tolist()
    for row, end in enumerate(ends):
        one = batch.select(torch.tensor([row]))
        part = together[:, end - one.num_candidates : end]
        assert np.abs(engine.score(one) - part).max() < 1e-6  # in a bucket of six
        assert np.abs(alone.score(one) - part).max() < 1e-6  # in none
    # Scores of the six again: what lies in the places that one request left empty is not read.
    assert (engine.score(batch) == together).all()


def test_prefixes_that_had_to_go_are_made_again() -> None:
    dataset, config, ranker = model_of("small")
    _, batch = requests_of(dataset, config, 4)
    wanted = wanted_of(dataset, config, ranker, batch)
    page = config.model.num_blocks * 2 * 64 * config.model.d_model * 4  # type: ignore[attr-defined]
    engine = Engine(ranker, config, precision="float32", cache_bytes=9 * page)
    ends = batch.lengths[Group.CANDIDATE].cumsum(0).tolist()
    for row in (0, 1, 2, 3, 0, 1, 3, 2):
        one = batch.select(torch.tensor([row]))
        part = wanted[:, ends[row] - one.num_candidates : ends[row]]
        assert np.abs(engine.score(one, [row]) - part).max() < 1e-5
    assert engine.cache is not None
    assert engine.cache.counts.evictions > 0
    # All four do not fit together: they are computed without.
    assert np.abs(engine.score(batch, list(range(4))) - wanted).max() < 1e-5
