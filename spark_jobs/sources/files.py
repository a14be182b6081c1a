"""Reading files that may be absent: one clear error instead of Spark's, on any file system of Spark's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import reduce

from pyspark.errors import AnalysisException
from pyspark.sql import Column, DataFrame, DataFrameReader
from pyspark.sql import functions as F  # noqa: N812 - Spark's own convention


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


def read_csv(reader: DataFrameReader, path: str, types: Mapping[str, str], what: str) -> DataFrame:
    """Reads CSV files with a header line, telling apart the lines that are not of the given types.

    Spark parses of a CSV line only what a query asks for, so that a line would be broken for one query and
    good for another. Here every column is read as a string and cast by an expression that all queries share.

    Args:
        reader: `spark.read`, with `pathGlobFilter` and the like where wanted.
        path: File or folder.
        types: All columns of the file, in its order, with their Spark SQL types.
        what: Names the dataset, the day and the path, for the error.

    Returns:
        The typed columns and `file`; `record`, the line (as JSON where its columns could be told apart); and
        `is_broken`, whether a value is not of its type or the line has too few or too many.

    Raises:
        FileNotFoundError: The path does not exist.
        pyspark.errors.PySparkException: The header differs from `types`; when the lines are read.
    """
    schema = ", ".join(f"{name} string" for name in types)
    options = {"header": True, "enforceSchema": False, "columnPruning": False}
    reader = reader.options(**options, mode="PERMISSIVE", columnNameOfCorruptRecord="_corrupt_record")
    lines_df = present(lambda: reader.csv(path, schema=f"{schema}, _corrupt_record string"), what)
    values = {name: F.col(name).try_cast(kind) for name, kind in types.items()}
    mistyped = (F.col(name).isNotNull() & value.isNull() for name, value in values.items())
    return lines_df.select(
        *(value.alias(name) for name, value in values.items()),
        F.col("_metadata.file_path").alias("file"),
        F.coalesce("_corrupt_record", F.to_json(F.struct(*types))).alias("record"),
        reduce(Column.__or__, mistyped, F.col("_corrupt_record").isNotNull()).alias("is_broken"),
    )
