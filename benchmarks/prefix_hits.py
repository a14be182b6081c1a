"""How often a request finds its prefix kept: a replay of a day's requests through the cache, by its budget.

    python -m benchmarks.prefix_hits --dataset foodlog --ds 2026-03-03 --out FILE

Requests of the samples of the day come in the order of their times; each asks for the prefix that its profile
and static behaviours name, as the server does (`scorers.prefix_keys`). Pages are those of MTGR large in half
precision. Nothing is computed: hits hang on the stream and the budget alone.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from model.config.presets import preset_named
from model.data.encoder import SampleEncoder, arrow_schema
from model.data.reader import SamplesTable
from model.data.stored import Array
from model.rankers.mtgr import MtgrConfig
from model.serving.golden import requests_of
from model.serving.prefixes import PrefixCache
from model.serving.scorers import prefix_keys
from spark_jobs.contract import command
from spark_jobs.contract.features import Dataset, Group
from spark_jobs.lake.log import git_sha

PRESET = "large"
BUDGETS_MB = (16, 64, 256, 1024)
_CHUNK = 500  # requests that are encoded at once


def stream_of(dataset: Dataset, ds: str) -> tuple[int, list[bytes], Array]:
    """Version of the samples; of the day's requests, in order, the prefixes' names and lengths."""
    table = SamplesTable(dataset)
    windows = table.sample(ds, 10**9, arrow_schema(dataset).names)
    rows, _ = requests_of(windows)
    times = [of_row[0] for of_row in rows.column("candidate_time_ms").to_pylist()]
    rows = rows.take(np.argsort(times, kind="stable"))
    encoder = SampleEncoder(dataset, 1000)
    keys: list[bytes] = []
    lengths: list[Array] = []
    for first in range(0, rows.num_rows, _CHUNK):
        batch = encoder.encode(rows.slice(first, _CHUNK))
        keys += prefix_keys(batch)
        lengths.append(batch.lengths[Group.STATIC].numpy() + batch.num_profile)
    return table.version, keys, np.concatenate(lengths)


def replayed(keys: Sequence[bytes], lengths: Array, budgets_mb: Sequence[int]) -> Iterator[dict[str, Any]]:
    """What the cache does with the stream, by its budget."""
    model = preset_named(PRESET).model
    assert isinstance(model, MtgrConfig)
    for budget in budgets_mb:
        cache = PrefixCache(
            budget << 20,
            num_blocks=model.num_blocks,
            dim=model.d_model,
            dtype=torch.bfloat16,
            device=torch.device("meta"),
        )
        for key, length in zip(keys, lengths.tolist(), strict=True):
            if cache.get(key) is None:
                cache.put(key, length)
        counts = cache.counts
        yield {"budget_mb": budget, **vars(counts), "hit_rate": round(counts.hits / len(keys), 4)}


def _run(arguments: argparse.Namespace) -> Mapping[str, Any]:
    dataset = arguments.dataset
    version, keys, lengths = stream_of(dataset, arguments.ds)
    lines = list(replayed(keys, lengths, BUDGETS_MB))
    summary = {f"prefix_hit_rate_{line['budget_mb']}_mb": line["hit_rate"] for line in lines}
    report = {
        "summary": {**summary, "prefix_hit_rate_at_most": round(1 - len(set(keys)) / len(keys), 4)},
        "stream": {
            "dataset": dataset.name,
            "ds": arguments.ds,
            "samples_version": version,
            "requests": len(keys),
            "prefixes": len(set(keys)),
            "mean_tokens": round(float(lengths.mean()), 1),
        },
        "preset": PRESET,
        "commit": git_sha(),
        "results": lines,
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(report, indent=1) + "\n")
    return {"out": str(arguments.out), "summary": report["summary"]}


def told(report: Mapping[str, Any]) -> str:
    """A result as a sentence."""
    stream = report["stream"]
    rates = ", ".join(f"{line['hit_rate']:.1%} with {line['budget_mb']} MB" for line in report["results"])
    return (
        f"Of {stream['requests']} requests of {stream['ds']}, by {stream['prefixes']} prefixes of "
        f"{stream['mean_tokens']} tokens on average, {report['summary']['prefix_hit_rate_at_most']:.1%} can "
        f"find theirs at most; {rates} (MTGR {report['preset']}, half precision)."
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Replays and writes; see `command.run` for the exit codes."""
    parser = command.parser("benchmarks.prefix_hits", __doc__)
    command.add_dataset(parser)
    command.add_day(parser, help="the day whose requests are replayed")
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    return command.run(parser, _run, argv)


if __name__ == "__main__":
    sys.exit(main())
