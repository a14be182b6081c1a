"""How large embedding tables are: the model's choice, which a run keeps in `config.json`.

The declaration says which features share a table and how many values a category has. Hash buckets of ids and
the widths are chosen here, by rule or by an entry of `SIZES`; what a ranker's config names itself goes first.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from spark_jobs.contract.features import Dataset, Kind

ID = (100_000, 32)  # rows (hash buckets) and width of an id's table without an entry
CATEGORY_WIDTH = 8
LOW_CARDINALITY = 4096


@dataclass(frozen=True, kw_only=True)
class TableSize:
    """Size of an embedding table.

    Args:
        rows: Hash buckets of ids, or the number of a category's values.
        width: Embedding width.

    Raises:
        ValueError: One of them is too small.
    """

    rows: int
    width: int

    def __post_init__(self) -> None:
        if self.rows < 2 or self.width < 1:
            raise ValueError(f"a table of {self.rows} rows and width {self.width}: use at least 2 and 1")


def _size(rows: int, width: int) -> TableSize:
    return TableSize(rows=rows, width=width)


SIZES: Mapping[str, Mapping[str, TableSize]] = {
    "foodlog": {
        "cell": _size(10_000, 16),
        "merchant_id": _size(20_000, 32),
        "cuisine": _size(32, 16),
    },
    "kuairand": {
        "user_id": _size(50_000, 32),
        **{f"onehot_feat{i}": _size(2_000, 8) for i in range(18)},
        "item_id": _size(20_000, 32),
        "author_id": _size(20_000, 16),
        "music_id": _size(20_000, 16),
        "tag": _size(256, 16),
    },
}


def table_sizes(
    dataset: Dataset, chosen: Mapping[str, TableSize], low_cardinality_width: int
) -> dict[str, TableSize]:
    """Size of every embedding table of a dataset, in declared order.

    Args:
        dataset: Declares which tables there are.
        chosen: Sizes that the config names; other tables follow `SIZES`, and the rule where that has none.
        low_cardinality_width: Least width of tables with at most 4096 rows.

    Raises:
        ValueError: A table is named that the dataset has not, or a category's with other rows than values.
    """
    values = {f.table: f.cardinality for f in dataset.features if f.kind is not Kind.NUMBER}
    named = {**SIZES.get(dataset.name, {}), **chosen}
    if unknown := sorted(set(chosen) - set(values)):
        raise ValueError(
            f"dataset {dataset.name!r} has no embedding table {unknown[0]!r}; it has {', '.join(values)}"
        )
    sizes = {}
    for table, cardinality in values.items():
        rule = _size(cardinality, CATEGORY_WIDTH) if cardinality else _size(*ID)
        size = named.get(table, rule)
        if cardinality and size.rows != cardinality:
            raise ValueError(
                f"embedding table {table!r} has {size.rows} rows, but its category {cardinality} values in "
                f"dataset {dataset.name!r}; give it {cardinality} rows"
            )
        low = low_cardinality_width if size.rows <= LOW_CARDINALITY else 0
        sizes[table] = _size(size.rows, max(size.width, low))
    return sizes
