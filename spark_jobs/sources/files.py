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


def read_json_lines(reader: DataFrameReader, path: str, schema: str, what: str) -> DataFrame:
    """Reads files of JSON lines, telling apart what is not one whole object of the given fields and types.

    Spark's parser stops at the end of the first object of a line and drops what follows. Here a line of
    several objects, as files make that are joined without a newline between them, is read as several records;
    an array, or anything behind an object, is broken.

    Args:
        reader: `spark.read`, with `pathGlobFilter` and the like where wanted.
        path: File or folder.
        schema: Fields with their Spark SQL types.
        what: Names the dataset, the day and the path, for the error.

    Returns:
        The typed columns, `file`, `record` and `is_broken`, see `read_csv`. Empty lines are no records.

    Raises:
        FileNotFoundError: The path does not exist.
    """
    lines_df = present(lambda: reader.text(path), what)
    value = F.col("value")
    parts = F.when(_is_one_object(value), F.array(value)).otherwise(F.split(value, r"(?<=\})\s*(?=\{\s*\")"))
    records_df = lines_df.where(F.trim(value) != "").select(
        F.explode(parts).alias("record"), F.col("_metadata.file_path").alias("file")
    )
    options = {"mode": "PERMISSIVE", "columnNameOfCorruptRecord": "_corrupt_record"}
    row = F.from_json("record", f"{schema}, _corrupt_record string", options)
    # The parser would put the same sign for every byte that is no UTF-8: two ids could become one.
    is_text = F.is_valid_utf8("record")
    is_whole = is_text & _is_one_object(F.col("record")) & F.col("row._corrupt_record").isNull()
    return (
        records_df.withColumn("row", row)
        .withColumn("is_broken", F.col("row").isNull() | ~is_whole)
        .select("row.*", "file", "record", "is_broken")
        .drop("_corrupt_record")
    )


def _is_one_object(text: Column) -> Column:
    """Whether a line is a JSON object and nothing else; it is parsed only where braces leave a doubt."""
    is_flat = text.rlike(r"^\s*\{[^{}]*\}\s*$")
    listed = F.from_json(F.concat(F.lit("["), text, F.lit("]")), "array<string>")
    is_one = text.rlike(r"^\s*\{") & F.coalesce(F.size(listed) == 1, F.lit(False))
    return F.when(is_flat, F.lit(True)).otherwise(is_one)


def read_parquet(reader: DataFrameReader, path: str, types: Mapping[str, str], what: str) -> DataFrame:
    """Reads Parquet files, whatever number types they have; columns that `types` does not name are left out.

    Args:
        reader: `spark.read`, with `pathGlobFilter` and the like where wanted.
        path: File or folder.
        types: Wanted columns with their Spark SQL types.
        what: Names the dataset, the day and the path, for the errors.

    Returns:
        The typed columns, `file`, `record` and `is_broken`, see `read_csv`.

    Raises:
        FileNotFoundError: The path does not exist.
        ValueError: A column is missing, or of a type that cannot become the wanted one.
    """
    rows_df = present(lambda: reader.parquet(path), what)
    has = dict(rows_df.dtypes)
    for name, kind in types.items():
        if name not in has:
            raise ValueError(f"{path} has no column {name}; it has {', '.join(has)}")
        if not castable(has[name], kind):
            raise ValueError(f"{path}: column {name} is {has[name]}, {kind} is wanted")
    values = {name: F.col(name).try_cast(kind) for name, kind in types.items()}
    mistyped = (F.col(name).isNotNull() & value.isNull() for name, value in values.items())
    return rows_df.select(
        *(value.alias(name) for name, value in values.items()),
        F.col("_metadata.file_path").alias("file"),
        F.to_json(F.struct(*types)).alias("record"),
        reduce(Column.__or__, mistyped).alias("is_broken"),
    )


_OTHER = ("array", "map", "struct", "binary", "interval", "timestamp", "date", "variant")


def castable(has: str, wanted: str) -> bool:
    """Whether values of a type can be taken for another without guessing at their meaning."""
    return has == wanted or not (has.startswith(_OTHER) or wanted.startswith(_OTHER))


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
