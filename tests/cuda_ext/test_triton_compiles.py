"""The Triton kernels compile, for Ampere and for Hopper, without a GPU: so that they cannot rot in CI."""

import pytest

pytest.importorskip("triton")
import triton
from hstu_ops.triton_ops import attention_backward, attention_forward, column_sums, configs, group_layer_norm
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

HEAD_DIM = 64
INT32 = ("offsets", "visible_end", "tile_row", "group_ptr")
FLOAT32 = ("weight_ptr", "bias_ptr", "mean_ptr", "rstd_ptr", "partial_ptr")


def argument_type(name: str, constants: dict[str, object]) -> str:
    if name in constants:
        return "constexpr"
    if name in INT32:
        return "*i32"
    if name in FLOAT32:
        return "*fp32"
    if name in ("alpha", "inv_n", "eps"):
        return "fp32"
    return "*bf16" if name.endswith("_ptr") else "i32"


def compile_kernel(kernel, constants: dict[str, object], capability: int, warps: int, stages: int):
    source = ASTSource(
        fn=kernel,
        signature={name: argument_type(name, constants) for name in kernel.arg_names},
        constexprs={(kernel.arg_names.index(name),): value for name, value in constants.items()},
    )
    options = {"num_warps": warps, "num_stages": stages}
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


@pytest.mark.parametrize(
    ("capability", "table", "shared_memory", "launch"),
    [
        (80, "_SMALL", 99, "forward"),
        (90, "_HOPPER", 227, "forward"),
        (90, "_HOPPER", 227, "backward_k"),
        (90, "_HOPPER", 227, "backward_q"),
    ],
)
def test_attention_kernels_compile_and_fit(capability, table, shared_memory, launch):
    tile = getattr(getattr(configs, table)[HEAD_DIM], launch)
    kernel = {
        "forward": attention_forward._forward_kernel,
        "backward_k": attention_backward._backward_kv_kernel,
        "backward_q": attention_backward._backward_q_kernel,
    }[launch]
    constants = {"FAST": True, "PRECISION": "ieee", "D": HEAD_DIM, "QUERIES": tile.queries, "KEYS": tile.keys}
    if launch == "backward_k":
        constants |= {"GRAD_K": True, "GRAD_V": True}
    compiled = compile_kernel(kernel, constants, capability, tile.warps, tile.stages)
    assert compiled.metadata.shared <= shared_memory * 1024
    assert ("wgmma" in compiled.asm["ptx"]) == (capability == 90)


@pytest.mark.parametrize("constants", [{"GATED": True, "ADDED": False}, {"GATED": False, "ADDED": True}])
def test_norms_compile(constants):
    for kernel in (group_layer_norm._norm_forward_kernel, group_layer_norm._norm_backward_kernel):
        compile_kernel(kernel, {**constants, "ROWS": 4, "WIDTH": 128}, 80, 4, 3)


def test_column_sums_compile():
    compile_kernel(column_sums._column_sums_kernel, {"ROWS": 32, "COLUMNS": 128}, 80, 4, 3)
