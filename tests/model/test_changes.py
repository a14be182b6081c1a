"""An incremental export: applied to the older version, it is the newer one to the bit."""

from __future__ import annotations

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from model.embeddings.changes import applied, changes
from model.runs.store import CHANGES, WEIGHTS, load_run
from model.training import loop as training
from tests.model.test_training import CPU, DATASET, DAYS, config, lake, unlogged  # noqa: F401


def version(keys: dict[int, dict[int, float]], **more: Tensor) -> dict[str, Tensor]:
    """A collection of two tables by id, with the first number of each vector, beside other weights."""
    rows = [(table, key, keys[table][key]) for table in (0, 1) for key in sorted(keys.get(table, {}))]
    values = torch.tensor([value for *_, value in rows]).view(-1, 1) * torch.ones(1, 2)
    tables = torch.tensor([table for table, *_ in rows], dtype=torch.int64)
    return {
        "rows.ids": torch.tensor([key for _, key, _ in rows], dtype=torch.int64),
        "rows.starts": torch.searchsorted(tables, torch.arange(3)),
        "rows.vectors": values,
        "fixed.weight": torch.zeros(5, 2),
        "bias": torch.ones(3),
        **more,
    }


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert tensor.dtype == other[name].dtype
        assert torch.equal(tensor, other[name]), name


def test_new_learned_and_evicted_rows_are_what_is_written() -> None:
    older = version({0: {-5: 1.0, 3: 2.0, 9: 3.0}, 1: {3: 4.0, 2**62: 5.0}})
    fixed = torch.zeros(5, 2)
    fixed[4, 1] = 7.0
    newer = version({0: {-5: 1.0, 3: 2.5, 11: 6.0}, 1: {3: 4.0}}, **{"fixed.weight": fixed})
    out = changes(older, newer)
    assert out["rows.gone_ids"].tolist() == [9, 2**62]
    assert out["rows.gone_tables"].tolist() == [0, 1]
    assert out["rows.ids"].tolist() == [3, 11]
    assert out["rows.tables"].tolist() == [0, 0]
    assert out["fixed.weight.rows"].tolist() == [4]
    assert "bias" not in out
    assert "fixed.weight" not in out
    assert_same(applied(older, out), newer)


@pytest.mark.parametrize("empty", ["older", "newer", "one table"])
def test_a_version_without_rows_is_one(empty: str) -> None:
    full, other = {0: {1: 1.0}, 1: {1: 2.0, 4: 3.0}}, {1: {4: 3.5}} if empty == "one table" else {}
    older, newer = (version(one) for one in ((other, full) if empty == "older" else (full, other)))
    assert_same(applied(older, changes(older, newer)), newer)
    assert not len(changes(newer, newer)["rows.ids"])


def test_bits_are_compared_not_values() -> None:
    older = version({0: {1: 0.0}}, bias=torch.tensor([0.0, float("nan"), 1.0]))
    newer = version({0: {1: -0.0}}, bias=torch.tensor([-0.0, float("nan"), 1.0]))
    out = changes(older, newer)
    assert torch.signbit(out["rows.vectors"]).all()
    assert torch.signbit(applied(older, out)["bias"][0])
    assert "bias" not in changes(newer, newer)


def test_versions_of_two_models_are_refused() -> None:
    older = version({})
    with pytest.raises(ValueError, match=r"bias is torch.float32 \(3,\) in one version and"):
        changes(older, version({}, bias=torch.ones(4)))
    with pytest.raises(ValueError, match=r"\['more'\] are of one version alone"):
        changes(older, version({}, more=torch.ones(4)))


@pytest.mark.usefixtures("lake")
def test_a_run_has_what_it_changed_of_its_base() -> None:
    """With ids that the rules let go on the way."""
    for ds in (DAYS[1], DAYS[2], "2026-03-04"):
        training.train(DATASET, config(ttl_days=1), ds, CPU, unlogged)
    first, second, third = (load_run(DATASET.name, "tiny", ds) for ds in (DAYS[1], DAYS[2], "2026-03-04"))
    assert not (first.path / CHANGES).exists()
    weights = load_file(first.path / WEIGHTS)
    num_gone = 0
    for base, run in ((first, second), (second, third)):
        with safe_open(run.path / CHANGES, framework="pt") as file:
            assert file.metadata() == {"from": base.digest, "to": run.digest}
        changed = load_file(run.path / CHANGES)
        num_gone += sum(len(part) for name, part in changed.items() if name.endswith(".gone_ids"))
        weights = applied(weights, changed)
        assert_same(weights, load_file(run.path / WEIGHTS))
    assert num_gone
