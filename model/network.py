"""The ranker that a config asks for."""

from __future__ import annotations

import torch

from model.config import Config
from model.ranker import MtgrRanker
from model.user_tower import UserTowerRanker
from spark_jobs.contract import Dataset

Ranker = MtgrRanker | UserTowerRanker
_ARCHITECTURES: dict[str, type[MtgrRanker] | type[UserTowerRanker]] = {
    "mtgr": MtgrRanker,
    "user_tower": UserTowerRanker,
}


def build_ranker(dataset: Dataset, config: Config) -> Ranker:
    """A ranker with the initial weights that the config's seed gives, on the CPU."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.train.seed)
        generator = torch.Generator().manual_seed(config.train.seed)
        return _ARCHITECTURES[config.model.architecture](dataset, config.model, generator)
