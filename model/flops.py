"""GFLOPs a sample of every preset, by formula and measured: `python -m model.flops [--preset tiny dnn_512]`.

The paper counts `blocks * (10 N d^2 + 4 N^2 d)` for N tokens, a multiply and an add as two, without what the
mask saves: `formula`. `measured` is what PyTorch's counter adds up over the products of a forward pass of one
row of that many tokens: projections of the tokens, blocks or interactions, and heads, by the reference
operators. Embedding look-ups, norms and activations are in neither.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from torch.utils.flop_counter import FlopCounterMode

from model.config.presets import PRESETS, preset_named
from model.data.batch import JaggedBatch
from model.data.encoder import SampleEncoder
from model.data.synthetic import random_samples
from model.rankers.known import ranker_config
from model.rankers.protocol import RankerConfig, build_ranker
from spark_jobs.contract import command
from spark_jobs.contract.features import Dataset, Group
from spark_jobs.contract.foodlog import FOODLOG

TOKENS = 500  # at which the paper's figures are
CANDIDATES = 50
_REALTIME = 10


def row_of(dataset: Dataset, num_tokens: int) -> JaggedBatch:
    """One made-up row of `num_tokens`, of which 50 are candidates and 10 real-time events.

    Raises:
        ValueError: That many tokens have no room for these and the profile.
    """
    num_static = num_tokens - len(dataset.in_group(Group.PROFILE)) - _REALTIME - CANDIDATES
    if num_static < 0:
        raise ValueError(f"{num_tokens} tokens are less than profile, real-time events and candidates")
    drawn = (
        random_samples(
            dataset,
            1,
            seed=seed,
            max_static=2 * num_static,
            max_realtime=4 * _REALTIME,
            max_candidates=4 * CANDIDATES,
        ).to_pylist()[0]
        for seed in itertools.count()
    )
    row = next(
        row
        for row in drawn
        if len(row["static_time_ms"]) >= num_static
        and len(row["realtime_time_ms"]) >= _REALTIME
        and len(row["candidate_time_ms"]) >= CANDIDATES
    )
    kept = {"static": num_static, "realtime": _REALTIME, "candidate": CANDIDATES, "label": CANDIDATES}
    cut = {
        name: value[: kept[name.partition("_")[0]]] if isinstance(value, list) else value
        for name, value in row.items()
    }
    for name in ("realtime_visible", "candidate_visible"):
        cut[name] = [min(visible, _REALTIME) for visible in cut[name]]
    return SampleEncoder(dataset).encode([cut])


def measured(dataset: Dataset, config: RankerConfig, row: JaggedBatch) -> tuple[int, int]:
    """FLOPs of the products of a forward pass over a row, and how many weights are outside the tables."""
    values = dataclasses.asdict(config)
    if "ops_backend" in values:
        config = ranker_config({**values, "ops_backend": "reference"})  # whose products the counter sees
    ranker = build_ranker(dataset, config, seed=1).eval()
    with FlopCounterMode(display=False) as counter:
        ranker(row)
    weights = sum(w.numel() for name, w in ranker.named_parameters() if "inputs.embeddings" not in name)
    return int(counter.get_total_flops()), weights


def figures(dataset: Dataset, presets: Sequence[str]) -> dict[str, dict[str, float]]:
    """By preset: GFLOPs of a row of 500 tokens by formula (0: it has none) and measured, and weights."""
    row = row_of(dataset, TOKENS)
    made: dict[str, dict[str, float]] = {}
    for name in presets:
        config = preset_named(name).model
        flops, weights = measured(dataset, config, row)
        made[name] = {
            "formula_gflops": round(config.visible_flops(TOKENS, TOKENS * TOKENS) / 1e9, 4),
            "measured_gflops": round(flops / 1e9, 4),
            "weights": weights,
        }
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Prints a table, and the same as JSON; see `command.run` for the exit codes."""
    parser = command.parser("model.flops", __doc__)
    parser.add_argument("--preset", nargs="+", default=list(PRESETS), help="default: all presets")

    def body(arguments: argparse.Namespace) -> Mapping[str, Any] | None:
        made = figures(FOODLOG, arguments.preset)
        lines = [
            f"{name:12} {one['formula_gflops']:9.3f} {one['measured_gflops']:9.3f} {one['weights']:13,}"
            for name, one in made.items()
        ]
        head = (
            f"{'preset':12} {'formula':>9} {'measured':>9} {'dense weights':>13}   GFLOPs at {TOKENS} tokens"
        )
        sys.stdout.write("\n".join([head, *lines]) + "\n")
        return made

    return command.run(parser, body, argv)


if __name__ == "__main__":
    sys.exit(main())
