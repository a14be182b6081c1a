"""The same DAGs on a deployment: Postgres, Celery, an object store, a Spark cluster; and its faults.

Processes, variables and versions are those of `deploy/compose.yaml`, see `deployment.py`. Three days give the
tables, models and champion that an embedded run of the same logs gives: the first undisturbed, the others
with whatever can fail. 8 GB: `make test-slow`.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from scripts.embedded.settings import PREPARED
from tests.end_to_end.chain import table_hash
from tests.end_to_end.deployment import ROOT, deployed, wait_for
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
# Puts the same files of a log as another process does at the same moments, then commits one-row partitions.
WRITER = """
import json, sys, time
from functools import reduce
from spark_jobs.lake.session import spark_session
from spark_jobs.lake.writer import replace_partition
uri, name, puts, commits = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
spark = spark_session("writer")
jvm, conf = spark._jvm, spark._jsc.hadoopConfiguration()
store = reduce(getattr, spark.conf.get("spark.delta.logStore.s3a.impl").split("."), jvm)(conf)
won = []

def put(file):
    actions = jvm.java.util.Collections.singletonList(name).iterator()
    store.write(jvm.org.apache.hadoop.fs.Path(f"{uri}/{file}"), actions, False, conf)

put(f"first-{name}")  # the first call loads a thousand classes
print("ready", flush=True)
start = float(sys.stdin.readline())
for number in range(puts):
    time.sleep(max(0, start + 0.3 * number - time.time()))
    try:
        put(f"puts/{number}")
        won.append(number)
    except Exception as error:
        assert "FileAlreadyExistsException" in str(error), error
df = spark.range(1).selectExpr("id AS n")
columns = [("n", "bigint"), ("ds", "string")]
for ds in (f"{name}{part}" for part in range(commits)):
    day_df = df.selectExpr("n", f"'{ds}' AS ds")
    replace_partition(
        day_df, f"{uri}/table", {"ds": ds}, columns=columns, partition_by=["ds"], stage="test"
    )
print(json.dumps(won))
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


def _when(api, dag_id, day, task_id, action):
    """A thread that acts, once, while a task of a day runs; its errors are raised by `join`."""
    failed = []

    def is_running():
        runs = api.call("GET", f"/dags/{dag_id}/dagRuns", limit=100)["dag_runs"]
        names = [run["dag_run_id"] for run in runs if run["partition_key"] == day]
        tasks = [task for name in names for task in api.tasks(dag_id, name)]
        return any(task["task_id"] == task_id and task["state"] == "running" for task in tasks)

    def act():
        try:
            wait_for(is_running, f"{task_id} of {day}", 3000)
            time.sleep(8)  # the step has been started
            action()
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=act)
    thread.start()

    def join():
        thread.join()
        assert not failed, failed

    return join


def _alerts(deployment):
    lines = (deployment.var / "alerts.jsonl").read_text().splitlines()
    return [(one["kind"], one["of"]) for one in map(json.loads, lines)]


def test_three_days_with_faults_give_what_the_embedded_run_gives(deployment, embedded):
    api = deployment.api()
    assert "blocks" not in deployment.python("-m", "scripts.doctor", "--deployment", name="triggerer")
    said = deployment.python("-m", "scripts.doctor", "--deployment", fails=True)
    assert re.search(r"clock is (59|60)\d s behind", said), said

    def away(name, seconds):
        def act():
            deployment.kill(name)
            time.sleep(seconds)
            deployment.start(name)

        return act

    def postgres_again():
        deployment.stop_postgres()
        time.sleep(5)
        deployment.start_postgres()

    faults = [
        _when(api, "samples_daily", DAYS[1], "ingest", away("redis", 20)),
        _when(api, "samples_daily", DAYS[1], "build_samples", away("objects", 60)),
        _when(api, "retraining_daily", DAYS[1], "train", away("worker-training", 5)),
        _when(api, "retraining_daily", DAYS[1], "register", away("scheduler-2", 60)),
        _when(api, "samples_daily", DAYS[2], "build_samples", postgres_again),
        _when(api, "retraining_daily", DAYS[2], "evaluate", lambda: deployment.kill("scheduler-1")),
    ]
    for day in DAYS:
        deployment.run_day(api, day)
    for join in faults:
        join()
    assert _state(deployment.bucket / "lake", deployment.python("-c", VERSIONS)) == embedded[1]
    # Who trained, where artifacts are; the killed worker's task was tried again, and that was told once.
    queues = {
        name: {t["queue"] for t in _hosts(api, "retraining_daily", name)} for name in ("train", "register")
    }
    assert queues == {"train": {"training"}, "register": {"default"}}
    assert "succeeded in" in (deployment.folder / "logs" / "worker-training.log").read_text()
    assert list((deployment.bucket / "mlflow").rglob("parity.json"))
    assert not (deployment.var / "mlflow" / "artifacts").exists()
    assert not (deployment.var / "lake").exists()
    assert max(task["try_number"] for task in _hosts(api, "retraining_daily", "train")) > 1
    told = _alerts(deployment)
    assert len(told) == len(set(told)), told
    assert any(kind == "retried" and "retraining_daily.train " in of for kind, of in told)
    # Maintenance frees what MLflow's server keeps, without its database.
    kept = len(list((deployment.bucket / "mlflow").rglob("weights.safetensors")))
    said = deployment.python("-m", "model.prune", "--dataset", "foodlog", "--keep", "1")
    pruned = json.loads(said.splitlines()[-1])
    assert pruned["freed"] > 0
    left = list((deployment.bucket / "mlflow").rglob("weights.safetensors"))
    assert len(left) == kept - len(pruned["deleted"]) < kept


def test_drivers_that_write_one_log_at_the_same_time_lose_nothing(tmp_path, tools):
    with deployed(tmp_path / "deployment", tools, "objects") as up:
        puts, commits, uri = 100, 5, "s3a://mtgr/written"
        environment = up.environment("worker") | {"SPARK_MASTER": "local[1]"}
        environment["SPARK_CONF"] += ";spark.driver.memory=700m"
        writers = {
            name: subprocess.Popen(
                [sys.executable, "-c", WRITER, uri, name, str(puts), str(commits)],
                cwd=ROOT,
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for name in "ab"
        }
        assert [writer.stdout.readline() for writer in writers.values()] == ["ready\n"] * 2
        start = f"{time.time() + 1}\n"
        for writer in writers.values():
            writer.stdin.write(start)
            writer.stdin.flush()
        said = {name: writer.communicate(timeout=900)[0] for name, writer in writers.items()}
        won = {name: set(json.loads(text)) for name, text in said.items()}
        assert won["a"]
        assert won["b"]
        assert not won["a"] & won["b"]
        assert won["a"] | won["b"] == set(range(puts))
        for name, numbers in won.items():
            files = {(up.bucket / "written" / "puts" / str(number)).read_text() for number in numbers}
            assert files == {f"{name}\n"}
        code = (
            "import sys; from spark_jobs.lake.log import *; print(len(partition_values(sys.argv[1], 'ds')))"
        )
        assert up.python("-c", code, f"{uri}/table").strip() == str(2 * commits)
