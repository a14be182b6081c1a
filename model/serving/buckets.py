"""Sizes of batches that an engine captures: for one request and more, as long as those that are expected.

The sum of a group's lengths over `n` requests lies within three deviations of `n` means nearly always; a
bucket of that size leaves fewer places empty than one for the longest requests. One request alone has a
bucket for whatever the model reads, too. What fits none is computed without a graph, and counted.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from model.data.batch import JaggedBatch
from model.serving.collate import Bucket
from spark_jobs.contract.features import MAX_REALTIME, Group

_DEVIATIONS = 3
_ROUNDED_TO = 16


def buckets_for(expected: JaggedBatch, max_static: int, max_rows: int, max_tokens: int) -> list[Bucket]:
    """Buckets for batches of 1, 2, 4, ... requests like those that are expected.

    Args:
        expected: Requests, such as a package's golden ones; at least one.
        max_static: Static behaviours that the model reads.
        max_rows: Greatest number of requests of a batch.
        max_tokens: Greatest number of tokens of a batch of more than one request.
    """
    lengths = {group: of_rows.numpy() for group, of_rows in expected.lengths.items()}
    greatest = {group: int(of_rows.max()) for group, of_rows in lengths.items()}
    largest = {
        Group.STATIC: max(max_static, greatest[Group.STATIC]),
        Group.REALTIME: max(MAX_REALTIME, greatest[Group.REALTIME]),
        Group.CANDIDATE: greatest[Group.CANDIDATE],
    }
    buckets = [_bucket(1, largest)]
    rows = 1
    while rows <= max_rows:
        sums = {
            group: min(
                rows * greatest[group],
                rows * of_rows.mean() + _DEVIATIONS * math.sqrt(rows) * float(np.std(of_rows)),
            )
            for group, of_rows in lengths.items()
        }
        if rows > 1 and sum(sums.values()) + rows * expected.num_profile > max_tokens:
            break
        buckets.append(_bucket(rows, sums))
        rows *= 2
    return list(dict.fromkeys(buckets))


def _bucket(rows: int, sums: Mapping[Group, float]) -> Bucket:
    static, realtime, candidates = (
        max(_ROUNDED_TO, _ROUNDED_TO * math.ceil(sums[group] / _ROUNDED_TO))
        for group in (Group.STATIC, Group.REALTIME, Group.CANDIDATE)
    )
    return Bucket(rows=rows, static=static, realtime=realtime, candidates=candidates)
