"""A serving package: all that scores one registered version, in a folder that is whole or not there.

    package = Package.load(locations.package("foodlog", 4))     # checks every digest first
    scorer = Scorer(package.dataset, package.config, package.ranker("cpu"))

| file | what |
|---|---|
| `package.json` | format, dataset, version, preset, precision; SHA-256 and bytes of every other file |
| `config.json` | the run's: its declaration and config |
| `dense.safetensors` | the weights but for id tables |
| `tables/<width>.safetensors` | the dynamic tables of a width: ids, sorted within each table, and vectors |
| `dense.pt2` | where it was asked for, the dense part compiled by AOTInductor: see `model.serving.graph` |
| `golden.arrow` | requests with the scores that evaluation gives them |
| `parity.json` | how far what is exported is from evaluation on these; see `model.serving.parity` |

Tables are mapped into memory, not read: pages come as ids ask for them, and are shared by all processes that
serve the package. `package.json` is written last, so that nothing half-written loads.
"""

from __future__ import annotations

import functools
import json
import logging
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from model.config.run import Config
from model.rankers.protocol import Ranker, build_ranker
from model.runs.files import RunError, sha256, sync_folder, write_file, write_text
from model.runs.store import CONFIG, read_config
from model.serving.golden import Golden
from model.serving.graph import CompiledRanker, built_for
from spark_jobs.contract.features import Dataset

logger = logging.getLogger(__name__)

FORMAT = 1
RECORD, PARITY, GOLDEN = "package.json", "parity.json", "golden.arrow"
DENSE, TABLES, GRAPH = "dense.safetensors", "tables", "dense.pt2"
_DYNAMIC = "inputs.embeddings.dynamic."


class PackageError(RunError):
    """A package is missing, damaged or not what was asked for; the message names it and what to do."""


@dataclass(frozen=True, kw_only=True)
class Package:
    """A package whose files were checked.

    Attributes:
        path: Its folder.
        record: What `package.json` says.
        dataset: As the model's run declared it.
        config: Of the run.
        golden: Requests with their scores.
    """

    path: Path
    record: Mapping[str, Any]
    dataset: Dataset
    config: Config
    golden: Golden

    @staticmethod
    def load(folder: Path | str) -> Package:
        """A package, once every file has the digest that `package.json` says.

        Raises:
            PackageError: It is missing, of another format, or a file differs: names the file, the digest that
                is expected and the one that it has.
        """
        folder = Path(folder)
        try:
            record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
            if record["format"] != FORMAT:
                raise ValueError(f"it is of format {record['format']}, this code reads {FORMAT}")
            return Package.checked(folder, record)
        except FileNotFoundError as error:
            raise PackageError(f"{folder} is no serving package: there is no {error.filename}") from error
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise PackageError(f"{folder / RECORD} cannot be read: {error}; export it again") from error

    @staticmethod
    def checked(folder: Path, record: Mapping[str, Any]) -> Package:
        """The package of a folder and its record; see `load`."""
        for name, file in record["files"].items():
            path = folder / name
            size = path.stat().st_size if path.is_file() else -1
            if size != file["bytes"]:
                has = "is missing" if size < 0 else f"has {size} bytes"
                raise PackageError(f"{path} {has}, expected are {file['bytes']}: it is not loaded")
            digest = sha256(path)
            if digest != file["sha256"]:
                raise PackageError(
                    f"{path} has the SHA-256 {digest}, expected is {file['sha256']}: it is not loaded; "
                    f"delete {folder} and export it again"
                )
        dataset, config = read_config(folder)
        golden = Golden.read(folder / GOLDEN, str(record["golden"]))
        return Package(path=folder, record=record, dataset=dataset, config=config, golden=golden)

    @property
    def sha256(self) -> str:
        """SHA-256 of `package.json`, and by it of every file: what the registry notes."""
        return sha256(self.path / RECORD)

    def parity(self) -> dict[str, Any]:
        """The reports of `model.serving.parity` with which it was exported: of `ranker`, and of `graph`."""
        reports: dict[str, Any] = json.loads((self.path / PARITY).read_text(encoding="utf-8"))
        return reports

    @property
    def version(self) -> int:
        """Number of the registered version."""
        return int(self.record["version"])

    @property
    def digest(self) -> str:
        """SHA-256 of the registered version's config and weights."""
        return str(self.record["digest"])

    def weights(self) -> dict[str, Tensor]:
        """The weights as a state dict has them; on the CPU, id tables are the mapped files."""
        weights: dict[str, Tensor] = load_file(self.path / DENSE)
        for name in self.record["tables"]:
            tables = load_file(self.path / TABLES / f"{name}.safetensors")
            weights |= {f"{_DYNAMIC}{name}.{part}": tensor for part, tensor in tables.items()}
        return weights

    def ranker(
        self, device: torch.device | str = "cpu", weights: Mapping[str, Tensor] | None = None
    ) -> Ranker:
        """The model to score with.

        Args:
            device: Where to score.
            weights: Of a later run of the same config, see `model.serving.changed`; by default the package's.

        Raises:
            PackageError: The weights are of another config.
        """
        ranker = build_ranker(self.dataset, self.config.model, self.config.train.seed)
        try:
            ranker.load_state_dict(self.weights() if weights is None else weights)
        except RuntimeError as error:
            raise PackageError(f"{self.path}: its weights do not load into its config: {error}") from error
        return ranker.to(torch.device(device)).eval().requires_grad_(False)

    def compiled(self, device: torch.device | str = "cpu") -> CompiledRanker:
        """The model with its compiled graph.

        Raises:
            PackageError: It has none, or one for another kind of machine.
        """
        graph, here = self.record["graph"], built_for(device)
        if graph is None:
            raise PackageError(f"{self.path} has no compiled graph: export it with --graph, or use `ranker`")
        if graph != here:
            raise PackageError(
                f"{self.path / GRAPH} was compiled for {graph}, here is {here}: export it here with --graph, "
                "or use `ranker`"
            )
        return CompiledRanker(self.ranker(device), self.path / GRAPH)

    def fastest(self, device: torch.device | str = "cpu") -> nn.Module:
        """`compiled` where the package has a graph for such a device, else `ranker`; the log says which."""
        graph, here = self.record["graph"], built_for(device)
        if graph == here:
            logger.info("%s scores by its compiled graph", self.path)
            return self.compiled(device)
        if graph is not None:
            logger.warning("%s has a graph for %s, here is %s: it scores without it", self.path, graph, here)
        return self.ranker(device)


def write_parts(folder: Path, weights: Mapping[str, Tensor], config: Path, golden: Golden) -> list[str]:
    """Writes what a package consists of but for its record, each file whole and on the disk.

    Args:
        folder: An empty one.
        weights: Of the model, as its state dict has them.
        config: Its `config.json`.
        golden: Requests with their scores.

    Returns:
        Names of the dynamic collections, `tables` of the record.

    Raises:
        RunError: A file cannot be written.
    """
    (folder / TABLES).mkdir(parents=True)
    tables: dict[str, dict[str, Tensor]] = {}
    dense: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        if name.startswith(_DYNAMIC):
            collection, _, part = name.removeprefix(_DYNAMIC).partition(".")
            tables.setdefault(collection, {})[part] = tensor
        else:
            dense[name] = tensor
    write_file(folder / CONFIG, lambda path: shutil.copyfile(config, path))
    write_file(folder / DENSE, lambda path: save_file(dense, path))
    for name, parts in tables.items():
        write_file(folder / TABLES / f"{name}.safetensors", functools.partial(save_file, parts))
    write_file(folder / GOLDEN, golden.write)
    return sorted(tables)


def files_of(folder: Path) -> dict[str, dict[str, Any]]:
    """By name, digest and bytes of every file in a folder but `package.json`."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != RECORD)
    return {
        path.relative_to(folder).as_posix(): {"sha256": sha256(path), "bytes": path.stat().st_size}
        for path in paths
    }


def as_json(value: Mapping[str, Any]) -> str:
    """A record or report as its file has it."""
    return json.dumps(value, indent=1, sort_keys=True) + "\n"


def seal(folder: Path, record: Mapping[str, Any]) -> None:
    """Writes `package.json`: from here on the folder is a package; all its names are on the disk."""
    write_text(folder / RECORD, as_json(record))
    for path in folder.rglob("*"):
        if path.is_dir():
            sync_folder(path)
    sync_folder(folder)
