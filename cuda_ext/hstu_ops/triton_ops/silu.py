"""SiLU and its derivative inside the Triton kernels, exact or by the GPU's tanh instruction."""
# ruff: noqa: N803 (kernel constants are upper case)

# mypy: disable-error-code="import-untyped, no-untyped-def, no-untyped-call, untyped-decorator, attr-defined"

import triton
import triton.language as tl


@triton.jit
def _tanh_approx(x):
    """One instruction, relative error 2^-11: for bfloat16 far below the rounding of the weights it feeds."""
    return tl.inline_asm_elementwise(
        "tanh.approx.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
    )


@triton.jit
def sigmoid(x, FAST: tl.constexpr):
    """Returns 1 / (1 + exp(-x)) in float32."""
    if FAST:
        return 0.5 + 0.5 * _tanh_approx(0.5 * x)
    else:
        return 1.0 / (1.0 + tl.exp(-x))
