"""The rankers that a run's config can name: one line each."""

from __future__ import annotations

from typing import Any

from model.embeddings.sizes import TableSize
from model.rankers.dcn import DcnConfig
from model.rankers.din import DinConfig
from model.rankers.dnn import DnnConfig
from model.rankers.hstu import HstuConfig
from model.rankers.moe import MoeConfig
from model.rankers.mtgr import MtgrConfig
from model.rankers.mtgr_dcn import MtgrDcnConfig
from model.rankers.multi_embed import MultiEmbedConfig
from model.rankers.pepnet import PepnetConfig
from model.rankers.ple import PleConfig
from model.rankers.protocol import RankerConfig
from model.rankers.user_tower import UserTowerConfig
from model.rankers.wukong import WukongConfig

RANKERS: dict[str, type[RankerConfig]] = {
    "mtgr": MtgrConfig,
    "mtgr_dcn": MtgrDcnConfig,
    "user_tower": UserTowerConfig,
    "hstu": HstuConfig,
    "dnn": DnnConfig,
    "moe": MoeConfig,
    "multi_embed": MultiEmbedConfig,
    "wukong": WukongConfig,
    "dcn": DcnConfig,
    "ple": PleConfig,
    "pepnet": PepnetConfig,
    "din": DinConfig,
}


def ranker_config(values: dict[str, Any]) -> RankerConfig:
    """The config that `dataclasses.asdict` made these values of.

    Raises:
        ValueError: The architecture is unknown, or a value is out of range.
        TypeError: A field is missing or unknown.
    """
    fields = dict(values)
    architecture = fields.pop("architecture", None)
    if architecture not in RANKERS:
        raise ValueError(f"architecture is {architecture!r}; use one of {', '.join(RANKERS)}")
    tables = {name: TableSize(**size) for name, size in fields.pop("tables", {}).items()}
    return RANKERS[architecture](**fields, tables=tables)
