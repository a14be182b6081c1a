"""The registered model in a fresh process: scores of evaluation, and errors for rows that are not right."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from deltalake import write_deltalake
from hstu_ops.backends import resolve
from mlflow.exceptions import MlflowException

from model import evaluate, promote, register, train
from model.config.presets import preset_named
from model.data.synthetic import random_samples
from model.judging.contest import Contest
from model.rankers.protocol import build_ranker
from model.registry import packaging, record
from model.registry import versions as registry
from model.registry.store import client
from model.runs.store import CONFIG, WEIGHTS, Run, load_run
from spark_jobs.contract import locations
from spark_jobs.contract.foodlog import FOODLOG
from spark_jobs.lake import verdicts
from tests.model.conftest import pass_gate

DAYS = ("2026-03-01", "2026-03-02")
DS = DAYS[1]
LOAD = """
import json, sys
import mlflow
import pandas as pd
mlflow.set_tracking_uri(sys.argv[1])
model = mlflow.pyfunc.load_model("models:/mtgr-foodlog@champion")
rows = pd.read_pickle(sys.argv[2])
found = {state: model.predict(rows, params={"state": state}).to_dict("list") for state in ("live", "frozen")}
import hstu_ops
import model as ours
backend = hstu_ops.backends.resolve("auto", "cpu", __import__("torch").float32, 32)
print(json.dumps({"scores": found, "code": ours.__file__, "backend": backend}))
"""


@pytest.fixture
def evaluated(var: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """A run of a tiny ranker, trained on a day of random samples and evaluated on the next."""
    monkeypatch.delenv("RANK", raising=False)
    for seed, ds in enumerate(DAYS):
        samples = random_samples(FOODLOG, 60, seed=seed, ds=ds, max_candidates=8)
        mode: Any = "append" if seed else "error"
        write_deltalake(locations.table("foodlog", "samples"), samples, partition_by=["ds"], mode=mode)
    verdicts.allow("foodlog", "samples", DAYS, "a test")
    train.train(FOODLOG, preset_named("tiny"), DS, torch.device("cpu"), record.log_training)
    run = load_run("foodlog", "tiny", DS)
    evaluate.evaluate(FOODLOG, [Contest(run=run)])
    pass_gate(run)
    return run


def test_the_run_holds_all_that_explains_it(evaluated: Run) -> None:
    import mlflow

    version, _ = register.register(FOODLOG, evaluated)
    run = client().get_run(version.run_id)
    config = asdict(preset_named("tiny").sized(FOODLOG))
    tables = {name.split(".")[2] for name in run.data.params if name.startswith("model.tables.")}
    assert tables == config["model"].pop("tables").keys()  # one parameter a table and size
    for part in ("model", "train"):
        assert {f"{part}.{k}": str(v) for k, v in config[part].items()}.items() <= run.data.params.items()
    assert run.data.params["world_size"] == "1"
    tags = {"samples_version": "1", "seen_days": "2026-03-01", "ds": DS, "digest": evaluated.digest}
    assert tags.items() <= run.data.tags.items()
    assert re.fullmatch(r"[0-9a-f]{40}(\+dirty)?|unknown", run.data.tags["git_sha"])
    metrics = {f"{task}_{kind}" for task in ("ctr", "ctcvr") for kind in ("auc", "gauc", "gauc_users")}
    assert metrics | {"item_mean_ctr_gauc", "ctcvr_copc"} <= run.data.metrics.keys()
    for name, points in (("train_loss", 1), ("loss_by_day", 1)):
        assert len(client().get_metric_history(version.run_id, name)) >= points
    rows = {entry.dataset.name: json.loads(entry.dataset.profile) for entry in run.inputs.dataset_inputs}
    assert rows["foodlog samples 2026-03-01"] == {"num_rows": evaluated.record["rows"]["2026-03-01"]}
    assert rows["foodlog samples 2026-03-01"]["num_rows"] > 0
    assert rows[f"foodlog samples {DS}"]["num_elements"] > 0
    assert _artifacts(version.run_id, "tables") == {"tables/days.csv", "tables/segments.csv"}
    assert {"evaluation.json", "environment.json", "lineage.json", "overview.svg"} <= _artifacts(
        version.run_id
    )
    place = mlflow.artifacts.download_artifacts(run_id=version.run_id, artifact_path="environment.json")
    installed = json.loads(Path(place).read_text())["distributions"]
    assert installed["torch"] == torch.__version__.split("+")[0]
    info = mlflow.models.get_model_info(f"models:/mtgr-foodlog/{version.version}")
    assert info.signature.inputs.input_names()[:2] == ["user_id", "ds"]
    assert info.signature.outputs.input_names() == ["ctr", "ctcvr"]
    assert info.saved_input_example_info is not None
    files = {path.name for path in Path(client().get_logged_model(version.model_id).artifact_location
             .removeprefix("file://")).rglob("*") if path.is_file()}  # fmt: skip
    assert {"MLmodel", "requirements.txt", "conda.yaml", "pyfunc.py", CONFIG, WEIGHTS} <= files
    assert not [name for name in files if name.endswith((".pkl", ".pickle", ".pt", ".bin", ".so"))]


# What scoring imports, and nothing else: a module more is one more that runs wherever a model is loaded.
CARRIED = """
hstu_ops: attention backends checks gated libraries linear norm reference schemas triton_ops
hstu_ops.triton_ops: attention_backward attention_forward column_sums configs
hstu_ops.triton_ops: group_layer_norm inference repair silu tiles
model: config data embeddings judging rankers runs
model.config: run
model.data: batch encoder layout stored
model.embeddings: dynamic exchange hash_table key_count memory mixing numbers rules sizes table_state tables
model.judging: scoring
model.rankers: dcn din dlrm dnn heads hstu inputs known moe mtgr mtgr_dcn multi_embed padding pepnet ple
model.rankers: protocol user_tower wukong
model.runs: files store
spark_jobs: contract
spark_jobs.contract: checks clock command declaration environment features limits locations tables
"""


def test_a_version_carries_what_scoring_imports_and_nothing_else(tmp_path: Path) -> None:
    lines = [line.partition(": ") for line in CARRIED.split("\n") if line]
    expected = {f"{package}.{name}" for package, _, names in lines for name in names.split()}
    expected |= set(packaging.PACKAGES)
    assert set(packaging.carried()) == expected
    packaging.stage_code(tmp_path)
    files = {path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file()}
    packages = {name for name in expected if any(other.startswith(f"{name}.") for other in expected)}
    places = {name.replace(".", "/") for name in expected}
    assert {str(file) for file in files} == {
        f"{place}/__init__.py" if place.replace("/", ".") in packages else f"{place}.py" for place in places
    }
    # Of other packages it needs what its requirements name, and Triton where there is a GPU.
    sources = [*packaging.carried().values(), packaging.SERVING]
    others = {name.split(".")[0] for path in sources for name in packaging._imported(path)}
    others -= {*sys.stdlib_module_names, *packaging.PACKAGES, "triton"}
    assert others == set(packaging.REQUIREMENTS)


def _artifacts(run_id: str, folder: str = "") -> set[str]:
    return {entry.path for entry in client().list_artifacts(run_id, folder)}


@pytest.mark.slow
def test_a_fresh_process_elsewhere_scores_as_evaluation_did(evaluated: Run, tmp_path: Path) -> None:
    version, is_new = register.register(FOODLOG, evaluated)
    assert is_new
    assert register.register(FOODLOG, load_run("foodlog", "tiny", DS)) == (version, False)
    with registry.exclusive("foodlog", "test"):
        registry.set_champion("foodlog", version)  # a model of one day of noise is none by the rules
    rows = random_samples(FOODLOG, 60, seed=1, ds=DS, max_candidates=8).to_pandas()
    rows.to_pickle(tmp_path / "rows.pkl")
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "MTGR_VAR")}
    done = subprocess.run(
        [sys.executable, "-c", LOAD, locations.tracking_uri(), str(tmp_path / "rows.pkl")],
        cwd=tmp_path,
        env=environment | {"MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout.splitlines()[-1])
    assert answer["code"].startswith(str(locations.var()))  # the code that was registered, not the checkout
    # Training and evaluation ran on the compiled operators, the model that MLflow loads on the reference.
    assert resolve("auto", "cpu", torch.float32, 32) == "cpu"
    assert answer["backend"] == "reference"
    seen = pq.read_table(evaluated.path / "scores_candidate.parquet").to_pandas()
    expected = {(i, u): row for i, u, row in zip(seen.impression_id, seen.user_id, seen.to_dict("records"),
                strict=True)}  # fmt: skip
    assert len(expected) == len(seen)
    worst = 0.0
    for at, (user, ids) in enumerate(zip(rows.user_id, rows.candidate_impression_id, strict=True)):
        for place, impression in enumerate(ids):
            for state in ("live", "frozen"):
                for task in ("ctr", "ctcvr"):
                    score = answer["scores"][state][task][at][place]
                    worst = max(worst, abs(score - expected[impression, user][f"{task}_{state}"]))
    assert worst <= 1e-6


@pytest.fixture(scope="module")
def scorer() -> Any:
    """The pyfunc with an untrained ranker, with MLflow's check of the signature before it."""
    from mlflow.pyfunc import PyFuncModel  # noqa: F401  (the import of serving needs mlflow)

    from model.judging.scoring import Scorer
    from model.serving.pyfunc import RowScorer

    made = RowScorer()
    config = preset_named("tiny")
    made.scorer = Scorer(FOODLOG, config, build_ranker(FOODLOG, config.model, config.train.seed))
    return made


def _rows() -> Any:
    return random_samples(FOODLOG, 3, seed=4).to_pandas()


def test_output_is_one_list_a_row_with_one_value_a_candidate(scorer: Any) -> None:
    rows = _rows()
    scores = scorer.predict(None, rows)
    assert list(scores.columns) == ["ctr", "ctcvr"]
    for column in scores.columns:
        assert [len(v) for v in scores[column]] == [len(v) for v in rows["candidate_item_id"]]
        assert all(0 < value < 1 for values in scores[column] for value in values)


def test_no_rows_give_no_rows(scorer: Any) -> None:
    assert scorer.predict(None, _rows().iloc[:0]).empty


def test_labels_and_ids_are_not_read(scorer: Any) -> None:
    rows = _rows()
    unread = ["label_click", "label_conversion", "candidate_request_id", "candidate_impression_id"]
    assert scorer.predict(None, rows.drop(columns=unread)).equals(scorer.predict(None, rows))


def test_live_and_frozen_differ_where_there_is_realtime_state(scorer: Any) -> None:
    live, frozen = (scorer.predict(None, _rows(), {"state": state}) for state in ("live", "frozen"))
    assert not live.equals(frozen)


def _set(column: str, value: Callable[[Any], Any]) -> Callable[[Any], None]:
    def change(rows: Any) -> None:
        rows.at[1, column] = value(rows.at[1, column])

    return change


def _without_candidates(rows: Any) -> None:
    for column in rows.columns:
        if column.startswith(("candidate_", "label_")):
            rows.at[1, column] = rows.at[1, column][:0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_set("candidate_price", lambda v: v * float("nan")), "candidate_price.*nan"),
        (_set("candidate_price", lambda v: v * float("inf")), "candidate_price.*inf"),
        (_set("candidate_price", lambda v: v[:-1]), "candidate_price has"),
        (_set("candidate_price", lambda v: ["dear"] * len(v)), "candidate_price is not"),
        (_set("candidate_price", lambda v: None), "candidate_price, row 1: is null"),
        (_set("candidate_cuisine", lambda v: v * 0 + 99), "candidate_cuisine.*99"),
        (_set("candidate_visible", lambda v: v * 0 + 50), "candidate_visible.*50"),
        (_set("profile_registered_days", lambda v: float("nan")), "profile_registered_days, row 1"),
        (_without_candidates, "no candidate"),
        (lambda rows: rows.drop(columns="candidate_price", inplace=True), "candidate_price"),
        (lambda rows: rows.drop(columns="candidate_visible", inplace=True), "candidate_visible"),
    ],
)
def test_rows_that_are_not_right_are_refused_by_name(
    scorer: Any, change: Callable[[Any], None], message: str
) -> None:
    rows = _rows()
    change(rows)
    with pytest.raises(ValueError, match=message):
        scorer.predict(None, rows)


def test_an_unknown_state_is_refused(scorer: Any) -> None:
    with pytest.raises(ValueError, match="'thawed'; use one of live, frozen"):
        scorer.predict(None, _rows(), {"state": "thawed"})


def test_the_signature_takes_samples_and_json_and_refuses_other_columns_and_types() -> None:
    from mlflow.models.utils import _enforce_schema

    from model.registry.packaging import signature_of

    schema = signature_of(FOODLOG).inputs
    rows = _rows().drop(columns=["label_click", "label_conversion"])
    assert len(_enforce_schema(rows, schema)) == 3
    lists = rows.map(lambda value: value.tolist() if hasattr(value, "tolist") else value)
    assert len(_enforce_schema(lists, schema)) == 3
    assert len(_enforce_schema(rows.drop(columns="candidate_request_id"), schema)) == 3
    with pytest.raises(MlflowException, match="missing inputs"):
        _enforce_schema(rows.drop(columns="candidate_price"), schema)
    with pytest.raises(MlflowException, match="Failed to convert column"):
        _enforce_schema(rows.assign(candidate_price=[["a"], ["b"], ["c"]]), schema)


def test_requirements_are_those_of_the_lock() -> None:
    from model.registry.packaging import requirements

    lock = (Path(__file__).parents[2] / "requirements.txt").read_text()
    pinned = {line.split(" ;")[0].strip() for line in lock.splitlines()}
    assert set(requirements()) <= pinned


def test_promotion_reads_the_same_evaluation(evaluated: Run) -> None:
    assert promote.read_evaluation(evaluated)["candidate"]["digest"] == evaluated.digest


def test_requirements_on_a_gpu_are_those_of_its_lock(monkeypatch: pytest.MonkeyPatch) -> None:
    from model.registry.packaging import requirements

    found = importlib.metadata.version

    def version(name: str) -> str:
        if name == "fbgemm-gpu-cpu":
            raise importlib.metadata.PackageNotFoundError(name)
        if name == "fbgemm-gpu":
            return found("fbgemm-gpu-cpu")
        return found(name).partition("+")[0] + ("+cu130" if name == "torch" else "")

    monkeypatch.setattr(importlib.metadata, "version", version)
    lock = (Path(__file__).parents[2] / "requirements-gpu.txt").read_text()
    assert set(requirements()) <= set(re.findall(r"^[a-z0-9-]+==[^ \n]+", lock, re.MULTILINE))
