"""The same DAGs on a deployment: Postgres, Celery, an object store, a Spark cluster.

Processes, variables and versions are those of `deploy/compose.yaml`, see `deployment.py`. Three days give the
tables, models and champion that an embedded run of the same logs gives. A quarter of an
hour and 8 GB: `make test-slow`.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.embedded.settings import PREPARED
from tests.end_to_end.chain import table_hash
from tests.end_to_end.deployment import ROOT, deployed
from tests.spark_servers import free_port

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]
DAYS = ("2026-03-01", "2026-03-02", "2026-03-03")
APP = ("--users", "300", "--impressions-a-day", "12000")
TABLES = ("events", "items", "users", "quarantine", "samples")
VERSIONS = """
import json
from model.registry.versions import aliased, versions
told = {v.version: [v.preset, v.ds, v.seen_days, v.digest, v.tags["decision"]] for v in versions("foodlog")}
print(json.dumps([told, aliased("foodlog", "champion").version]))
"""
# Commits one-row partitions of one table, by a Spark of its own.
COMMITS = """
import sys
from spark_jobs.lake.session import spark_session
from spark_jobs.lake.writer import replace_partition
uri, name, number = sys.argv[1], sys.argv[2], int(sys.argv[3])
df = spark_session("commits").range(1).selectExpr("id AS n")
columns = [("n", "bigint"), ("ds", "string")]
for ds in (f"{name}{part}" for part in range(number)):
    day_df = df.selectExpr("n", f"'{ds}' AS ds")
    replace_partition(day_df, uri, {"ds": ds}, columns=columns, partition_by=["ds"], stage="test")
"""


@pytest.fixture(scope="session")
def tools():
    """What `deploy/fetch.sh` brings; kept beside the environment."""
    folder = Path(os.environ.get("DEPLOYMENT_TOOLS", PREPARED / "deployment"))
    subprocess.run([ROOT / "deploy" / "fetch.sh", "all", folder], check=True, timeout=1800)
    return folder


@pytest.fixture(scope="module")
def embedded(tmp_path_factory):
    """Three days by `make run`; its raw logs are kept apart for the deployments."""
    folder = tmp_path_factory.mktemp("embedded")
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("AIRFLOW", "MTGR_", "SPARK_", "AWS_"))}
    ports = {name: str(free_port()) for name in ("AIRFLOW_PORT", "MLFLOW_PORT", "SPARK_PORT", "DOCS_PORT")}
    settings = {"FROM": DAYS[0], "TO": DAYS[-1], "SIMULATE": "0", "MTGR_VAR": str(folder / "var")}
    environment = {**kept, **ports, **settings, "PYTHONPATH": str(ROOT)}

    def python(*arguments):
        done = subprocess.run(
            [sys.executable, *arguments],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    python("-m", "spark_jobs.simulate", "--from", DAYS[0], "--to", DAYS[-1], *APP)
    shutil.copytree(folder / "var" / "lake" / "foodlog", folder / "logs")
    python("-m", "scripts.run")
    return folder, _state(folder / "var" / "lake", python("-c", VERSIONS))


def _state(lake, versions):
    # `quarantine` alone says from which file a record is: a path here, a URI there.
    tables = {name: table_hash(lake / "foodlog" / name, without="file") for name in TABLES}
    return tables | {"registry": json.loads(versions)}


@pytest.fixture
def deployment(tmp_path, tools, embedded):
    """A deployment that is up, with the raw logs of three days in its object store."""
    with deployed(tmp_path / "deployment", tools) as up:
        for name in ("raw", "oracle"):
            up.upload(embedded[0] / "logs" / name, f"foodlog/{name}")
        yield up


def _hosts(api, dag_id, task_id):
    runs = api.call("GET", f"/dags/{dag_id}/dagRuns", limit=100)["dag_runs"]
    tasks = [task for run in runs for task in api.tasks(dag_id, run["dag_run_id"])]
    return [task for task in tasks if task["task_id"] == task_id and task["start_date"]]


def test_three_days_give_what_the_embedded_run_gives(deployment, embedded):
    api = deployment.api()
    said = deployment.python("-m", "scripts.doctor", "--deployment")
    assert "blocks" not in said
    for day in DAYS:
        deployment.run_day(api, day)
    assert _state(deployment.bucket / "lake", deployment.python("-c", VERSIONS)) == embedded[1]
    # Who trained, and where artifacts are.
    queues = {
        name: {t["queue"] for t in _hosts(api, "retraining_daily", name)} for name in ("train", "register")
    }
    assert queues == {"train": {"training"}, "register": {"default"}}
    log = (deployment.folder / "logs" / "worker-training.log").read_text()
    assert "succeeded in" in log
    assert list((deployment.bucket / "mlflow").rglob("parity.json"))
    assert not (deployment.var / "mlflow" / "artifacts").exists()
    assert not (deployment.var / "lake").exists()


def test_drivers_that_commit_to_one_table_at_the_same_time_lose_nothing(tmp_path, tools):
    with deployed(tmp_path / "deployment", tools, "objects") as up:
        number, uri = 10, "s3a://mtgr/commits"
        environment = up.environment("worker") | {"SPARK_MASTER": "local[1]"}
        environment["SPARK_CONF"] += ";spark.driver.memory=700m"
        command = [sys.executable, "-c", COMMITS, uri]
        writers = [
            subprocess.Popen([*command, name, str(number)], cwd=ROOT, env=environment, stderr=subprocess.PIPE)
            for name in "ab"
        ]
        said = [writer.communicate(timeout=900)[1].decode() for writer in writers]
        assert [writer.returncode for writer in writers] == [0, 0], said
        code = (
            "import sys; from spark_jobs.lake.log import *; print(len(partition_values(sys.argv[1], 'ds')))"
        )
        assert up.python("-c", code, uri).strip() == str(2 * number)
