"""The presets: each a function that returns a `Config`; a variant calls another and replaces fields."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from model.config.run import Config, TrainConfig
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
from spark_jobs.contract.features import Owner

TTL_DAYS = 90  # of data, after which an id that was not seen loses its row
# Five steps of 48,000: what a daily job of a few steps has time for.
WARMUP_TOKENS = 240_000


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


def tiny_dcn() -> Config:
    """`tiny` whose heads read crossed features beside what the blocks read: a variant beyond the paper."""
    config = tiny()
    fields = dataclasses.asdict(config.model)
    for name in ("architecture", "tables"):
        del fields[name]
    return dataclasses.replace(config, preset="tiny_dcn", model=MtgrDcnConfig(**fields))


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
            batch_tokens=48_000,
            dense_lr=lr,
            warmup_tokens=WARMUP_TOKENS,
            precision="bfloat16",
            ttl_days=TTL_DAYS,
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
    return _dlrm("user_tower", UserTowerConfig, target="silu")


def _dlrm(preset: str, ranker: type[RankerConfig], **fields: Any) -> Config:
    """A ranker of the DLRM family in the size of `tiny`."""
    sizes = {"d_model": 64, "num_heads": 2, "max_static": 50, "token_hidden": 128, "head_hidden": 64}
    model = ranker(**{**sizes, "id_tables": "dynamic", **fields})
    return Config(preset=preset, model=model, train=dataclasses.replace(tiny().train, dense_lr=8e-4))


def dnn() -> Config:
    """DNN with SIM: an MLP."""
    return _dlrm("dnn", DnnConfig)


def moe() -> Config:
    """MoE with SIM: 4 experts."""
    return _dlrm("moe", MoeConfig)


def multi_embed() -> Config:
    """MultiEmbed with SIM: 2 sets of embeddings."""
    return _dlrm("multi_embed", MultiEmbedConfig)


def wukong() -> Config:
    """Wukong with SIM: 2 layers of factorisation machines."""
    return _dlrm("wukong", WukongConfig)


def dcn() -> Config:
    """DCN-v2 with SIM: 3 cross layers."""
    return _dlrm("dcn", DcnConfig)


def ple() -> Config:
    """PLE with SIM: 2 levels."""
    return _dlrm("ple", PleConfig)


def pepnet() -> Config:
    """PEPNet with SIM: gates by context and by person."""
    return _dlrm("pepnet", PepnetConfig)


def din() -> Config:
    """DIN: an activation unit."""
    return _dlrm("din", DinConfig)


def hstu() -> Config:
    """HSTU as Meta has it, in the size of `tiny`: causal, biases of place and time, no cross features."""
    config = hstu_cross()
    return dataclasses.replace(
        config, preset="hstu", model=dataclasses.replace(config.model, without=(Owner.CROSS,))
    )


def hstu_cross() -> Config:
    """HSTU with cross features."""
    return dataclasses.replace(_dlrm("hstu_cross", HstuConfig, num_blocks=2), train=tiny().train)


def wide(name: str, d_model: int) -> Config:
    """A preset in the size of a GPU: tokens of width `d_model`, all behaviours, large steps in bfloat16.

    Args:
        name: The preset; the result is called `<name>_<d_model>`.
        d_model: Width of a token; heads are 128 wide.
    """
    config = PRESETS[name]()
    model = dataclasses.replace(
        config.model,
        d_model=d_model,
        num_heads=max(1, d_model // 128),
        max_static=1000,
        token_hidden=2 * d_model,
        head_hidden=d_model,
        low_cardinality_width=32,
    )
    train = dataclasses.replace(
        config.train,
        batch_tokens=48_000,
        passes=1,
        warmup_steps=0,
        warmup_tokens=WARMUP_TOKENS,
        dense_lr=3e-4,
        precision="bfloat16",
    )
    return Config(preset=f"{name}_{d_model}", model=model, train=train)


PRESETS: dict[str, Callable[[], Config]] = {
    preset.__name__: preset
    for preset in (
        *(tiny, tiny_dcn, small, medium, large, xl, user_tower),
        *(dnn, moe, multi_embed, wukong, dcn, ple, pepnet, din, hstu, hstu_cross),
    )
}


def preset_named(name: str) -> Config:
    """The preset called `name`, or one of them in the size of a GPU: `dnn_512`; see `wide`.

    Raises:
        ValueError: There is none.
    """
    base, _, width = name.rpartition("_")
    if base in PRESETS and width.isdecimal():
        return wide(base, int(width))
    if name not in PRESETS:
        raise ValueError(
            f"unknown preset {name!r}; known: {', '.join(PRESETS)}, and any as <preset>_<d_model>"
        )
    return PRESETS[name]()


def config_of(model: str) -> Config:
    """The config of a preset with changed fields: `tiny,train.warmup_steps=50`.

    A field that holds several names takes them as `model.without=cross+item_statistic`.

    Raises:
        ValueError: The preset or a field is unknown, or a value is wrong.
    """
    preset, *changes = model.split(",")
    values = dataclasses.asdict(preset_named(preset))
    for change in changes:
        place, _, value = change.partition("=")
        part, _, name = place.partition(".")
        fields = values[part] if part in ("model", "train") else {}
        if name not in fields:
            raise ValueError(f"{model!r}: {place!r} is no field; write model.<field>= or train.<field>=")
        try:
            fields[name] = _read(value, type(fields[name]))
        except ValueError as error:
            raise ValueError(f"{model!r}: {place}: {error}") from error
    return Config.from_dict(values)


def _read(text: str, kind: type) -> Any:
    """A field's value as it is written."""
    if kind is tuple:
        return tuple(text.split("+")) if text else ()
    if kind is bool:
        if text not in ("True", "False"):
            raise ValueError(f"{text!r} is neither True nor False")
        return text == "True"
    return kind(text)
