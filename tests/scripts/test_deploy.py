"""The files of `deploy/`: they name what this repository has, and say the same thing."""

import re
import xml.etree.ElementTree as ElementTree
from importlib.metadata import version
from pathlib import Path

import pyspark
import pytest
import yaml

from spark_jobs.contract.checks import SETTINGS
from spark_jobs.lake.session import settings
from tests.end_to_end.deployment import AIRFLOW, PORTS, SMALL, Deployment

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"


@pytest.fixture(scope="module")
def services():
    return yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]


@pytest.fixture(scope="module")
def values():
    return yaml.safe_load((DEPLOY / "values.yaml").read_text())


def _locked(path):
    lines = (line.split(";")[0].strip() for line in path.read_text().splitlines() if "==" in line)
    return dict(line.split("==") for line in lines if not line.startswith("#"))


def test_the_helm_values_are_those_of_the_compose_file(services, values):
    variables = services["worker"]["environment"]
    for entry in values["env"]:
        assert variables[entry["name"]] == entry["value"], entry["name"]
    named = {entry["name"] for entry in values["env"]} | {entry["envName"] for entry in values["secret"]}
    # The server's address is of compose alone; Spark's services are in no chart.
    of_compose = {"AIRFLOW_HOME", "MTGR_MLFLOW_URL", "SPARK_CONF", "SPARK_JARS"}
    assert {n for n in variables if not n.startswith("AIRFLOW__")} == named | of_compose
    for section, options in values["config"].items():
        for option, value in options.items():
            assert variables[f"AIRFLOW__{section.upper()}__{option.upper()}"] == value
    assert variables["AIRFLOW__CORE__EXECUTOR"] == values["executor"]
    assert values["workers"]["celery"]["sets"][0]["queue"] == variables["MTGR_TRAINING_QUEUE"]
    assert values["scheduler"]["replicas"] == len([name for name in services if name.startswith("scheduler")])
    assert values["airflowVersion"] == version("apache-airflow")
    image = services["worker"]["image"]
    assert f"{values['images']['airflow']['repository']}:{values['images']['airflow']['tag']}" == image


def test_variables_and_hosts_of_the_compose_file_are_known(services):
    for name, service in services.items():
        text = str(service)
        for variable in service.get("environment", {}):
            assert not variable.startswith("MTGR_") or variable[5:].lower() in SETTINGS, f"{name}: {variable}"
        for host, port in re.findall(r"(?:@|//|\b)([a-z][a-z-]+):(\d{4,5})\b", text):
            assert PORTS.get(host) == int(port) or host == "localhost", f"{name}: {host}:{port}"
    assert set(AIRFLOW) | set(PORTS) | {"migrate", "spark-worker-1", "spark-worker-2"} == set(services)
    mounted = [service["volumes"] for name, service in services.items() if "mtgr:" in service["image"]]
    assert all(volumes == ["shared:/opt/mtgr/var"] for volumes in mounted)


def test_one_worker_alone_takes_the_queue_that_trains(services):
    queue = services["worker"]["environment"]["MTGR_TRAINING_QUEUE"]
    queues = [
        s["command"][s["command"].index("--queues") + 1]
        for s in services.values()
        if "--queues" in s.get("command", ())
    ]
    assert sorted(queues) == ["default", queue]


def test_versions_are_those_of_the_lock(services):
    lock, extra = _locked(ROOT / "requirements.txt"), _locked(DEPLOY / "requirements.txt")
    assert {
        name: (extra[name], lock[name]) for name in extra.keys() & lock.keys() if extra[name] != lock[name]
    } == {}
    assert {"celery", "redis", "asyncpg", "boto3"} <= extra.keys() - lock.keys()
    space = {"m": "http://maven.apache.org/POM/4.0.0"}
    jars = {
        e.find("m:artifactId", space).text: e.find("m:version", space).text
        for e in ElementTree.parse(DEPLOY / "pom.xml").iterfind("m:dependencies/m:dependency", space)
    }
    assert jars[f"delta-spark_{'.'.join(version('pyspark').split('.')[:2])}_2.13"] == version("delta-spark")
    own = Path(pyspark.__file__).parent / "jars" / f"hadoop-client-api-{jars['hadoop-aws']}.jar"
    assert own.exists(), "the Hadoop of s3a is not Spark's"
    assert f"delta-storage-{version('delta-spark')}.jar" in services["worker"]["environment"]["SPARK_JARS"]
    store = re.search(r"versitygw@(v[\d.]+)", (DEPLOY / "fetch.sh").read_text())[1]
    assert services["objects"]["image"].endswith(f":{store}")


def test_spark_commits_to_s3_by_the_class_that_the_repository_builds():
    store = settings(local=False)["spark.delta.logStore.s3a.impl"]
    source = DEPLOY / "logstore" / f"{store.replace('.', '/')}.java"
    assert f"package {store.rpartition('.')[0]};" in source.read_text()


def test_the_compose_file_becomes_processes_on_loopback(tmp_path, services):
    deployment = Deployment(tmp_path / "run", tmp_path / "tools")
    for name, service in services.items():
        variables = deployment.environment(name)
        words = deployment.command(name) + [variables[key] for key in service.get("environment", {})]
        for word in words:
            assert not re.search(r"\$\{|/opt/|\b0\.0\.0\.0\b", word), f"{name}: {word}"
    broker = deployment.environment("worker")["AIRFLOW__CELERY__BROKER_URL"]
    assert broker == f"redis://127.0.0.1:{deployment.ports['redis']}/0"
    command = deployment.command("mlflow")
    assert command[command.index("--host") + 1] == "127.0.0.1"
    assert command[command.index("--port") + 1] == str(deployment.ports["mlflow"])
    assert SMALL["SPARK_CONF"] in deployment.environment("spark-connect")["SPARK_CONF"]
