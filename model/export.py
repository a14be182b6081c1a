"""Exports a registered version for serving: `python -m model.export --dataset foodlog [--version N]`.

By default the champion. Its package (`model.serving.package`) becomes `$MTGR_VAR/serving/<dataset>/<version>`
by one rename, once it has scored golden requests as evaluation does; else nothing is there and the command
ends with 1. A package that is there already stays as it is.
"""

from __future__ import annotations

import argparse
import logging
import os
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

from model.config.environment import device
from model.data.synthetic import random_samples
from model.judging.scoring import Scorer
from model.rankers.mtgr import MtgrRanker
from model.registry import pages, tracking
from model.registry import versions as registry
from model.registry.versions import RegistryError, Version
from model.runs.files import sync_folder, write_file, write_text
from model.runs.store import CONFIG, WEIGHTS, exclusively, partial_path
from model.serving import tensorrt
from model.serving.golden import golden, golden_windows
from model.serving.graph import built_for, compile_graph
from model.serving.package import (
    FORMAT,
    GRAPH,
    PARITY,
    Package,
    PackageError,
    as_json,
    files_of,
    seal,
    write_parts,
)
from model.serving.parity import parity, told
from spark_jobs.contract import command, locations
from spark_jobs.contract.command import RefusedError
from spark_jobs.contract.features import Dataset
from spark_jobs.contract.phases import reach

logger = logging.getLogger(__name__)


def export(
    dataset: Dataset, number: int | None = None, out: Path | None = None, *, graph: bool = False
) -> dict[str, Any]:
    """Makes the serving package of a registered version, or finds it made.

    Args:
        dataset: Whose version.
        number: Version; default: the champion.
        out: The package's folder; default: see the module.
        graph: Whether to compile the dense part for the device of this machine.

    Returns:
        `version`, `digest`, `path`, `new`, `bytes`, `graph`, and of parity `parity_max`, `metrics_max`,
        `requests`.

    Raises:
        RefusedError: It does not score as evaluation does.
        PackageError: Another package is at its place.
        RegistryError: There is no such version, or its files are damaged.
        TrackingError: MLflow is not reachable or refuses.
    """
    version = _version(dataset.name, number)
    path = (out or locations.package(dataset.name, version.version)).absolute()
    with exclusively(path.parent, "exporting"):
        is_new = not path.exists()
        if is_new:
            _make(dataset, version, path, graph=graph)
        package = Package.load(path)
    if package.digest != version.digest:
        raise PackageError(
            f"{path} is a package of the digest {package.digest}, {version} has {version.digest}: delete it, "
            "or give another folder by --out"
        )
    if graph and package.record["graph"] is None:
        raise PackageError(f"{path} was exported without --graph: delete it, or give another folder by --out")
    reports = package.parity()
    result = {"parity_max": _greatest(reports, "max"), "metrics_max": _greatest(reports, "metrics_max")}
    _link(dataset.name, version, package, reports)
    return {
        "dataset": dataset.name,
        "version": version.version,
        "preset": version.preset,
        "digest": version.digest,
        "path": str(path),
        "new": is_new,
        "bytes": sum(file["bytes"] for file in package.record["files"].values()),
        "graph": package.record["graph"],
        "requests": package.golden.rows.num_rows,
        "golden": package.golden.source,
        **result,
    }


def _greatest(reports: Mapping[str, Any], figure: str) -> float:
    return max(float(report[figure]) for report in reports.values())


def _version(dataset: str, number: int | None) -> Version:
    if number is not None:
        return registry.numbered(dataset, number)
    version = registry.aliased(dataset, registry.CHAMPION)
    if version is None:
        raise RegistryError(
            f"mtgr-{dataset} has no champion to export: promote one (python -m model.promote), or name a "
            "version: --version <N>"
        )
    return version


def _make(dataset: Dataset, version: Version, path: Path, *, graph: bool) -> None:
    """Writes the package beside its place, checks its scores, and renames it."""
    partial = partial_path(path)
    shutil.rmtree(partial, ignore_errors=True)  # of one that was killed
    try:
        record = _written(dataset, version, partial, graph=graph)
        reach("export:written")
        _check(partial, record)
        record["files"] = files_of(partial)
        seal(partial, record)
        reach("export:before_rename")
        os.rename(partial, path)  # onto nothing: one that is there would stay
        sync_folder(path.parent)
        reach("export:renamed")
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _written(dataset: Dataset, version: Version, partial: Path, *, graph: bool) -> dict[str, Any]:
    """Writes all parts of a package but for its record and its parity; returns the record."""
    source = registry.fetch(version)
    scorer = Scorer.load(source, device())
    if graph and not isinstance(scorer.ranker, MtgrRanker):
        raise PackageError(
            f"the architecture {scorer.config.model.architecture} of {version} has no compiled graph, MTGR "
            "has: export it without --graph"
        )
    windows, where = golden_windows(dataset, scorer.dataset)
    requests = golden(scorer, windows, where)
    reach("export:scored")
    tables = write_parts(partial, load_file(source / WEIGHTS), source / CONFIG, requests)
    if graph:
        _compile(scorer, partial / GRAPH)
    return {
        "format": FORMAT,
        "dataset": version.model.removeprefix("mtgr-"),
        "version": version.version,
        "preset": version.preset,
        "ds": version.ds,
        "digest": version.digest,
        "precision": scorer.config.train.precision,
        "tables": tables,
        "golden": where,
        "graph": built_for(scorer.device) if graph else None,
        "files": files_of(partial),
    }


def _compile(scorer: Scorer, path: Path) -> None:
    """Compiles the dense part of what a scorer scores with."""
    rows = random_samples(scorer.dataset, 8)
    batch = scorer.encoder.encode(rows).laid_out().to(scorer.device)
    assert isinstance(scorer.ranker, MtgrRanker)
    graph = compile_graph(scorer.ranker, batch, scorer.config.train.precision)
    write_file(path, lambda neighbour: neighbour.write_bytes(graph))
    reach("export:compiled")


def _check(partial: Path, record: Mapping[str, Any]) -> None:
    """Scores with what was written, as it will be loaded, and writes the reports.

    Raises:
        RefusedError: Scores are not evaluation's.
    """
    package = Package.checked(partial, record)
    where, reports = device(), {}
    rankers: dict[str, Callable[[torch.device], nn.Module]] = {"ranker": package.ranker}
    if record["graph"] is not None:
        rankers["graph"] = package.compiled
    for name, ranker in rankers.items():
        scorer = Scorer(package.dataset, package.config, ranker(where), where)
        report = reports[name] = parity(package.golden, scorer, str(record["precision"]))
        if not report["passed"]:
            facts = {key: record[key] for key in ("dataset", "version", "preset", "digest")}
            figures = {"parity_max": report["max"], "metrics_max": report["metrics_max"]}
            raise RefusedError(
                f"version {record['version']} is not exported: of its {name}, {told(report)}",
                {**facts, **figures, "of": name, "worst": report["worst"]},
            )
    write_text(partial / PARITY, as_json(reports))


def _link(dataset: str, version: Version, package: Package, reports: Mapping[str, Any]) -> None:
    """Lets the version and its run in MLflow tell of the package."""
    tags = {
        registry.PACKAGE: str(package.path),
        registry.PACKAGE_DIGEST: package.sha256,
        registry.PARITY: f"{_greatest(reports, 'max'):.3g}",
    }
    tracking.log_json(version.run_id, registry.PARITY_REPORT.removesuffix(".json"), reports)
    with registry.exclusive(dataset, "export"):
        registry.annotate(version, tags)
        pages.refresh(dataset)
    reach("export:linked")


def _run(arguments: argparse.Namespace) -> Mapping[str, Any]:
    result = export(arguments.dataset, arguments.version, arguments.out, graph=arguments.graph)
    if arguments.engines:
        package = Package.load(result["path"])
        paths = {capability: tensorrt.engine(package, capability) for capability in arguments.engines}
        result["engines"] = {capability: path and str(path) for capability, path in paths.items()}
    logger.info("version %d of %s is at %s", result["version"], result["dataset"], result["path"])
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Exports; see `command.run` for the exit codes."""
    parser = command.parser("model.export", __doc__)
    command.add_dataset(parser)
    parser.add_argument("--version", type=int, help="version to export (default: the champion)")
    parser.add_argument("--out", type=Path, help="the package's folder (default: in $MTGR_VAR/serving)")
    parser.add_argument(
        "--graph", action="store_true", help="compile the dense part for this machine's device"
    )
    parser.add_argument(
        "--engines",
        nargs="+",
        metavar="CAPABILITY",
        help="build TensorRT's engines for such cards: 8.0 8.9 12.0",
    )
    return command.run(parser, _run, argv)


if __name__ == "__main__":
    sys.exit(main())
