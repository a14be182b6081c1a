"""Who takes part: rankers of one size, MTGR with a part left out, variants beyond the paper, LightGBM.

What may be chosen of each is the same: rate, tokens a step, passes, and whether the item's ids have a shared
projection (`shares_items`; of MTGR itself not, since the paper has none: `tiny_shared` is the variant).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.evidence.gradient_boosting import Boosting
from benchmarks.evidence.trial import Frame, boosted_days, scored_days
from model.config.presets import preset_named
from model.config.run import Config
from model.data.reader import SamplesTable

Space = dict[str, tuple[Any, ...]]  # by setting: the values to choose from, or the two ends of a range
RANGES = ("dense_lr", "rate")  # settings with a range, drawn by logarithm
DLRM = ("user_tower", "dnn", "moe", "multi_embed", "wukong", "dcn", "ple", "pepnet", "din")


@dataclass(frozen=True, kw_only=True)
class Contender:
    """A ranker that takes part.

    Args:
        family: Under which it is shown.
        preset: Its sizes.
        model: Fields of the model that differ from the preset's.
        train: Fields of the training that differ.
        tuned_as: Whose choice of settings it takes instead of one of its own: ablations differ by what they
            leave out alone.
        may_share: Whether `shares_items` is a choice.
    """

    family: str
    preset: str
    model: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    train: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    tuned_as: str = ""
    may_share: bool = False

    def space(self) -> Space:
        """What may be chosen."""
        shares: Space = {"shares_items": (False, True)} if self.may_share else {}
        return {"dense_lr": (3e-4, 4e-3), "batch_tokens": (1_000, 2_000, 4_000), "passes": (1, 2), **shares}

    def as_it_is(self) -> dict[str, Any]:
        """The settings of the preset."""
        train = preset_named(self.preset).train
        return {name: getattr(train, name, False) for name in self.space()}

    def scored_days(
        self,
        samples: SamplesTable,
        settings: Mapping[str, Any],
        seed: int,
        train: Sequence[str],
        test: Sequence[str],
        daily: bool = True,
    ) -> Iterator[tuple[str, Frame, float]]:
        """Learns, and scores days; see `trial.scored_days`. A ranker goes on daily, whatever is asked."""
        return scored_days(samples, self.config(settings, seed), train, test, torch.device("cpu"))

    def config(self, chosen: Mapping[str, Any], seed: int) -> Config:
        """Its config with chosen settings; `shares_items` is the model's, others the training's."""
        base = preset_named(self.preset)
        train = {name: value for name, value in chosen.items() if name != "shares_items"}
        shares = {"shares_items": chosen["shares_items"]} if "shares_items" in chosen else {}
        return dataclasses.replace(
            base,
            model=dataclasses.replace(base.model, **{**shares, **self.model}),
            train=dataclasses.replace(base.train, **{**train, **self.train, "seed": seed}),
        )


@dataclass(frozen=True, kw_only=True)
class Booster:
    """LightGBM, which takes part like a ranker.

    Args:
        objective: `binary` or `lambdarank`.
    """

    objective: str
    family: str = "LightGBM"
    tuned_as: str = ""

    def space(self) -> Space:
        """What may be chosen."""
        return {"leaves": (7, 15, 31, 63), "rounds": (150, 300, 600), "rate": (0.02, 0.1)}

    def as_it_is(self) -> dict[str, Any]:
        """The settings of `Boosting`."""
        return {name: getattr(Boosting(), name) for name in self.space()}

    def scored_days(
        self,
        samples: SamplesTable,
        settings: Mapping[str, Any],
        seed: int,
        train: Sequence[str],
        test: Sequence[str],
        daily: bool = True,
    ) -> Iterator[tuple[str, Frame, float]]:
        """Learns, and scores days; see `trial.boosted_days`."""
        boosting = Boosting(objective=self.objective, **settings)
        return boosted_days(samples, boosting, train, test, seed, daily)


def _ablation(model: Mapping[str, Any], **train: Any) -> Contender:
    return Contender(family="ablation", preset="tiny", model=model, train=train, tuned_as="tiny")


CONTENDERS: dict[str, Contender | Booster] = {
    "tiny": Contender(family="MTGR", preset="tiny"),
    "tiny_shared": Contender(family="variant", preset="tiny", model={"shares_items": True}),
    "tiny_dcn": Contender(family="variant", preset="tiny_dcn", may_share=True),
    **{name: Contender(family="DLRM", preset=name, may_share=True) for name in DLRM},
    "lightgbm": Booster(objective="binary"),
    "lambdarank": Booster(objective="lambdarank"),
    "hstu": Contender(family="HSTU", preset="hstu"),
    "hstu_cross": Contender(family="HSTU", preset="hstu_cross"),
    "no_cross": _ablation({"without": ("cross",)}),
    "no_item_statistics": _ablation({"without": ("item_statistic",)}),
    "no_static": _ablation({"max_static": 0}),
    "no_realtime": _ablation({}, frozen_share=1.0),
    "one_layer_norm": _ablation({"norm": "layer"}),
    "causal_mask": _ablation({"mask": "causal"}),
    "full_mask_leaks": _ablation({"mask": "full"}),
    "old_start": _ablation({"block_start": 1.0, "score_start": 0.0}),
}
# The axis of cross features: settings chosen with them, without them; with a shared projection and without.
CONTENDERS |= {
    f"{name}{'_shared' * shares}_no_cross": Contender(
        family="no cross",
        preset=name,
        model={"shares_items": shares, "without": ("cross",)},
        tuned_as="tiny_shared" if name == "tiny" else name,
    )
    for name in ("tiny", "user_tower", "dnn", "din")
    for shares in (False, True)
    if name != "tiny" or shares  # `no_cross` is the other
}
