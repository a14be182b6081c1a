"""Scores that a model is read against: what an item's past says alone, and what no model can beat.

The item baselines are the samples' own point-in-time rates (declared statistics whose keys include the item),
so that they know exactly what the model knows; the oracle is the simulator's true probability.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from deltalake import DeltaTable
from deltalake.exceptions import TableNotFoundError

from spark_jobs.contract import locations
from spark_jobs.contract.features import Dataset, Measure, Owner
from spark_jobs.lake.rows import Rows

Array = npt.NDArray[Any]
_TASK = {Measure.CTR: "ctr", Measure.CTCVR: "ctcvr"}


def item_baselines(dataset: Dataset, table: pa.Table) -> dict[str, dict[str, Array]]:
    """Scores `<task>_frozen` and `<task>_live` by baseline, one for each set of keys that includes the item.

    `item_mean` is the item's smoothed rate over the longest declared window; `item_tab_mean` the one by item
    and tab, and so on. Items never seen have the rate 0.
    """
    longest: dict[str, dict[str, tuple[int, str]]] = {}
    for feature in dataset.of(Owner.ITEM_STATISTIC):
        statistic = feature.statistic
        if statistic is None or "item_id" not in statistic.keys or statistic.measure not in _TASK:
            continue
        name = "_".join(key.removesuffix("_id") for key in statistic.keys) + "_mean"
        task = _TASK[statistic.measure]
        best = longest.setdefault(name, {})
        best[task] = max(best.get(task, (0, "")), (statistic.days, f"candidate_{feature.name}"))
    return {
        name: {
            f"{task}_{state}": table.column(column).combine_chunks().flatten().to_numpy()
            for task, (_, column) in best.items()
            for state in ("frozen", "live")
        }
        for name, best in longest.items()
        if set(best) == set(_TASK.values())
    }


def oracle(dataset: Dataset, ds: str, impression_id: Array, knows: str = "all") -> dict[str, Array] | None:
    """True probabilities of a simulated day, in the order of `impression_id`; None where there is no oracle.

    Args:
        dataset: Whose oracle.
        ds: The day.
        impression_id: Of the rows.
        knows: What the live ones know: `all`, or `session`, as much as the session's clicks have told.

    Raises:
        ValueError: The oracle lacks an impression, or was written by a version that had no such step.
    """
    try:
        table = DeltaTable(locations.table(dataset.name, "oracle"))
    except TableNotFoundError:
        return None
    parts = list(Rows(table).batches(ds))
    if not parts:
        return None
    truth = pa.Table.from_batches(parts)
    known = truth.column("impression_id").to_numpy()
    order = np.argsort(known)
    place = np.searchsorted(known, impression_id, sorter=order).clip(max=len(known) - 1)
    rows = order[place]
    if (known[rows] != impression_id).any():
        lacking = impression_id[known[rows] != impression_id]
        raise ValueError(f"the oracle of {ds} lacks {len(lacking)} impressions, e.g. {lacking[0]}")
    step = "" if knows == "all" else f"_{knows}"
    if f"p_click{step}" not in truth.column_names:
        raise ValueError(f"the oracle of {ds} has no column p_click{step}: simulate its days again")
    columns = {"ctr_live": f"p_click{step}", "ctcvr_live": f"p_conversion{step}",
               "ctr_frozen": "p_click_frozen", "ctcvr_frozen": "p_conversion_frozen"}  # fmt: skip
    return {name: truth.column(column).to_numpy()[rows] for name, column in columns.items()}
