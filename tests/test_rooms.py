"""The order of the rooms: a module imports from its own and from those before it, not from a later one."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ORDERS = (
    "contract lake sources simulator samples .",
    "data embeddings rankers config runs training,judging reports registry serving .",
    "rules measuring judging .",
)
FOLDERS = ("spark_jobs", "model", "expectations")
# What a room before `config` may take of it: nothing but variables of the environment.
EXCEPTIONS = {"model.config.environment"}


def rooms(order: str) -> dict[str, int]:
    return {room: place for place, some in enumerate(order.split()) for room in some.split(",")}


def imported(path: Path) -> set[str]:
    nodes = list(ast.walk(ast.parse(path.read_text())))
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    return names | {
        f"{node.module}.{alias.name}" if (ROOT / node.module.replace(".", "/")).is_dir() else node.module
        for node in nodes
        if isinstance(node, ast.ImportFrom) and node.module
        for alias in node.names
    }


@pytest.mark.parametrize(("folder", "order"), zip(FOLDERS, ORDERS, strict=True))
def test_no_room_imports_from_a_later_one(folder: str, order: str) -> None:
    places = rooms(order)
    assert {path.name for path in (ROOT / folder).iterdir() if (path / "__init__.py").exists()} < set(places)
    for path in (ROOT / folder).rglob("*.py"):
        own = path.relative_to(ROOT / folder).parts
        room = own[0] if len(own) > 1 else own[0].removesuffix(".py")
        room = room if room in places else "."
        for name in imported(path) - EXCEPTIONS:
            package, _, rest = name.partition(".")
            other = rest.split(".")[0] if rest.split(".")[0] in places else "."
            if package == folder and rest:
                assert other == room or places[other] < places[room], f"{path} imports {name}"


@pytest.mark.parametrize("folder", ["spark_jobs", "model", "expectations", "scripts", "dags", "benchmarks"])
def test_only_the_registry_and_the_served_model_import_mlflow(folder: str) -> None:
    rooms_of_mlflow = (ROOT / "model" / "registry", ROOT / "model" / "serving")  # pyfunc is MLflow's form
    for path in (ROOT / folder).rglob("*.py"):
        if not any(room in path.parents for room in rooms_of_mlflow):
            assert not any(name.split(".")[0] == "mlflow" for name in imported(path)), path


def test_the_contract_needs_the_standard_library_alone() -> None:
    import sys

    for path in (ROOT / "spark_jobs" / "contract").rglob("*.py"):
        for name in imported(path):
            assert name.split(".")[0] in sys.stdlib_module_names or name.startswith("spark_jobs.contract"), (
                path
            )
