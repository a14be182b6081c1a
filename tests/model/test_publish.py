"""What is published: the champion once, nothing when nobody was promoted, nothing that is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import save

from model import export, publish
from model.registry import versions as registry
from model.serving import roles
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
