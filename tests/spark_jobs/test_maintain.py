"""What maintenance would free is said without Spark, and a budget that is not met is refused by name."""

import json
import os
import time

import pyarrow
import pytest
from deltalake import write_deltalake

from spark_jobs import maintain
from spark_jobs.lake.log import open_table

OLD_S = time.time() - 8 * 86_400


@pytest.fixture
def samples(lake):
    """Three versions of a table, and a file of an aborted write that is older than a week."""
    uri = lake / "foodlog" / "samples"
    for number in range(3):
        rows = pyarrow.table({"x": range(1000 * (number + 1)), "ds": ["2026-03-01"] * 1000 * (number + 1)})
        write_deltalake(uri, rows, partition_by=["ds"], mode="overwrite")
    orphan = uri / "ds=2026-03-01" / "part-aborted.parquet"
    orphan.write_bytes(b"0" * 5000)
    os.utime(orphan, (OLD_S, OLD_S))
    return uri


def _tree(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_a_dry_run_says_what_would_be_freed_and_changes_nothing(samples, lake, capsys):
    before = _tree(lake)
    assert maintain.main(["--dataset", "foodlog", "--dry-run"]) == 0
    told = json.loads(capsys.readouterr().out)
    size = sum(path.stat().st_size for path in samples.rglob("*") if path.is_file())
    table = {"before": 1, "after": 1, "version": 2, "freed": 5000, "left": size - 5000}
    assert told == {"tables": {"samples": table}, "freed": 5000, "left": size - 5000, "dry_run": True}
    assert _tree(lake) == before
    # Delta's own word for it: what a vacuum then removes is what was said.
    removed = open_table(str(samples)).vacuum(retention_hours=168, dry_run=False, full=True)
    assert [path.rpartition("/")[2] for path in removed] == ["part-aborted.parquet"]


@pytest.mark.usefixtures("samples")
def test_tables_beyond_their_budget_are_refused_by_name(capsys):
    assert maintain.main(["--dataset", "foodlog", "--dry-run", "--budget", "1000000000"]) == 0
    assert maintain.main(["--dataset", "foodlog", "--dry-run", "--budget", "1000"]) == 1
    refused = json.loads(capsys.readouterr().out.splitlines()[-1])["refused"]
    assert refused.startswith("the tables of foodlog hold ")
    assert "--budget 1000 (samples " in refused


def test_a_retention_shorter_than_a_training_is_refused_dry_too(lake):
    assert maintain.main(["--dataset", "foodlog", "--dry-run", "--retain-hours", "1"]) == 1
