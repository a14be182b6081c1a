"""How TensorRT builds an engine: which bindings there are, layers of its network API, one profile."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from model.data.layout import GROUPS, Sizes
from model.rankers.mtgr import MtgrRanker
from model.runs.files import RunError
from model.serving.network import INDEXES, Value, mtgr_network
from spark_jobs.contract.features import Group

logger = logging.getLogger(__name__)

RTX, OWN = "tensorrt_rtx_bindings", "tensorrt"  # of the wheels on PyPI; of NVIDIA's own package
CAPABILITIES = ("8.0", "8.6", "8.9", "12.0")  # that TensorRT for RTX builds for and runs on
PRECISIONS = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
# Several requests of S 1000, R 100, K 150; attention's scores are of all tokens by all tokens.
ROOM = Sizes(rows=8, groups={Group.STATIC: 4000, Group.REALTIME: 800, Group.CANDIDATE: 1600}, tokens=4096)
_TYPICAL = Sizes(rows=1, groups={Group.STATIC: 1000, Group.REALTIME: 100, Group.CANDIDATE: 150}, tokens=1270)
_BINARY = {
    "add": "SUM",
    "sub": "SUB",
    "mul": "PROD",
    "less": "LESS",
    "equal": "EQUAL",
    "and": "AND",
    "or": "OR",
}
_UNARY = {"sqrt": "SQRT", "reciprocal": "RECIP", "isnan": "ISNAN"}


class TensorRtError(RunError):
    """TensorRT is not installed, or does not take what it is asked; the message says what to do."""


def why_not(capability: str) -> str | None:
    """Why there is no engine for a card of a compute capability, e.g. `9.0`, or None if there is one."""
    if importlib.util.find_spec(RTX) is not None and capability in CAPABILITIES:
        return None
    if importlib.util.find_spec(OWN) is not None:
        return None
    if capability in CAPABILITIES:
        return "TensorRT for RTX is not installed: TENSORRT=1 make setup"
    return (
        f"TensorRT for RTX runs on compute capability {', '.join(CAPABILITIES)}, not on {capability}: "
        "install NVIDIA's own TensorRT (package tensorrt), or serve the graph of AOTInductor"
    )


def library(capability: str) -> ModuleType:
    """The bindings that build for a compute capability.

    Raises:
        TensorRtError: None is installed; see `why_not`.
    """
    if reason := why_not(capability):
        raise TensorRtError(reason)
    is_rtx = importlib.util.find_spec(RTX) is not None and capability in CAPABILITIES
    return importlib.import_module(RTX if is_rtx else OWN)


@dataclass(frozen=True, kw_only=True)
class BuiltEngine:
    """A built engine.

    Attributes:
        plan: What TensorRT loads.
        facts: `capability`, `precision`, `tensorrt` (its version), `layers`, `inputs` with their least,
            typical and greatest shapes, `bytes`.
    """

    plan: bytes
    facts: Mapping[str, Any]


def build(ranker: MtgrRanker, capability: str, precision: str, room: Sizes = ROOM) -> BuiltEngine:
    """Builds the engine of a ranker.

    Args:
        ranker: In eval mode, on the CPU.
        capability: Compute capability of the card that it is for.
        precision: One of `PRECISIONS`.
        room: The greatest sizes that its profile takes.

    Raises:
        TensorRtError: TensorRT is not installed, or refuses the network; the message has what it says.
    """
    trt = library(capability)
    log, errors = log_of(trt)
    errors.clear()
    builder = trt.Builder(log)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    operations = _Operations(trt, network)
    with torch.no_grad():
        logits = mtgr_network(operations, ranker, PRECISIONS[precision])
    logits.name = "logits"
    network.mark_output(logits)
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    config.add_optimization_profile(_profile(builder, network, room))
    if trt.__name__ == RTX:
        config.num_compute_capabilities = 1
        config.set_compute_capability(getattr(trt.ComputeCapability, f"SM{capability.replace('.', '')}"), 0)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise TensorRtError(f"TensorRT builds no engine for {capability}: {'; '.join(errors)}")
    shapes = {name: _shapes(name, tuple(network.get_input(place).shape), room)
              for place, name in enumerate(operations.inputs)}  # fmt: skip
    facts = {
        "capability": capability,
        "precision": precision,
        "tensorrt": trt.__version__,
        "layers": network.num_layers,
        "inputs": shapes,
        "bytes": plan.nbytes,
    }
    return BuiltEngine(plan=bytes(plan), facts=facts)


def _profile(builder: Any, network: Any, room: Sizes) -> Any:
    profile = builder.create_optimization_profile()
    for place in range(network.num_inputs):
        tensor = network.get_input(place)
        profile.set_shape(tensor.name, *_shapes(tensor.name, tuple(tensor.shape), room))
    return profile


def _shapes(name: str, shape: tuple[int, ...], room: Sizes) -> list[tuple[int, ...]]:
    """Least, typical and greatest shape of an input."""
    least = Sizes(rows=1, groups={Group.STATIC: 0, Group.REALTIME: 0, Group.CANDIDATE: 1}, tokens=1)
    return [
        tuple(_size(name, sizes) if width < 0 else width for width in shape)
        for sizes in (least, _TYPICAL, room)
    ]


def _size(name: str, sizes: Sizes) -> int:
    if name in INDEXES:
        return sizes.groups[Group.CANDIDATE] if name == "candidates" else sizes.tokens
    group = next(group for group in GROUPS if name.endswith(f"_{group}"))
    return sizes.rows if group is Group.PROFILE else sizes.groups[group]


@functools.cache
def log_of(trt: ModuleType) -> tuple[Any, list[str]]:
    """TensorRT's only logger, and its errors: there is one a process, whatever builders are given."""
    errors: list[str] = []

    class Logger(trt.ILogger):  # type: ignore[misc,name-defined]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if severity <= trt.ILogger.Severity.ERROR:
                errors.append(message)
            elif severity == trt.ILogger.Severity.WARNING:
                logger.warning("TensorRT: %s", message)

    return Logger(), errors


class _Operations:
    """`model.serving.network.Operations` as layers of a TensorRT network."""

    def __init__(self, trt: ModuleType, network: Any) -> None:
        self.trt, self.network = trt, network
        self.inputs: list[str] = []
        self._held: list[Tensor] = []  # TensorRT reads weights when it builds
        self._types = {
            torch.float32: trt.DataType.FLOAT,
            torch.float16: trt.DataType.HALF,
            torch.bfloat16: trt.DataType.BF16,
            torch.int32: trt.DataType.INT32,
        }

    def _output(self, layer: Any, what: str) -> Value:
        if layer is None:
            raise TensorRtError(f"TensorRT takes no {what} here")
        return layer.get_output(0)

    def input(self, name: str, shape: Sequence[int], dtype: torch.dtype) -> Value:
        self.inputs.append(name)
        return self.network.add_input(name, self._types[dtype], tuple(shape))

    def constant(self, tensor: Tensor) -> Value:
        held = tensor.detach().contiguous()
        self._held.append(held)
        weights = self.trt.Weights(self._types[held.dtype], held.data_ptr(), held.numel())
        return self._output(self.network.add_constant(tuple(held.shape), weights), "constant")

    def cast(self, x: Value, dtype: torch.dtype) -> Value:
        wanted = self._types[dtype]
        return x if x.dtype == wanted else self._output(self.network.add_cast(x, wanted), "cast")

    def binary(self, name: str, x: Value, y: Value) -> Value:
        operation = getattr(self.trt.ElementWiseOperation, _BINARY[name])
        return self._output(self.network.add_elementwise(x, y, operation), name)

    def unary(self, name: str, x: Value) -> Value:
        if name == "sigmoid":
            return self._output(self.network.add_activation(x, self.trt.ActivationType.SIGMOID), name)
        return self._output(self.network.add_unary(x, getattr(self.trt.UnaryOperation, _UNARY[name])), name)

    def clip(self, x: Value, limit: float) -> Value:
        layer = self.network.add_activation(x, self.trt.ActivationType.CLIP)
        layer.alpha, layer.beta = -limit, limit
        return self._output(layer, "clip")

    def select(self, condition: Value, x: Value, y: Value) -> Value:
        return self._output(self.network.add_select(condition, x, y), "select")

    def matmul(self, x: Value, y: Value, *, transposed: bool) -> Value:
        plain, turned = self.trt.MatrixOperation.NONE, self.trt.MatrixOperation.TRANSPOSE
        layer = self.network.add_matrix_multiply(x, plain, y, turned if transposed else plain)
        return self._output(layer, "product")

    def gather(self, x: Value, index: Value) -> Value:
        return self._output(self.network.add_gather(x, index, 0), "gather")

    def take(self, x: Value, index: int) -> Value:
        place = self.constant(torch.tensor(index, dtype=torch.int32))
        return self._output(self.network.add_gather(x, place, 1), "gather")

    def concatenate(self, parts: Sequence[Value], axis: int) -> Value:
        layer = self.network.add_concatenation(list(parts))
        layer.axis = axis
        return self._output(layer, "concatenation")

    def reshape(self, x: Value, shape: Sequence[int]) -> Value:
        layer = self.network.add_shuffle(x)
        layer.reshape_dims = tuple(shape)
        return self._output(layer, "reshape")

    def transpose(self, x: Value, order: Sequence[int]) -> Value:
        layer = self.network.add_shuffle(x)
        layer.first_transpose = tuple(order)
        return self._output(layer, "transpose")

    def mean(self, x: Value) -> Value:
        axes = 1 << (len(x.shape) - 1)
        layer = self.network.add_reduce(x, self.trt.ReduceOperation.AVG, axes, keep_dims=True)
        return self._output(layer, "mean")
