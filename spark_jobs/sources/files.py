"""Reading files that may be absent: one clear error instead of Spark's, on any file system of Spark's."""

from __future__ import annotations

from collections.abc import Callable

from pyspark.errors import AnalysisException
from pyspark.sql import DataFrame


def present(read: Callable[[], DataFrame], what: str) -> DataFrame:
    """Calls `read` and makes Spark resolve the paths, without running a job.

    Args:
        read: Builds the DataFrame.
        what: Names the dataset, the day and the path, for the error.

    Raises:
        FileNotFoundError: A path does not exist.
    """
    try:
        df = read()
        _ = df.schema  # Spark Connect resolves nothing before it is asked
    except AnalysisException as error:
        if error.getCondition() != "PATH_NOT_FOUND":
            raise
        raise FileNotFoundError(what) from error
    return df


def not_empty(df: DataFrame, what: str) -> DataFrame:
    """Returns `df` when it has a row, at the price of one small job.

    Raises:
        FileNotFoundError: It has none: with `pathGlobFilter`, Spark reads "no such file" as "no rows".
    """
    if df.isEmpty():
        raise FileNotFoundError(what)
    return df
