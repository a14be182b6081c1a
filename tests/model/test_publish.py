"""What is published: the champion once, nothing when nobody was promoted, nothing that is refused."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import save

from model import export, publish
from model.registry import versions as registry
from model.serving import roles
from model.serving.package import Package
from tests.end_to_end.chain import difference, state_of
from tests.model.test_export import PHASES as EXPORT_PHASES
from tests.model.test_export import weights_of


def published(capsys: pytest.CaptureFixture[str], code: int = 0) -> dict[str, Any]:
    assert publish.main(["--dataset", "foodlog", "--ds", "2026-03-03"]) == code
    result: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
    return result


def test_a_champion_is_published_once_and_a_refused_one_leaves_the_old_one_serving(
    make_version: Callable[..., Any], var: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    assert published(capsys) == {
        "dataset": "foodlog", "role": "current", "version": None, "before": None, "changed": False,
        "ds": "2026-03-03",
    }  # fmt: skip
    _, first = make_version("2026-03-02", ["2026-03-01"], weights=save(weights_of("tiny", 1)))
    _, second = make_version("2026-03-03", ["2026-03-01"], weights=save(weights_of("tiny", 2)))
    registry.set_champion("foodlog", first)
    result = published(capsys)
    assert (result["version"], result["before"], result["changed"]) == (1, None, True)
    assert result["parity_max"] <= 1e-5
    with monkeypatch.context() as patch:
        patch.setattr(publish, "export", None)  # not even looked at
        assert not published(capsys)["changed"]
    registry.set_champion("foodlog", second)
    with monkeypatch.context() as patch:
        parity = export.parity
        patch.setattr(export, "parity", lambda *of: {**parity(*of), "passed": False})
        refused = published(capsys, code=1)
    assert refused["refused"].startswith("version 2 is not exported")
    assert roles.version_in("foodlog", roles.CURRENT) == 1
    result = published(capsys)
    assert (result["version"], result["before"]) == (2, 1)
    assert roles.version_in("foodlog", roles.PREVIOUS) == 1


PHASES = [*(f"export:{phase}" for phase in EXPORT_PHASES), "publish:exported", "publish:pointed"]
COMMAND = [sys.executable, "-m", "model.publish", "--dataset", "foodlog"]


@pytest.mark.slow
def test_a_publishing_that_is_killed_anywhere_leaves_the_old_or_the_new_and_run_again_ends_as_undisturbed(
    make_version: Callable[..., Any], var: Path, tmp_path: Path
) -> None:
    _, first = make_version("2026-03-02", ["2026-03-01"], weights=save(weights_of("tiny", 1)))
    _, second = make_version("2026-03-03", ["2026-03-01"], weights=save(weights_of("tiny", 2)))
    registry.set_champion("foodlog", first)
    assert publish.main(["--dataset", "foodlog"]) == 0
    registry.set_champion("foodlog", second)
    before, trace = tmp_path / "before", tmp_path / "phases"
    shutil.copytree(var, before, symlinks=True)

    def run(**more: str) -> int:
        return subprocess.run(COMMAND, env={**os.environ, **more}, check=False).returncode

    assert run(MTGR_TRACE_PHASES=str(trace)) == 0
    assert trace.read_text().split() == PHASES
    undisturbed = state_of(var)
    assert undisturbed["served foodlog/current"] == "2"
    assert any(name.startswith("package foodlog/2/") for name in undisturbed)
    for phase in PHASES:
        shutil.rmtree(var)
        shutil.copytree(before, var, symlinks=True)
        assert run(MTGR_KILL_AT=phase) == -signal.SIGKILL
        serves = Package.load(roles.link("foodlog", roles.CURRENT)).version  # whole, by its digests
        assert serves == (2 if phase == "publish:pointed" else 1), phase
        assert run() == 0
        assert not difference(undisturbed, state_of(var)), phase
