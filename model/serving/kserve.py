"""Bodies of the KServe v2 protocol with binary tensors: what goes to Triton and comes from it.

A body is a JSON header, whose length the HTTP header `Inference-Header-Content-Length` says, and behind it
the tensors end to end (the binary tensor data extension of Triton's protocol).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from model.data.stored import Array

LENGTH_HEADER = "Inference-Header-Content-Length"
_NAMES: dict[str, np.dtype[Any]] = {
    "INT64": np.dtype(np.int64),
    "FP32": np.dtype(np.float32),
    "INT32": np.dtype(np.int32),
}
_OF = {dtype: name for name, dtype in _NAMES.items()}


class ProtocolError(ValueError):
    """A body is not of the protocol; the message says where."""


def name_of(dtype: np.dtype[Any]) -> str:
    """What the protocol calls a type."""
    return _OF[dtype]


def tensor_of(name: str, datatype: str, shape: Any, content: bytes | memoryview) -> Array:
    """A tensor from its bytes.

    Raises:
        ProtocolError: The type is none that is read, the shape is none, or needs other than these bytes.
    """
    dtype = _NAMES.get(datatype)
    if dtype is None:
        raise ProtocolError(f"tensor {name}: datatype {datatype!r} is none of {', '.join(_NAMES)}")
    if not isinstance(shape, list) or not all(type(size) is int and 0 <= size < 2**31 for size in shape):
        raise ProtocolError(f"tensor {name}: shape {shape!r} is no list of sizes")
    needed = math.prod(shape) * dtype.itemsize
    if len(content) != needed:
        raise ProtocolError(f"tensor {name} has {len(content)} bytes, its shape {shape} needs {needed}")
    return np.frombuffer(content, dtype).reshape(shape)


def encode(tensors: Mapping[str, Array], key: str = "inputs", **more: Any) -> tuple[bytes, int]:
    """A body and the length of its JSON header.

    Args:
        tensors: By name, int64, int32 or float32.
        key: `inputs` of a request, `outputs` of an answer.
        more: What stands beside them, e.g. `parameters`.
    """
    described = [
        {
            "name": name,
            "shape": list(tensor.shape),
            "datatype": _OF[tensor.dtype],
            "parameters": {"binary_data_size": tensor.nbytes},
        }
        for name, tensor in tensors.items()
    ]
    if key == "inputs":
        more = {**more, "parameters": {"binary_data_output": True, **more.get("parameters", {})}}
    header = json.dumps({key: described, **more}, separators=(",", ":")).encode()
    parts = [np.ascontiguousarray(tensor).tobytes() for tensor in tensors.values()]
    return b"".join([header, *parts]), len(header)


def decode(
    body: bytes, header_length: str | int | None, key: str = "inputs"
) -> tuple[dict[str, Array], dict[str, Any]]:
    """Tensors of a body, and what else its header says.

    Raises:
        ProtocolError: It is not of the protocol, or has tensors that are not binary.
    """
    try:
        length = int(header_length if header_length is not None else "none")
        if not 0 < length <= len(body):
            raise ValueError
    except ValueError:
        raise ProtocolError(
            f"header {LENGTH_HEADER} is {header_length!r} for a body of {len(body)} bytes; it is the length "
            "of the JSON in front of the binary tensors"
        ) from None
    try:
        header = json.loads(body[:length])
    except (ValueError, RecursionError) as error:
        raise ProtocolError(f"the first {length} bytes of the body are no JSON: {error}") from error
    if not isinstance(header, dict) or not isinstance(header.get(key), list):
        raise ProtocolError(f"the body's JSON has no list `{key}`")
    tensors: dict[str, Array] = {}
    at = length
    for described in header.pop(key):
        name, tensor, at = _tensor(described, body, at)
        tensors[name] = tensor
    if at != len(body):
        raise ProtocolError(f"the body has {len(body) - at} bytes behind its tensors")
    return tensors, header


def _tensor(described: Any, body: bytes, at: int) -> tuple[str, Array, int]:
    if not isinstance(described, dict):
        raise ProtocolError(f"a tensor is described by {described!r}; an object is needed")
    name, parameters = str(described.get("name")), described.get("parameters")
    size = parameters.get("binary_data_size") if isinstance(parameters, dict) else None
    if type(size) is not int or size < 0:
        raise ProtocolError(f"tensor {name}: binary_data_size is {size!r}: send it binary")
    if at + size > len(body):
        raise ProtocolError(f"tensor {name}: the body ends {at + size - len(body)} bytes before it does")
    content = memoryview(body)[at : at + size]
    return name, tensor_of(name, str(described.get("datatype")), described.get("shape"), content), at + size
