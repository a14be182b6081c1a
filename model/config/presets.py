"""The presets: each a function that returns a `Config`; a variant calls another and replaces fields."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from model.config.run import Config, TrainConfig
from model.rankers.mtgr import MtgrConfig
from model.rankers.user_tower import UserTowerConfig

TTL_DAYS = 90  # of data, after which an id that was not seen loses its row


def tiny() -> Config:
    """A model for a CPU: 2 blocks, d 64."""
    return Config(
        preset="tiny",
        model=MtgrConfig(
            num_blocks=2,
            d_model=64,
            num_heads=2,
            max_static=50,
            token_hidden=128,
            head_hidden=64,
            id_tables="dynamic",
        ),
        train=TrainConfig(
            batch_tokens=4_000,
            dense_lr=1e-3,
            weight_decay=0.01,
            passes=2,
            warmup_steps=10,
            frozen_share=0.3,
            ttl_days=TTL_DAYS,
        ),
    )


def _paper(preset: str, num_blocks: int, d_model: int, low_cardinality_width: int, lr: float) -> Config:
    return Config(
        preset=preset,
        model=MtgrConfig(
            num_blocks=num_blocks,
            d_model=d_model,
            num_heads=d_model // 256,
            inv_n=1 / 512,
            token_hidden=2 * d_model,
            head_hidden=d_model,
            low_cardinality_width=low_cardinality_width,
            id_tables="dynamic",
        ),
        train=TrainConfig(
            batch_tokens=48_000, dense_lr=lr, warmup_steps=500, precision="bfloat16", ttl_days=TTL_DAYS
        ),
    )


def small() -> Config:
    """The paper's small: 3 blocks, d 512, 2 heads; 5.47 GFLOPs at 500 tokens."""
    return _paper("small", 3, 512, 32, 3e-4)


def medium() -> Config:
    """The paper's medium: 5 blocks, d 768, 3 heads; 18.59 GFLOPs at 500 tokens."""
    return _paper("medium", 5, 768, 64, 3e-4)


def large() -> Config:
    """The paper's large: 15 blocks, d 768, 3 heads; 55.76 GFLOPs at 500 tokens."""
    return _paper("large", 15, 768, 64, 1e-4)


def xl() -> Config:
    """The paper's extra large (offline only there): 22 blocks, d 1024, 4 heads; 137.87 GFLOPs."""
    return _paper("xl", 22, 1024, 96, 1e-4)


def user_tower() -> Config:
    """UserTower DLRM, the article's best before MTGR: multi-query tower, 16 experts, target attention."""
    base = tiny()
    return Config(
        preset="user_tower",
        model=UserTowerConfig(
            d_model=64, num_heads=2, max_static=50, token_hidden=128, head_hidden=64, id_tables="dynamic"
        ),
        train=dataclasses.replace(base.train, dense_lr=8e-4),
    )


PRESETS: dict[str, Callable[[], Config]] = {
    preset.__name__: preset for preset in (tiny, small, medium, large, xl, user_tower)
}


def preset_named(name: str) -> Config:
    """The preset called `name`.

    Raises:
        ValueError: There is none.
    """
    if name not in PRESETS:
        raise ValueError(f"unknown preset {name!r}; known: {', '.join(PRESETS)}")
    return PRESETS[name]()
