"""The daily chain of commands over one `var` folder: run, killed, put back, and its state compared.

A step is the `main` of its module, as `python -m` would call it, in a process of its own that is forked from
one that has imported everything and done nothing else: importing is most of what a small step costs, and the
process that is killed by SIGKILL is a real one all the same.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import multiprocessing
import os
import re
import shutil
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
DATASET = "foodlog"
PRESET = "tiny"
BASELINE = "user_tower"
# What differs between two undisturbed runs: times, and the random ids that MLflow gives.
_VOLATILE = ("seconds", "mlflow_run_id")


@dataclass(frozen=True, kw_only=True)
class Step:
    """One command of the chain.

    Args:
        stage: Its name in the DAGs, or `simulate`.
        ds: The day.
        module: Module whose `main` it is.
        arguments: Arguments of the command.
    """

    stage: str
    ds: str
    module: str
    arguments: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.stage} of {self.ds}"


def _step(stage: str, ds: str, module: str, *arguments: str) -> Step:
    return Step(stage=stage, ds=ds, module=module, arguments=("--dataset", DATASET, *arguments))


def simulation(first: str, last: str, *options: str) -> Step:
    """The step that writes the raw logs of the days."""
    return _step("simulate", last, "spark_jobs.simulate", "--from", first, "--to", last, *options)


def data_steps(ds: str, earlier: tuple[str, ...] = ()) -> list[Step]:
    """The tasks of `samples_daily`; `earlier` are days that late records of `ds` make again."""
    return [
        _step("ingest", ds, "spark_jobs.ingest", "--ds", ds),
        _step("gate_events", ds, "expectations.gate", "--suite", "events", "--ds", ds),
        _step("build_samples", ds, "spark_jobs.build_samples", "--ds", ds, "--late"),
        _step("gate_samples", ds, "expectations.gate", "--suite", "samples", "--ds", ds, *earlier),
    ]


def training_steps(ds: str, *presets: str) -> list[Step]:
    """The tasks of `retraining_daily` for the presets of a day."""
    of_preset = ("--ds", ds, "--preset", *presets)
    return [
        _step("train", ds, "model.train", *of_preset),
        _step("evaluate", ds, "model.evaluate", *of_preset),
        _step("gate_evaluation", ds, "expectations.gate", "--suite", "evaluation", *of_preset),
        _step("register", ds, "model.register", *of_preset),
        _step("promote", ds, "model.promote", *of_preset),
    ]


def preload(steps: list[Step]) -> None:
    """Imports what the steps need. The process must stay free of threads, or its forks may hang.

    Raises:
        RuntimeError: An import has started a thread.
    """
    modules = {step.module for step in steps}
    if any(module.startswith(("expectations", "spark_jobs")) for module in modules):
        modules |= {"pyspark.sql.connect.session", "deltalake", "duckdb"}
    if "expectations.gate" in modules:
        modules |= {"expectations.judging.validation", "expectations.judging.judge"}
    if any(module.startswith("model") for module in modules):
        modules |= {"mlflow", "mlflow.pyfunc", "torchrec"}
    for module in sorted(modules):
        importlib.import_module(module)
    if threading.active_count() > 1:
        raise RuntimeError(f"threads run after the imports: {threading.enumerate()}")


class Chain:
    """The commands of a chain over one `var` folder.

    Args:
        work: Folder of the chain; `var` and `saved` are made in it.
        remote: Address of the Spark Connect server.
    """

    def __init__(self, work: Path, remote: str) -> None:
        self.work, self.var = work, work / "var"
        self.log = work / "steps.log"
        self.environment = {"MTGR_VAR": str(self.var), "SPARK_REMOTE": remote, "TZ": "UTC"}

    def run(self, step: Step, **environment: str) -> int:
        """Runs one step; its output goes to `steps.log`. Returns its exit code, negative for a signal."""
        return self._forked(_run_step, step, self.environment | environment)

    def must(self, step: Step, **environment: str) -> None:
        """Runs one step that has to succeed."""
        code = self.run(step, **environment)
        if code:
            output = self.log.read_text(errors="replace")[-4000:]
            raise RuntimeError(f"exit code {code} of {step}:\n{output}")

    def save(self, name: str) -> None:
        """Keeps the state of the `var` folder under a name."""
        shutil.copytree(self.var, self.work / "saved" / name)

    def restore(self, name: str) -> None:
        """Puts a kept state back, at the same path: the registry holds absolute paths."""
        shutil.rmtree(self.var)
        shutil.copytree(self.work / "saved" / name, self.var)

    def state(self) -> dict[str, Any]:
        """What has to be equal after a rerun; see `state_of`."""
        answer = self.work / "state.json"
        answer.unlink(missing_ok=True)
        if self._forked(_write_state, self.var, answer):
            raise RuntimeError(f"the state cannot be read:\n{self.log.read_text(errors='replace')[-4000:]}")
        found: dict[str, Any] = json.loads(answer.read_text())
        return found

    def _forked(self, target: Callable[..., None], *arguments: Any) -> int:
        process = multiprocessing.get_context("fork").Process(
            target=_logged, args=(self.log, target, *arguments)
        )
        process.start()
        process.join()
        assert process.exitcode is not None
        return process.exitcode


def _logged(log: Path, target: Callable[..., None], *arguments: Any) -> None:
    os.chdir(ROOT)
    with log.open("ab") as file:
        for number in (1, 2):
            os.dup2(file.fileno(), number)
    try:
        target(*arguments)
    finally:
        _release_session()


def _release_session() -> None:
    """Does what PySpark does when an interpreter ends; a forked process ends without."""
    from pyspark.sql.connect.session import SparkSession

    session = SparkSession.getActiveSession()
    if session is not None:
        session.stop()


def _run_step(step: Step, environment: Mapping[str, str]) -> None:
    os.environ.update(environment)
    sys.argv = [step.module, *step.arguments]
    sys.stderr.write(f"$ {' '.join(sys.argv)} {dict(environment)}\n")
    sys.exit(importlib.import_module(step.module).main(list(step.arguments)))


def _write_state(var: Path, answer: Path) -> None:
    answer.write_text(json.dumps(state_of(var)))


def state_of(var: Path, cleaned: Callable[[str], str] = str) -> dict[str, Any]:
    """What a step may leave: raw logs, table rows, files of runs, packages, what serves, verdicts, registry.

    Times, random ids and the tables' own versions are left out: a rerun after a commit may make one more
    version of the same rows.

    Args:
        var: The folder.
        cleaned: What to compare of JSON; see `without_table_versions`.
    """
    result: dict[str, Any] = {}
    lake = var / "lake" / DATASET
    for path in sorted(lake.glob("raw/**/*.*")):
        result[f"raw {path.relative_to(lake)}"] = hashlib.sha256(path.read_bytes()).hexdigest()
    for log in sorted(lake.rglob("_delta_log")):
        name = log.parent.relative_to(lake)
        if name.parts[0] != "_leases":
            result[f"table {name}"] = table_hash(log.parent)
    for path in sorted((var / "runs").rglob("*")):
        if path.is_file():
            result[f"file {path.relative_to(var)}"] = _file_hash(path, cleaned)
    serving = var / "serving"
    for path in sorted(serving.rglob("*")):
        if path.is_symlink():
            result[f"served {path.relative_to(serving)}"] = os.readlink(path)
        elif path.is_file():
            result[f"package {path.relative_to(serving)}"] = _file_hash(path, cleaned)
    for verdict in sorted((var / "gates").rglob("*.json")):
        result[f"verdict {verdict.relative_to(var)}"] = json.loads(verdict.read_text())["success"]
    store = var / "mlflow" / "mlflow.db"
    return result | (registry_of(f"sqlite:///{store}", cleaned) if store.exists() else {})


def without_table_versions(text: str) -> str:
    """JSON without the versions of tables: a day that is run again is a further version of its rows."""
    text = re.sub(r"((?:samples|day)[ _]version\W*)\d+", r"\1-", text)
    text = re.sub(r'(\d{4}-\d\d-\d\d\\?": )\d+(?![\d.])', r"\1-", text)  # seen_days
    return re.sub(r"(evaluation_digest\W*)[0-9a-f]+", r"\1-", text)


def _file_hash(path: Path, cleaned: Callable[[str], str]) -> str:
    content = path.read_bytes()
    if path.suffix == ".json":
        record = {key: value for key, value in json.loads(content).items() if key not in _VOLATILE}
        text = re.sub(r'("samples_table": ")[^"]*', r"\1-", json.dumps(record, sort_keys=True))  # a random id
        content = cleaned(text).encode()
    return hashlib.sha256(content).hexdigest()


def table_hash(path: Path, without: str = "") -> str:
    """Number and hash of a Delta table's rows, whatever their order and files; `without` a column."""
    import duckdb
    from deltalake import DeltaTable

    rows = DeltaTable(str(path)).to_pyarrow_table()
    with duckdb.connect() as connection:
        connection.register("t", rows.select(sorted({*rows.column_names} - {without})))
        number, total = connection.execute(
            "SELECT count(*), coalesce(sum(hash(t)::hugeint), 0) FROM t"
        ).fetchone() or (0, 0)
    return f"{number} rows {total:x}"


def registry_of(uri: str, cleaned: Callable[[str], str] = str) -> dict[str, Any]:
    """MLflow's runs by what was trained, logged models, registered versions, and the aliases of each."""
    from mlflow import MlflowClient

    client = MlflowClient(uri)
    found: dict[str, Any] = {}
    experiments = [entry.experiment_id for entry in client.search_experiments()]
    for run in client.search_runs(experiments):
        key = f"mlflow run {run.data.tags.get('run_key')}"
        # Of what the machine did, names alone: values differ from run to run.
        metrics = {n: -1.0 if n.startswith("system/") else v for n, v in run.data.metrics.items()}
        found.setdefault(key, []).append([run.info.status, len(run.data.params), sorted(metrics.items())])
    for name in [model.name for model in client.search_registered_models()]:
        aliases = client.get_registered_model(name).aliases
        for version in client.search_model_versions(f"name='{name}'"):
            tags = {key: value for key, value in version.tags.items() if key not in _VOLATILE}
            own = sorted(alias for alias, number in aliases.items() if str(number) == str(version.version))
            found[f"version {name}/{version.version}"] = [
                version.status,
                own,
                cleaned(json.dumps(tags, sort_keys=True)),
            ]
    models = client.search_logged_models(experiments)
    found["logged models"] = sorted(str(model.tags.get("digest") or model.name) for model in models)
    return found


def difference(expected: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    """What differs between two states, in words; empty when they are equal."""
    return [
        f"{key}: expected {expected.get(key)}, found {found.get(key)}"
        for key in sorted(expected.keys() | found.keys())
        if expected.get(key) != found.get(key)
    ]
