"""A run as an MLflow model: files, code, signature, example and requirements, so that it loads anywhere.

The model holds `config.json` with its declaration and `weights.safetensors` of the run and the modules that
scoring imports, so that a fresh process in another folder scores rows without this checkout. Logging is
repeatable: a logged model is found again by the run's digest, and one that an interrupted upload left behind
is deleted.
"""

from __future__ import annotations

import ast
import importlib.metadata
import importlib.util
import logging
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from model.config.environment import installed_fbgemm
from model.registry import versions as registry
from model.registry.store import client, with_named_errors
from model.registry.tracking import experiment_id
from model.runs.store import CONFIG, WEIGHTS, Run
from spark_jobs.contract.features import Dataset
from spark_jobs.contract.tables import TYPE_NAMES, item_type, sample_columns

if TYPE_CHECKING:
    from mlflow.models import ModelSignature

logger = logging.getLogger(__name__)

MODEL_NAME = "ranker"
SERVING = Path(__file__).resolve().parents[1] / "serving" / "pyfunc.py"
PACKAGES = ("model", "spark_jobs", "hstu_ops")
_KERNELS = "hstu_ops.triton_ops"
REQUIREMENTS = (
    "mlflow",
    "torch",
    "torchrec",
    "numpy",
    "pandas",
    "pyarrow",
    "safetensors",
)
# A request has no ids or times of candidates to tell; they are keys of the samples table, never inputs.
_OPTIONAL = ("candidate_time_ms", "candidate_request_id", "candidate_impression_id", "candidate_weight")


def signature_of(dataset: Dataset) -> ModelSignature:
    """Columns of the samples table but for the labels; out come two lists a row; `state` as parameter."""
    from mlflow.models import ModelSignature
    from mlflow.types.schema import Array, ColSpec, DataType, ParamSchema, ParamSpec, Schema

    def spec(name: str, kind: str) -> ColSpec:
        item, is_list = item_type(kind)
        wide = DataType[TYPE_NAMES[item].mlflow]
        return ColSpec(Array(wide) if is_list else wide, name, required=name not in _OPTIONAL)

    columns = [(name, kind) for name, kind in sample_columns(dataset) if not name.startswith("label_")]
    return ModelSignature(
        inputs=Schema([spec(name, kind) for name, kind in columns]),
        outputs=Schema([ColSpec(Array(DataType.double), name) for name in ("ctr", "ctcvr")]),
        params=ParamSchema([ParamSpec("state", DataType.string, "live")]),
    )


def input_example(dataset: Dataset) -> Any:
    """Two made-up rows: no user's data goes into the registry."""
    from model.data.synthetic import random_samples

    rows = random_samples(dataset, 2, max_static=4, max_realtime=2, max_candidates=3)
    return rows.drop_columns([name for name in rows.column_names if name.startswith("label_")]).to_pandas()


def requirements() -> list[str]:
    """What a process that scores has to install, at the versions of this environment, which is the lock's."""
    names = (*REQUIREMENTS, installed_fbgemm())
    # A local version (+cu130) is no registry's; without it the requirement holds for every build.
    return [f"{name}=={importlib.metadata.version(name).partition('+')[0]}" for name in names]


def carried() -> dict[str, Path]:
    """The sources that scoring needs, by module: what `pyfunc.py` imports, and what that imports.

    Imports inside functions do not count: they are for commands. But for those of Triton's kernels, which a
    device asks for by name.

    Raises:
        RegistryError: A package is not found.
    """
    roots = {package: _root_of(package) for package in PACKAGES}
    sources: dict[str, Path] = {}
    todo = _imported(SERVING)
    todo += [f"{_KERNELS}.{path.stem}" for path in roots["hstu_ops"].glob("triton_ops/[!_]*.py")]
    while todo:
        parts = todo.pop().split(".")
        for end in range(1, len(parts) + 1) if parts[0] in roots else ():
            module, place = ".".join(parts[:end]), roots[parts[0]].joinpath(*parts[1:end])
            path = place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
            if path.is_file() and module not in sources:  # else the name of something in the module before it
                sources[module] = path
                todo += _imported(path)
    return sources


def _root_of(package: str) -> Path:
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise registry.RegistryError(f"the package {package} is not found; run from the checkout's root")
    return Path(next(iter(spec.submodule_search_locations)))


def _imported(path: Path) -> list[str]:
    """What a module imports when it is imported, by full name; some are names of things in a module."""
    names: list[str] = []
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return names


def stage_code(folder: Path) -> list[str]:
    """Copies what is carried into a folder; returns the packages' paths there, for `code_paths`."""
    for module, path in carried().items():
        parts = module.split(".")
        target = (
            folder.joinpath(*parts, "__init__.py")
            if path.name == "__init__.py"
            else (folder.joinpath(*parts).with_suffix(".py"))
        )
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    return [str(folder / name) for name in PACKAGES]


@with_named_errors
def log_model(dataset: Dataset, run: Run, run_id: str) -> str:
    """Logs a run as an MLflow model, unless it is logged already.

    Args:
        dataset: Of the run.
        run: The run.
        run_id: Its MLflow run.

    Returns:
        Id of the logged model.

    Raises:
        RegistryError: What was uploaded does not give the run's digest.
        TrackingError: MLflow is not reachable or refuses.
    """
    done = _logged(dataset, run)
    if done is not None:
        return done
    import mlflow

    with tempfile.TemporaryDirectory(prefix="mtgr-code-") as folder, mlflow.start_run(run_id=run_id):
        info = mlflow.pyfunc.log_model(
            name=MODEL_NAME,
            python_model=str(SERVING),
            artifacts={"config": str(run.path / CONFIG), "weights": str(run.path / WEIGHTS)},
            code_paths=stage_code(Path(folder)),
            signature=signature_of(dataset),
            input_example=input_example(dataset),
            pip_requirements=requirements(),
            model_config={registry.DIGEST: run.digest},
            tags={registry.DIGEST: run.digest},
            metadata={"dataset": dataset.name, "preset": run.record["preset"], "ds": run.ds},
        )
    registry.check_files(str(info.model_id), run.digest)
    return str(info.model_id)


def _logged(dataset: Dataset, run: Run) -> str | None:
    """Id of a whole logged model of the run; those that an interrupted upload left are deleted."""
    models = client().search_logged_models(
        [experiment_id(dataset.name)], filter_string=f"tags.{registry.DIGEST} = '{run.digest}'"
    )
    whole = None
    for logged in sorted(models, key=lambda model: model.creation_timestamp):
        try:
            if whole is None and str(logged.status) == "READY":
                registry.check_files(logged.model_id, run.digest)
                whole = str(logged.model_id)
                continue
        except registry.RegistryError as error:
            logger.warning("%s", error)
        if whole is None:
            logger.info("the logged model %s is not whole and is deleted", logged.model_id)
            client().delete_logged_model(logged.model_id)
    return whole
