"""MTGR as a network of an engine's operations, and engines that TensorRT builds of it without a GPU."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save
from torch import Tensor

from model import export
from model.config.presets import preset_named
from model.data.batch import JaggedBatch
from model.data.encoder import SampleEncoder
from model.data.layout import GROUPS, Sizes
from model.data.synthetic import random_samples
from model.rankers.mtgr import MtgrConfig, MtgrRanker
from model.rankers.protocol import build_ranker
from model.serving import tensorrt, tensorrt_build
from model.serving.golden import Golden
from model.serving.network import Value, mtgr_network, network_inputs
from model.serving.package import Package
from spark_jobs.contract.features import Group, Owner
from spark_jobs.contract.foodlog import FOODLOG
from tests.model.test_export import weights_of

CARDS = ("8.0", "8.9", "12.0")
BINARY: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "add": torch.add,
    "sub": torch.sub,
    "mul": torch.mul,
    "less": torch.lt,
    "equal": torch.eq,
    "and": torch.logical_and,
    "or": torch.logical_or,
}
installed = pytest.mark.skipif(
    importlib.util.find_spec(tensorrt_build.RTX) is None,
    reason="TensorRT for RTX is not installed: TENSORRT=1 make setup",
)


class Torch:
    """The operations of `model.serving.network`, computed at once and as strictly typed as TensorRT's."""

    def __init__(self, inputs: dict[str, Tensor]) -> None:
        self.inputs = inputs

    def input(self, name: str, shape: Sequence[int], dtype: torch.dtype) -> Value:
        tensor = self.inputs[name]
        assert tensor.dtype == dtype
        assert tuple(tensor.shape) == tuple(
            s if s >= 0 else t for s, t in zip(shape, tensor.shape, strict=True)
        )
        return tensor

    def constant(self, tensor: Tensor) -> Value:
        return tensor

    def cast(self, x: Tensor, dtype: torch.dtype) -> Value:
        return x.to(dtype)

    def binary(self, name: str, x: Tensor, y: Tensor) -> Value:
        assert (x.dtype, x.dim()) == (y.dtype, y.dim())
        return BINARY[name](x, y)

    def unary(self, name: str, x: Tensor) -> Value:
        return getattr(torch, name)(x)

    def clip(self, x: Tensor, limit: float) -> Value:
        return x.clamp(-limit, limit)

    def select(self, condition: Tensor, x: Tensor, y: Tensor) -> Value:
        assert x.dtype == y.dtype
        return torch.where(condition, x, y)

    def matmul(self, x: Tensor, y: Tensor, *, transposed: bool) -> Value:
        assert (x.dtype, x.dim()) == (y.dtype, y.dim())
        return x @ (y.transpose(-1, -2) if transposed else y)

    def gather(self, x: Tensor, index: Tensor) -> Value:
        return x.index_select(0, index)

    def take(self, x: Tensor, index: int) -> Value:
        return x.select(1, index)

    def concatenate(self, parts: Sequence[Tensor], axis: int) -> Value:
        return torch.cat(list(parts), axis)

    def reshape(self, x: Tensor, shape: Sequence[int]) -> Value:
        return x.reshape(tuple(shape))

    def transpose(self, x: Tensor, order: Sequence[int]) -> Value:
        return x.permute(tuple(order))

    def mean(self, x: Tensor) -> Value:
        return x.mean(-1, keepdim=True)


def ranker_of(preset: str = "tiny", **more: Any) -> MtgrRanker:
    """A ranker whose every weight counts: constants of numbers are fitted, scales of norms are not 1."""
    ranker = build_ranker(FOODLOG, dataclasses.replace(preset_named(preset).model, **more), 1).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, tensor in [*ranker.named_parameters(), *ranker.named_buffers()]:
            if name.endswith(("_GD", "_F")):
                tensor.copy_(1 + 0.2 * torch.rand(tensor.shape, generator=generator))
    assert isinstance(ranker, MtgrRanker)
    return ranker


def rows(num_rows: int, limits: tuple[int, int, int]) -> JaggedBatch:
    sizes = dict(zip(("max_static", "max_realtime", "max_candidates"), limits, strict=True))
    return SampleEncoder(FOODLOG, 50).encode(random_samples(FOODLOG, num_rows, **sizes))


@pytest.mark.parametrize(
    ("half", "atol"), [(torch.float32, 1e-5), (torch.float16, 6e-3), (torch.bfloat16, 6e-3)], ids=str
)
def test_the_network_scores_as_the_ranker(half: torch.dtype, atol: float) -> None:
    """With candidates alone in the last block, for jagged rows, rows without behaviours, and padding."""
    ranker = ranker_of()
    for limits, num_rows in (((20, 6, 5), 7), ((0, 0, 3), 1), ((80, 40, 60), 3)):
        batch = rows(num_rows, limits)
        laid = batch.laid_out()
        room = Sizes(
            rows=num_rows + 2,
            groups={group: batch.ids[group].shape[1] + 3 for group in GROUPS[1:]},
            tokens=batch.num_tokens + 40,
        )
        with torch.inference_mode():
            embeddings = ranker.inputs.embeddings(laid)
            expected = ranker(laid, embeddings).sigmoid()
            logits = mtgr_network(Torch(network_inputs(laid, embeddings)), ranker, half)
            wider = {
                group: [torch.nn.functional.pad(one, (0, 0, 0, room.groups.get(group, room.rows) - len(one)))
                        for one in some]
                for group, some in embeddings.items()
            }  # fmt: skip
            padded = mtgr_network(Torch(network_inputs(laid.padded(room), wider)), ranker, half)
        assert logits.dtype == torch.float32
        torch.testing.assert_close(logits.sigmoid(), expected, atol=atol, rtol=0)
        num = batch.num_candidates
        torch.testing.assert_close(padded[:, :num].sigmoid(), expected, atol=atol, rtol=0)


@pytest.mark.parametrize("more", [{"shares_items": True}, {"without": (Owner.CROSS,)}, {"num_blocks": 1}])
def test_variants_of_the_ranker_have_a_network(more: dict[str, Any]) -> None:
    ranker, batch = ranker_of(**more), rows(4, (20, 6, 5)).laid_out()
    with torch.inference_mode():
        embeddings = ranker.inputs.embeddings(batch)
        logits = mtgr_network(Torch(network_inputs(batch, embeddings)), ranker, torch.float32)
        torch.testing.assert_close(logits, ranker(batch, embeddings), atol=1e-5, rtol=0)


@pytest.mark.parametrize("more", [{"mask": "causal"}, {"norm": "layer"}])
def test_what_is_not_the_papers_has_no_network(more: dict[str, Any]) -> None:
    ranker, batch = ranker_of(**more), rows(2, (5, 2, 3)).laid_out()
    with pytest.raises(ValueError, match="have no network: dynamic and group do"):
        mtgr_network(Torch(network_inputs(batch, ranker.inputs.embeddings(batch))), ranker, torch.float32)


def test_on_hopper_the_log_says_what_serves_instead(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    package: Any = dataclasses.make_dataclass("Made", ["path"])("here")
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: name if name == tensorrt_build.RTX else None
    )
    with caplog.at_level(logging.WARNING):
        assert tensorrt.engine(package, "9.0") is None
    assert "runs on compute capability 8.0, 8.6, 8.9, 12.0, not on 9.0" in caplog.text
    assert "AOTInductor's graph serves instead" in caplog.text
    assert tensorrt_build.why_not("8.9") is None
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: name if name == tensorrt_build.OWN else None
    )
    assert tensorrt_build.why_not("9.0") is None  # NVIDIA's own takes Hopper
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert tensorrt_build.why_not("8.9") == "TensorRT for RTX is not installed: TENSORRT=1 make setup"
    with pytest.raises(tensorrt_build.TensorRtError, match="NVIDIA's own TensorRT"):
        tensorrt_build.library("9.0")


class Computed(torch.nn.Module):
    """In place of an engine on its card: the network as PyTorch computes it, in float16."""

    def __init__(self, ranker: MtgrRanker, path: Path) -> None:
        super().__init__()
        self.ranker = ranker
        if path.stem == "broken":
            with torch.no_grad():
                ranker.blocks[0].uvqk.weight.mul_(1.5)  # type: ignore[union-attr,operator]

    def forward(self, batch: JaggedBatch) -> Tensor:
        inputs = network_inputs(batch, self.ranker.inputs.embeddings(batch))
        logits: Tensor = mtgr_network(Torch(inputs), self.ranker, torch.float16)
        return logits


def test_an_engine_that_does_not_score_as_evaluation_is_not_used(
    make_version: Any, var: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_version("2026-03-03", ["2026-03-01"], weights=save(weights_of("tiny")))
    package = Package.load(export.export(FOODLOG, 1)["path"])
    some, num = package.golden.rows.slice(0, 12), int(package.golden.counts[:12].sum())
    scores = {name: values[:num] for name, values in package.golden.scores.items()}
    package = dataclasses.replace(package, golden=Golden(rows=some, scores=scores, source="some"))
    monkeypatch.setattr(tensorrt, "EngineRanker", Computed)
    for name in ("whole", "broken"):
        (tmp_path / f"{name}.json").write_text(json.dumps({"precision": "float16"}))
    scorer = tensorrt.engine_scorer(package, tmp_path / "whole.engine", "cpu")
    assert 0 < abs(scorer.score(some)["ctr_live"] - scores["ctr_live"]).max() <= 6e-3
    with pytest.raises(tensorrt_build.TensorRtError, match=r"broken.engine is not used: scores differ"):
        tensorrt.engine_scorer(package, tmp_path / "broken.engine", "cpu")


@installed
@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
@pytest.mark.parametrize("preset", ["tiny", "large"])
def test_tensorrt_builds_an_engine_for_every_card(preset: str, precision: str) -> None:
    ranker, config = ranker_of(preset), preset_named(preset).model
    assert isinstance(config, MtgrConfig)
    plans = []
    for capability in CARDS:
        built = tensorrt_build.build(ranker, capability, precision)
        facts = built.facts
        assert (facts["capability"], facts["precision"]) == (capability, precision)
        assert len(built.plan) == facts["bytes"]
        parameters = [one for name, one in ranker.named_parameters() if ".embeddings." not in name]
        weights = sum(parameter.numel() for parameter in parameters)
        assert 2 * weights < facts["bytes"] < 3 * weights + (8 << 20)  # all of them, at two bytes
        assert facts["inputs"]["source"] == [(1,), (1270,), (tensorrt_build.ROOM.tokens,)]
        assert [shape[0] for shape in facts["inputs"][f"embeddings_{Group.STATIC}"]] == [0, 1000, 4000]
        plans.append(built.plan)
    assert len(set(plans)) == len(CARDS)
    layers = [
        tensorrt_build.build(ranker_of("tiny", num_blocks=n), "8.9", precision).facts["layers"]
        for n in (1, 2, 3)
    ]
    assert layers[2] - layers[1] > 30  # each block is in it
    assert tensorrt_build.build(ranker, "8.9", precision).facts["layers"] == layers[1] + (
        config.num_blocks - 2
    ) * (layers[2] - layers[1])


@installed
@pytest.mark.slow
def test_an_engine_is_built_once_and_loads_where_it_is_for(
    make_version: Any, var: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make_version("2026-03-03", ["2026-03-01"], weights=save(weights_of("tiny")))
    package = Package.load(export.export(FOODLOG, 1)["path"])
    path = tensorrt.engine(package, "8.9")
    assert path is not None
    assert path.parent == var / "serving" / "engines" / package.digest
    facts = json.loads(path.with_suffix(".json").read_text())
    assert facts["tensorrt"] in path.name
    written = path.stat().st_mtime_ns
    assert tensorrt.engine(package, "8.9") == path
    assert path.stat().st_mtime_ns == written
    assert tensorrt.engine(package, "8.0") != path
    if not torch.cuda.is_available():
        with pytest.raises(tensorrt_build.TensorRtError, match=r"does not load here: .*CUDA"):
            tensorrt.EngineRanker(package.ranker(), path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(tensorrt_build.TensorRtError, match="has the SHA-256"):
        tensorrt.EngineRanker(package.ranker(), path)
    assert tensorrt.engine(package, "8.9") == path  # built again
    assert len(path.read_bytes()) == facts["bytes"]
    small = Sizes(rows=1, groups=dict.fromkeys(GROUPS[1:], 10), tokens=10)
    with pytest.raises(tensorrt_build.TensorRtError, match=r"builds no engine for 8.9: .*MIN<=OPT<=MAX"):
        tensorrt_build.build(ranker_of(), "8.9", "float16", small)
