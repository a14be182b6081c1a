"""What `make new-dataset` writes from a sample: it passes lint, its test fails until all is filled in."""

import gzip
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from scripts import new_dataset
from scripts.scaffolding.sample import logs_in
from spark_jobs.contract.command import CommandError, UsageError

ROOT = Path(__file__).resolve().parents[2]
DAY = "2026-03-01"
FILLED = {
    # Spark's way of each answer, as somebody writes it who knows the log.
    'F.lit(None).cast("string").alias("event_id")': 'F.col("event").alias("event_id")',
    'F.lit(None).cast("string").alias("event_type")': 'F.lit("impression").alias("event_type")',
    'F.lit(None).cast("bigint").alias("user_id")': 'F.col("shopper").alias("user_id")',
    'F.lit(None).cast("bigint").alias("time_ms")': 'F.col("ms").alias("time_ms")',
}


@pytest.fixture
def sample(tmp_path):
    """A day of a grocery's logs: CSV with a broken line, Parquet parts, zipped JSON lines."""
    root = tmp_path / "sample"
    (root / DAY).mkdir(parents=True)
    lines = ["event,shopper,item_id,ms,price,note"]
    lines += [
        f"e{n},{n},{n + 10},{1_772_355_600_000 + n},{n}.5,{'' if n % 2 else 'gift'}" for n in range(100)
    ]
    (root / DAY / "events.csv").write_text(
        "\n".join([*lines, "e100,two,50,1772355600000,1,", "torn,line"]) + "\n"
    )
    folder = root / "products" / f"ds={DAY.replace('-', '')}"
    folder.mkdir(parents=True)
    table = pyarrow.table({"product": [1], "cents": [9.5], "tags": [["a"]], "since": [None]})
    parquet.write_table(table, folder / "part-00000.parquet")
    users = [{"shopper": n, "member": n % 2 == 0, "score": n / 2 if n else 0} for n in range(100)]
    text = "\n".join([*map(json.dumps, users), "{not json"])
    (root / DAY / "users_1.jsonl.gz").write_bytes(gzip.compress(text.encode()))
    (root / "readme.txt").write_text("no log")
    return root


def test_names_types_and_places_are_read_from_the_files(sample):
    logs = {log.name: log for log in logs_in(sample)}
    assert {name: (log.form, log.path, log.day) for name, log in logs.items()} == {
        "events": ("csv", "{ds}/events.csv", DAY),
        "products": ("parquet", "products/ds={nodash}", DAY),
        "users": ("json", "{ds}/users_*.jsonl.gz", DAY),
    }
    assert list(logs["events"].columns.items()) == [
        ("event", "string"), ("shopper", "bigint"), ("item_id", "bigint"), ("ms", "bigint"),
        ("price", "double"), ("note", "string"),
    ]  # fmt: skip
    assert logs["users"].columns == {"shopper": "bigint", "member": "boolean", "score": "double"}
    assert (logs["products"].columns["cents"], logs["products"].left_out) == ("double", {"tags": "array"})


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("Grocery", UsageError, "NAME: .*'Grocery'"),
        ("lake", UsageError, "NAME: .*'lake'"),
        ("kuairand", CommandError, "kuairand.py exists"),
    ],
)
def test_a_name_that_cannot_be_is_refused_before_anything_is_written(sample, name, error, message):
    with pytest.raises(error, match=message):
        new_dataset.write(name, sample)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("notes.txt", "x", "has no file that ends in .csv"),
        ("a.csv", "first name,b\n1,2\n", "column 'first name' is no name in SQL"),
        ("a.jsonl", "nothing\n", "a.jsonl cannot be read as json"),
        ("a.parquet", "nothing\n", "a.parquet cannot be read as parquet"),
    ],
)
def test_a_sample_that_says_nothing_names_the_file(tmp_path, file, content, message):
    (tmp_path / file).write_text(content)
    with pytest.raises(CommandError, match=message):
        logs_in(tmp_path)


@pytest.fixture
def repository(tmp_path, sample):
    """The repository with what was written."""
    repository = tmp_path / "repository"
    shutil.copytree(ROOT / "spark_jobs", repository / "spark_jobs")
    (repository / "tests").mkdir()
    for file in ("pyproject.toml", "tests/conftest.py"):
        shutil.copy(ROOT / file, repository / file)
    new_dataset.write("grocery", sample, repository)
    return repository


def _python(repository, *words):
    return subprocess.run(
        [sys.executable, "-m", *words],
        cwd=repository,
        env={**os.environ, "PYTHONPATH": str(repository)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_what_is_written_passes_lint_and_its_test_names_what_is_left(repository):
    for words in (("check", "."), ("format", "--check", ".")):
        done = _python(repository, "ruff", *words)
        assert done.returncode == 0, done.stdout
    written = _python(repository, "pytest", "-q", "tests/spark_jobs/test_grocery.py", "-k", "nothing_is_left")
    assert written.returncode == 1
    left = [line for line in written.stdout.splitlines() if line.startswith("E ") and "FILL IN" in line]
    marked = sum(
        path.read_text().count("FILL IN") for path in (repository / "spark_jobs").rglob("grocery.py")
    )
    assert len(left) >= marked > 10
    assert any("spark_jobs/sources/grocery.py:" in line and "whom it happened to" in line for line in left)
    # The declaration is one that can be: half filled in, it keeps no other dataset from running.
    known = "from spark_jobs.contract.datasets import DATASETS; print(*DATASETS)"
    done = subprocess.run(
        [sys.executable, "-c", known], cwd=repository, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["foodlog", "grocery", "journey", "kuairand"]


@pytest.mark.slow
def test_filled_in_it_reads_the_sample_and_before_that_it_says_what_is_null(repository):
    test = ("pytest", "-q", "tests/spark_jobs/test_grocery.py")
    done = _python(repository, *test, "-k", "becomes_events")
    assert done.returncode == 1, done.stdout
    assert (
        "event_id of 100 of 100 events is null: see _events in spark_jobs/sources/grocery.py" in done.stdout
    )
    for path in (repository / "spark_jobs").rglob("grocery.py"):
        text = path.read_text()
        for blank, answer in FILLED.items():
            text = text.replace(blank, answer)
        path.write_text(text.replace("FILL IN", "decided:"))
    done = _python(repository, *test)
    assert done.returncode == 0, done.stdout
