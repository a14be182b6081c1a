"""How long it takes to build the samples of a day, against DuckDB, and how many bytes they are.

    python -m benchmarks.samples --impressions 1e5 1e6 1e7 [--rounds 2] [--out FILE]
    python -m benchmarks.samples --table benchmarks/results/bench_samples.json   # as in docs/samples.md

Both sides read the same Parquet files of foodlog's tables (`benchmarks/samples_events.py`), do the same
joins and lists (`benchmarks/samples_duckdb.py` has DuckDB's SQL) and write Parquet with zstd, by turns, in
one process run, on two threads each. Beside wall time stands CPU time, which
another load on the machine changes less; the ratio is given for both. Spark's session is up and has built a
day before; its time holds the Delta commit, the lease and all checks of the command. The results are
compared column by column. The sizes are those of the samples and of one flat row an impression with the
same features and sequences, in the order of time (as logs lie) and in the order of users (as it compresses
best); once for the short history of the timed days, once for one as long as the paper's.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import platform
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import samples_duckdb as bench_duckdb
from benchmarks.samples_events import BENCH_DS, World, write_tables
from spark_jobs.build_samples import samples_of, write_samples
from spark_jobs.contract import command, environment, locations
from spark_jobs.contract.features import Dataset
from spark_jobs.contract.foodlog import FOODLOG
from spark_jobs.contract.tables import sample_columns
from spark_jobs.lake.log import current_version, git_sha, open_table
from spark_jobs.lake.session import spark_session
from spark_jobs.samples.deliveries import Deliveries
from spark_jobs.samples.inputs import inputs_of

logger = logging.getLogger(__name__)
TABLES = ("events", "users", "items")
FLAT_UP_TO = 1_000_000
# |S| of 200 to 1000 and 50 to 200 candidates a user, on average: the lengths at which the paper trains.
LONG = World(impressions=100_000, candidates_a_user=125, history_a_user=600)
THREADS = 2
MEMORY_GB = {"spark": 6, "duckdb": 10}  # DuckDB's lists of 10^7 impressions do not fit into 6
IMPRESSIONS_A_PARTITION = 150_000
PIECES = 8  # of the flat rows: all of them, sorted, do not fit into memory


def bench(spark: Any, world: World, rounds: int, folder: Path) -> dict[str, Any]:
    """Times both sides at one size.

    Args:
        spark: Session.
        world: The events.
        rounds: How often each side builds the day.
        folder: Empty folder for everything.

    Returns:
        Seconds of each round, sizes in bytes, and how much of the results is equal.
    """
    environment.override({"MTGR_LAKE": str(folder)})
    partitions = max(4 * THREADS, world.impressions // IMPRESSIONS_A_PARTITION)
    spark.conf.set("spark.sql.shuffle.partitions", str(partitions))
    write_tables(spark, str(folder / FOODLOG.name), world)
    versions = {name: current_version(locations.table(FOODLOG.name, name)) for name in TABLES}
    ungated = Deliveries(allowed={"all": "a benchmark of events that were made for it"})
    files = {
        name: bench_duckdb.of_files(open_table(locations.table(FOODLOG.name, name)).file_uris())
        for name in TABLES
    }
    seconds: dict[str, list[float]] = {name: [] for name in ("spark", "spark_cpu", "duckdb", "duckdb_cpu")}
    for number in range(rounds):
        with (
            _clock(seconds, "spark"),
            inputs_of(spark, FOODLOG, [BENCH_DS], versions, ungated) as inputs,
            samples_of(inputs, FOODLOG, [BENCH_DS]) as samples_df,
        ):
            write_samples(samples_df, inputs, FOODLOG, BENCH_DS, {"round": number})
        with _clock(seconds, "duckdb"), _duckdb(folder) as connection:
            bench_duckdb.build(connection, files, FOODLOG, BENCH_DS, str(folder / "duckdb.parquet"))
        logger.info("%s: %s", world, {name: round(s[-1], 1) for name, s in seconds.items()})
    median = {name: statistics.median(s) for name, s in seconds.items()}
    samples = open_table(locations.table(FOODLOG.name, "samples")).file_uris()
    return {
        "impressions": world.impressions,
        "shuffle_partitions": partitions,
        "events": sum(
            open_table(locations.table(FOODLOG.name, "events")).get_add_actions()["num_records"].to_pylist()
        ),
        "seconds": {name: [round(one, 2) for one in s] for name, s in seconds.items()},
        "spark_over_duckdb": round(median["spark"] / median["duckdb"], 2),
        "spark_over_duckdb_cpu": round(median["spark_cpu"] / median["duckdb_cpu"], 2),
        **compare(samples, str(folder / "duckdb.parquet"), folder),
        **sizes(samples, folder, world.impressions),
    }


def compare(samples: list[str], other: str, folder: Path, dataset: Dataset = FOODLOG) -> dict[str, Any]:
    """Checks that both sides made the same rows.

    Raises:
        ValueError: They did not; names the columns.
    """
    with _duckdb(folder) as connection:
        source = {"spark": f"read_parquet({samples})", "duckdb": f"read_parquet('{other}')"}
        sums = {}
        for side, relation in source.items():
            columns = ["count(*)"]
            for name, kind in sample_columns(dataset):
                if name == "ds":
                    continue
                if "float" in kind:
                    own = f"list_sum({name})" if kind.startswith("array") else name
                    columns.append(f"sum(({own})::DOUBLE * (1 + user_id % 7))")
                else:
                    columns.append(f"sum(hash(user_id, {name})::HUGEINT)::VARCHAR")
            sums[side] = connection.execute(f"SELECT {', '.join(columns)} FROM {relation}").fetchone()
    names = ["rows", *(name for name, _ in sample_columns(dataset) if name != "ds")]
    different = [
        f"{name}: {one} != {other}"
        for name, one, other in zip(names, sums["spark"], sums["duckdb"], strict=True)
        if (abs(one - other) > 1e-6 * max(1.0, abs(other)) if isinstance(one, float) else one != other)
    ]
    if different:
        raise ValueError(f"the two sides made different samples: {'; '.join(different)}")
    return {"rows": sums["spark"][0], "equal_columns": len(names) - 1}


def sizes(samples: list[str], folder: Path, impressions: int) -> dict[str, Any]:
    """Bytes of the samples and, up to `FLAT_UP_TO` impressions, of flat rows."""
    own = sum(Path(file).stat().st_size for file in samples)
    made: dict[str, Any] = {"samples_bytes_a_million": round(own / impressions * 1e6)}
    if impressions > FLAT_UP_TO:
        return made
    lists = [n for n, kind in sample_columns(FOODLOG) if n.startswith(("candidate_", "label_"))]
    rest = [n for n, _ in sample_columns(FOODLOG) if n not in lists and n != "ds"]
    unnested = ", ".join(f"unnest({name}) AS {name}" for name in lists)
    with _duckdb(folder) as connection:
        lengths = connection.execute(
            "SELECT avg(len(static_time_ms)), avg(len(realtime_time_ms)), avg(len(label_click)) "
            f"FROM read_parquet({samples})"
        ).fetchone()
        made["mean_lengths"] = dict(
            zip(("static", "realtime", "candidate"), map(float, lengths), strict=True)
        )
        for name, order in (("time", "candidate_time_ms, user_id"), ("user", "user_id, candidate_time_ms")):
            first = order.split(",")[0]
            flat = f"SELECT {', '.join(rest)}, {unnested} FROM read_parquet({samples})"
            low, high = connection.execute(f"SELECT min({first}), max({first}) FROM ({flat})").fetchone()
            step, size, out = (high - low) // PIECES + 1, 0, folder / f"flat_{name}.parquet"
            for start in range(low, high + 1, step):
                connection.execute(
                    f"COPY (SELECT * FROM ({flat}) WHERE {first} BETWEEN {start} AND {start + step - 1} "
                    f"ORDER BY {order}) "
                    f"TO '{out}' (FORMAT parquet, COMPRESSION zstd)"
                )
                size += out.stat().st_size
                out.unlink()
            made[f"flat_by_{name}_bytes_a_million"] = round(size / impressions * 1e6)
            made[f"flat_by_{name}_over_samples"] = round(size / own, 1)
    return made


def extrapolated(points: list[dict[str, Any]], to: int) -> dict[str, Any]:
    """Spark's seconds at `to` impressions by the line nearest to all sizes, when there are three or more.

    The line is that of least squared relative distances; how far the sizes lie from it says whether time is
    linear.
    """
    if len(points) < 3:
        return {}
    sizes = np.array([point["impressions"] for point in points], float)
    made: dict[str, Any] = {"impressions": to}
    for name in ("spark", "spark_cpu"):
        seconds = np.array([statistics.median(point["seconds"][name]) for point in points])
        slope, start = np.polyfit(sizes, seconds, 1, w=1 / seconds)
        made[f"{name}_seconds"] = round(float(start + slope * to))
        made[f"{name}_microseconds_an_impression"] = round(float(slope) * 1e6, 2)
        made[f"{name}_off_line"] = round(float(np.max(np.abs((start + slope * sizes) / seconds - 1))), 3)
    made["how"] = f"line through {len(points)} sizes, off by at most {made['spark_off_line']:.1%}"
    return {"extrapolated": made}


def table(result: dict[str, Any]) -> str:
    """A written result as Markdown: a row a size, then the bytes of both histories."""
    lines = [
        "| impressions | events | Spark s | DuckDB s | Spark / DuckDB | of CPU time |",
        "|---|---|---|---|---|---|",
    ]
    for point in result["points"]:
        times = (_spread(point["seconds"][side]) for side in ("spark", "duckdb"))
        ratios = (f"{point[name]:.2f}" for name in ("spark_over_duckdb", "spark_over_duckdb_cpu"))
        lines.append(
            f"| {' | '.join([f'{point[n]:,}' for n in ('impressions', 'events')] + [*times, *ratios])} |"
        )
    if made := result.get("extrapolated"):
        lines.append(
            f"| {made['impressions']:,} ({made['how']}) | | {made['spark_seconds']:,} (not measured) | | | |"
        )
    lines += [
        "",
        "| history: mean S, R, candidates | samples | flat, by time | flat, by user | by time / samples |",
        "|---|---|---|---|---|",
    ]
    for point in (result["long_history"], *result["points"]):
        if "mean_lengths" in point:
            lengths = ", ".join(f"{length:.0f}" for length in point["mean_lengths"].values())
            sizes_mb = [
                f"{point[f'{name}_bytes_a_million'] / 1e6:,.0f} MB"
                for name in ("samples", "flat_by_time", "flat_by_user")
            ]
            ratio = f"{point['flat_by_time_over_samples']:.1f}"
            lines.append(f"| {' | '.join([lengths, *sizes_mb, ratio])} |")
    versions = ", ".join(f"{name} {number}" for name, number in result["versions"].items())
    load = result["load_average_at_end"][-1]
    return "\n".join(
        [*lines, "", f"{result['machine']}, {versions}, commit {result['commit'][:12]}, load average {load}."]
    )


def _spread(seconds: list[float]) -> str:
    middle = f"{statistics.median(seconds):.1f}"
    return middle if len(seconds) == 1 else f"{middle} ({min(seconds):.1f} to {max(seconds):.1f})"


@contextlib.contextmanager
def _clock(seconds: dict[str, list[float]], name: str) -> Iterator[None]:
    wall, cpu = time.perf_counter(), _cpu_seconds()
    yield
    seconds[name].append(time.perf_counter() - wall)
    seconds[f"{name}_cpu"].append(_cpu_seconds() - cpu)


def _cpu_seconds() -> float:
    """CPU time of this process and of the JVM that it started."""
    ticks = 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            name, _, rest = stat.read_text(encoding="utf-8").rpartition(")")
            fields = rest.split()
            if "java" in name and int(fields[1]) == os.getpid():
                ticks += int(fields[11]) + int(fields[12])
    return time.process_time() + ticks / os.sysconf("SC_CLK_TCK")


def _duckdb(folder: Path) -> Any:
    import duckdb

    connection = duckdb.connect()
    connection.execute(f"SET threads = {THREADS}")
    connection.execute(f"SET memory_limit = '{MEMORY_GB['duckdb']}GB'")
    connection.execute(f"SET temp_directory = '{folder / 'spill'}'")
    return connection


def _run(arguments: argparse.Namespace) -> Mapping[str, Any] | None:
    if arguments.table:
        sys.stdout.write(table(json.loads(Path(arguments.table).read_text(encoding="ascii"))) + "\n")
        return None
    environment.override({"SPARK_MASTER": f"local[{THREADS}]"})
    collector = "spark.driver.extraJavaOptions=-XX:+UseParallelGC -Duser.timezone=UTC"
    environment.set_defaults({"SPARK_CONF": f"spark.driver.memory={MEMORY_GB['spark']}g;{collector}"})
    spark = spark_session("bench_samples")
    points = []
    root = Path(tempfile.mkdtemp(prefix="bench_samples_"))
    try:
        long = bench(spark, LONG, 1, root / "long")
        shutil.rmtree(root / "long")
        for impressions in sorted(int(n) for n in arguments.impressions):
            world = World(impressions=impressions)
            points.append(bench(spark, world, arguments.rounds, root / str(impressions)))
            shutil.rmtree(root / str(impressions))
    finally:
        shutil.rmtree(root, ignore_errors=True)
        spark.stop()
    result = {
        "points": points,
        "long_history": long,
        **extrapolated(points, 10**8),
        "threads": THREADS,
        "memory_gb": MEMORY_GB,
        "load_average_at_end": [round(load, 1) for load in os.getloadavg()],
        "versions": {name: version(name) for name in ("pyspark", "delta-spark", "duckdb")},
        "python": platform.python_version(),
        "machine": f"{os.cpu_count()} CPUs, {platform.machine()}",
        "spark_conf": environment.spark_conf(),
        "commit": git_sha(),
    }
    Path(arguments.out).parent.mkdir(parents=True, exist_ok=True)
    Path(arguments.out).write_text(json.dumps(result, indent=2) + "\n", encoding="ascii")
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmark and writes its JSON; see `command.run` for the exit codes."""
    parser = command.parser("benchmarks.samples", __doc__)
    parser.add_argument("--impressions", type=float, nargs="+", default=[1e5, 1e6, 1e7])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--out", default="benchmarks/results/bench_samples.json")
    parser.add_argument("--table", help="print a written result as Markdown and do nothing else")
    return command.run(parser, _run, argv)


if __name__ == "__main__":
    sys.exit(main())
