"""A serving package: what is in it, what is not loaded, and what is not exported."""

from __future__ import annotations

import copy
import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from deltalake import write_deltalake
from safetensors.torch import save, save_file
from torch import Tensor

from model import export
from model.config.presets import preset_named
from model.data.synthetic import random_batch, random_samples
from model.embeddings.changes import changes
from model.judging.scoring import SCORES, Scorer
from model.rankers.protocol import build_ranker
from model.registry import versions as registry
from model.registry.store import client
from model.serving import graph
from model.serving.changed import later_weights
from model.serving.golden import requests_of
from model.serving.package import Package, PackageError
from spark_jobs.contract import locations
from spark_jobs.contract.command import RefusedError
from spark_jobs.contract.foodlog import FOODLOG
from spark_jobs.lake import verdicts

DS = "2026-03-02"


def weights_of(preset: str, seed: int = 1) -> dict[str, Tensor]:
    """Weights of a model that knows half of the ids that synthetic rows have."""
    weights = build_ranker(FOODLOG, preset_named(preset).model, seed).state_dict()
    generator = torch.Generator().manual_seed(seed)
    for name in [name for name in weights if name.endswith(".starts")]:
        base, num_tables = name.removesuffix("starts"), len(weights[name]) - 1
        width = weights[f"{base}vectors"].shape[1]
        weights[f"{base}ids"] = torch.arange(250).repeat(num_tables)
        weights[name] = torch.arange(num_tables + 1) * 250
        weights[f"{base}vectors"] = torch.randn(250 * num_tables, width, generator=generator)
    return weights


@pytest.fixture
def champion(make_version: Callable[..., Any]) -> Any:
    """The champion: a version of the preset tiny."""
    _, version = make_version("2026-03-03", ["2026-03-01"], weights=save(weights_of("tiny")))
    registry.set_champion("foodlog", version)
    return version


def add_day(ds: str, seed: int) -> None:
    """A day of the samples table that its gate has passed."""
    rows = random_samples(FOODLOG, 40, seed=seed, ds=ds, max_candidates=12)
    write_deltalake(locations.table("foodlog", "samples"), rows, partition_by=["ds"], mode="append")
    verdicts.allow("foodlog", "samples", [ds], "a test")


def test_a_package_scores_as_evaluation_from_mapped_tables(
    champion: Any, var: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    add_day("2026-03-01", 1)
    add_day(DS, 2)
    assert export.main(["--dataset", "foodlog"]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    path = var / "serving" / "foodlog" / "1"
    assert result["path"] == str(path)
    assert result["new"]
    assert result["golden"] == f"samples of {DS}, version 1"  # the newest day
    assert result["parity_max"] <= 1e-5
    assert result["metrics_max"] <= 1e-4
    package = Package.load(path)
    ranker = package.ranker()
    rows = random_samples(FOODLOG, 20, seed=3)
    ours = Scorer(package.dataset, package.config, ranker).score(rows)
    theirs = Scorer.load(registry.fetch(champion)).score(rows)
    for name in SCORES:
        np.testing.assert_array_equal(ours[name], theirs[name])
    mapped = [line.split() for line in Path("/proc/self/maps").read_text().splitlines()]
    ranges = [tuple(int(end, 16) for end in line[0].split("-")) for line in mapped if str(path) in line[-1]]
    for name, tensor in ranker.named_buffers():
        if name.endswith((".ids", ".vectors")) and ".dynamic." in name:
            assert any(low <= tensor.data_ptr() < high for low, high in ranges), f"{name} is not mapped"
    with pytest.raises(PackageError, match="has no compiled graph: export it with --graph"):
        package.compiled()
    with pytest.raises(PackageError, match="was exported without --graph: delete it"):
        export.export(FOODLOG, graph=True)
    tags = registry.numbered("foodlog", 1).tags
    assert tags["package"] == str(path)
    assert tags["package_digest"] == package.sha256
    assert float(tags["parity_max"]) == pytest.approx(result["parity_max"], rel=0.01)
    assert "parity.json" in {file.path for file in client().list_artifacts(champion.run_id)}
    page = client().get_registered_model("mtgr-foodlog").description
    assert re.search(
        rf"package, `{path}`, gives scores \[within .*/runs/{champion.run_id}/artifacts/parity.json", page
    )
    before = {file: file.stat().st_mtime_ns for file in path.rglob("*")}
    assert not export.export(FOODLOG)["new"]
    assert {file: file.stat().st_mtime_ns for file in path.rglob("*")} == before


def test_no_file_that_differs_is_loaded(champion: Any, var: Path) -> None:
    path = Path(export.export(FOODLOG)["path"])
    package = Package.load(path)
    assert package.golden.source == "synthetic rows"  # the lake has none
    assert {"tables/width_16.safetensors", "tables/width_32.safetensors"} < package.record["files"].keys()
    assert set(package.record["files"]) == {
        file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file()
    } - {"package.json"}
    for name, file in package.record["files"].items():
        whole = (path / name).read_bytes()
        (path / name).write_bytes(bytes([*whole[:-1], whole[-1] ^ 1]))
        with pytest.raises(
            PackageError, match=f"{name} has the SHA-256 [0-9a-f]+, expected is {file['sha256']}"
        ):
            Package.load(path)
        (path / name).write_bytes(whole[:-1])
        with pytest.raises(
            PackageError, match=f"{name} has {len(whole) - 1} bytes, expected are {len(whole)}"
        ):
            Package.load(path)
        (path / name).unlink()
        with pytest.raises(PackageError, match=f"{name} is missing"):
            Package.load(path)
        (path / name).write_bytes(whole)
    Package.load(path)
    record = json.loads((path / "package.json").read_text())
    (path / "package.json").write_text(json.dumps({**record, "format": 2}))
    with pytest.raises(PackageError, match="it is of format 2, this code reads 1"):
        Package.load(path)
    (path / "package.json").unlink()
    with pytest.raises(PackageError, match=r"is no serving package: there is no .*package.json"):
        Package.load(path)


@pytest.mark.parametrize("part", ["dynamic.width_32.vectors", "blocks.1.out.weight"])
def test_what_does_not_score_as_evaluation_is_not_exported(
    champion: Any, var: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], part: str
) -> None:
    def damaged(path: Path) -> dict[str, Tensor]:
        weights = load(path)
        name = next(name for name in weights if name.endswith(part))
        weights[name] = weights[name] * 1.1
        return weights

    load = export.load_file
    monkeypatch.setattr(export, "load_file", damaged)
    assert export.main(["--dataset", "foodlog"]) == 1
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert re.search(
        r"of its ranker, scores differ .* worst is \w+ of request '\d+-\d+' of user \d+", result["refused"]
    )
    assert result["parity_max"] > 1e-5
    assert os.listdir(var / "serving" / "foodlog") == [".lock"]  # nor a half-written one
    assert "package" not in registry.numbered("foodlog", 1).tags
    monkeypatch.setattr(export, "load_file", load)
    assert export.export(FOODLOG)["new"]


def test_a_package_of_another_version_stays(champion: Any, make_version: Any, var: Path) -> None:
    path = Path(export.export(FOODLOG)["path"])
    make_version("2026-03-04", ["2026-03-01"], weights=save(weights_of("tiny", 2)))
    with pytest.raises(PackageError, match="delete it, or give another folder by --out"):
        export.export(FOODLOG, 2, out=path)
    assert Package.load(path).version == 1
    assert export.export(FOODLOG, 2)["path"] == str(var / "serving" / "foodlog" / "2")


def test_without_a_champion_a_version_must_be_named(
    make_version: Callable[..., Any], var: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make_version("2026-03-03", ["2026-03-01"])
    assert export.main(["--dataset", "foodlog"]) == 1
    assert "no champion to export" in caplog.text
    assert export.main(["--dataset", "foodlog", "--version", "7"]) == 1
    assert "has no version 7" in caplog.text


def test_requests_are_rows_with_what_they_have_seen() -> None:
    windows = random_samples(FOODLOG, 2, seed=0, max_candidates=4).to_pylist()
    window, other = (dict(row) for row in windows)
    for row, ids, visible in ((window, "abac", [0, 1, 0, 2]), (other, "ab", [0, 0])):
        for name, values in row.items():
            if name.startswith(("candidate_", "label_")):
                row[name] = [values[0]] * len(ids)
            elif name.startswith("realtime_"):
                row[name] = [values[0]] * 3 if values else row["realtime_time_ms"]
        row |= {"candidate_request_id": list(ids), "candidate_visible": visible}
        row["candidate_impression_id"] = [str(place) for place in range(len(ids))]
    if not window["realtime_time_ms"]:
        pytest.fail("the row needs real-time behaviours")
    table = pa.Table.from_pylist([window, other], schema=random_samples(FOODLOG, 1).schema)
    rows, places = requests_of(table)
    assert places.tolist() == [0, 2, 1, 3, 4, 5]
    requests = rows.to_pylist()
    told = [
        (row["user_id"], *row["candidate_request_id"][:1], row["candidate_impression_id"]) for row in requests
    ]
    assert told == [(0, "a", ["0", "2"]), (0, "b", ["1"]), (0, "c", ["3"]), (1, "a", ["0"]), (1, "b", ["1"])]
    assert [len(row["realtime_time_ms"]) for row in requests] == [0, 1, 2, 0, 0]
    assert all(row["static_time_ms"] == window["static_time_ms"] for row in requests[:3])
    assert rows.schema.equals(table.schema)


@pytest.mark.slow
def test_a_compiled_graph_is_exported_if_it_scores_as_evaluation(
    champion: Any, var: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Any number of rows, behaviours and candidates; not the graph of other weights, nor elsewhere."""
    compile_graph = export.compile_graph

    def of_other_weights(ranker: Any, batch: Any, precision: str) -> bytes:
        other = copy.deepcopy(ranker)
        other.load_state_dict(weights_of("tiny", seed=2))
        return compile_graph(other, batch, precision)

    monkeypatch.setattr(export, "compile_graph", of_other_weights)
    with pytest.raises(RefusedError, match="of its graph, scores differ from evaluation's"):
        export.export(FOODLOG, graph=True)
    assert os.listdir(var / "serving" / "foodlog") == [".lock"]
    monkeypatch.setattr(export, "compile_graph", compile_graph)
    result = export.export(FOODLOG, graph=True)
    package = Package.load(result["path"])
    assert package.parity()["graph"]["max"] <= 1e-5
    assert result["graph"] == package.record["graph"] == graph.built_for("cpu")
    compiled = Scorer(package.dataset, package.config, package.compiled())
    theirs = Scorer.load(registry.fetch(champion))
    for limits in ((0, 0, 1), (0, 0, 30), (60, 0, 1), (0, 9, 3), (200, 40, 60)):
        sizes = dict(zip(("max_static", "max_realtime", "max_candidates"), limits, strict=True))
        for num_rows in (1, 2, 7):
            rows = random_samples(FOODLOG, num_rows, seed=num_rows, **sizes)
            ours, expected = compiled.score(rows), theirs.score(rows)
            for name in SCORES:
                np.testing.assert_allclose(ours[name], expected[name], atol=1e-5, rtol=0)
    record = {**package.record, "graph": {**result["graph"], "machine": "other"}}
    with pytest.raises(PackageError, match=r"dense.pt2 was compiled for .*'other'.*, here is"):
        dataclasses.replace(package, record=record).compiled()
    assert isinstance(package.fastest(), graph.CompiledRanker)
    assert not isinstance(dataclasses.replace(package, record=record).fastest(), graph.CompiledRanker)


def test_an_architecture_that_has_no_graph_is_told(make_version: Callable[..., Any], var: Path) -> None:
    make_version("2026-03-03", ["2026-03-01"], "user_tower", weights=save(weights_of("user_tower")))
    with pytest.raises(PackageError, match=r"user_tower of .* has no compiled graph, MTGR has"):
        export.export(FOODLOG, 1, graph=True)
    assert export.export(FOODLOG, 1)["graph"] is None


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_graph_is_the_ranker_of_flat_tensors(precision: str) -> None:
    ranker = build_ranker(FOODLOG, preset_named("tiny").model, 1).eval()
    ranker.load_state_dict(weights_of("tiny"))
    batch = random_batch(FOODLOG, 5).laid_out()
    dense = graph.DenseGraph(ranker, precision)
    with torch.inference_mode():
        logits = dense(*graph.flat_inputs(batch, ranker.inputs.embeddings(batch)))
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
            assert torch.equal(logits, ranker(batch))


PHASES = ("scored", "written", "before_rename", "renamed", "linked")


@pytest.mark.slow
@pytest.mark.parametrize("phase", PHASES)
def test_a_killed_export_leaves_nothing_half_written_that_loads(champion: Any, var: Path, phase: str) -> None:
    command = [sys.executable, "-m", "model.export", "--dataset", "foodlog"]
    killed = subprocess.run(command, env={**os.environ, "MTGR_KILL_AT": f"export:{phase}"}, check=False)
    assert killed.returncode == -signal.SIGKILL
    left = list((var / "serving" / "foodlog").glob("[!.]*")) + list((var / "serving" / "foodlog").glob(".*"))
    for folder in [path for path in left if path.is_dir()]:
        if folder.name == "1":
            assert Package.load(folder).version == 1
            assert phase in ("renamed", "linked")
        elif phase != "before_rename":  # there it is whole but for its name
            with pytest.raises(PackageError):
                Package.load(folder)
    assert subprocess.run(command, env=dict(os.environ), check=False).returncode == 0
    assert Package.load(var / "serving" / "foodlog" / "1").version == 1
    assert sorted(path.name for path in (var / "serving" / "foodlog").iterdir()) == [".lock", "1"]
    assert registry.numbered("foodlog", 1).tags["package"]


def test_the_phases_are_all_that_an_export_reaches(
    champion: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MTGR_TRACE_PHASES", str(tmp_path / "phases"))
    export.export(FOODLOG)
    reached = (tmp_path / "phases").read_text().split()
    assert reached == [f"export:{phase}" for phase in PHASES]


def test_the_changed_rows_of_a_day_make_a_package_score_as_the_later_version(
    champion: Any, make_version: Any, var: Path, tmp_path: Path
) -> None:
    package = Package.load(export.export(FOODLOG)["path"])
    older, newer = weights_of("tiny"), weights_of("tiny")
    name = "inputs.embeddings.dynamic.width_16."
    newer[f"{name}ids"] = torch.arange(7, 307)  # seven have gone, 57 have come
    newer[f"{name}starts"] = torch.tensor([0, 300])
    newer[f"{name}vectors"] = torch.cat([older[f"{name}vectors"][7:], torch.ones(57, 16)])
    newer["inputs.embeddings.dynamic.width_32.vectors"][5] += 1
    newer["heads.norm.bias"] += 0.1
    run, later = make_version("2026-03-04", ["2026-03-01"], weights=save(newer))
    path, versions = tmp_path / "changes.safetensors", {"from": package.digest, "to": run.digest}
    save_file(changes(older, newer), path, metadata=versions)
    rows = random_samples(FOODLOG, 20, seed=3)
    scorer = Scorer(package.dataset, package.config, package.ranker("cpu", later_weights(package, path)))
    theirs, before = Scorer.load(registry.fetch(later)).score(rows), package.ranker()
    for score in SCORES:
        np.testing.assert_array_equal(scorer.score(rows)[score], theirs[score])
    unchanged = Scorer.load(registry.fetch(champion)).score(rows)
    np.testing.assert_array_equal(
        Scorer(package.dataset, package.config, before).score(rows)["ctr_live"], unchanged["ctr_live"]
    )
    assert (theirs["ctr_live"] != unchanged["ctr_live"]).any()
    whole = path.read_bytes()
    path.write_bytes(bytes([*whole[:-1], whole[-1] ^ 1]))
    with pytest.raises(PackageError, match=f"leads to the digest [0-9a-f]+, expected is {run.digest}"):
        later_weights(package, path)
    save_file(changes(older, newer), path, metadata={**versions, "from": run.digest})
    with pytest.raises(PackageError, match=f"starts from the digest {run.digest}"):
        later_weights(package, path)
    path.write_bytes(whole[:100])
    with pytest.raises(PackageError, match="cannot be read"):
        later_weights(package, path)
