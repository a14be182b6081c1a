"""The sigmoid inside the Triton kernels, exact or by the GPU's tanh instruction."""
# ruff: noqa: N803 (kernel constants are upper case)

# mypy: disable-error-code="import-untyped, no-untyped-def, no-untyped-call, untyped-decorator, attr-defined"

import triton
import triton.language as tl

# Four elements at a time: by tanh, one special instruction each; if one is below -8, where 1 + tanh keeps no
# digits, all four by 1 / (1 + exp(-x)), two.
_BY_TANH = "".join(
    f"mul.f32 ${i}, ${i + 4}, 0f3F000000; tanh.approx.f32 ${i}, ${i}; "
    f"fma.rn.f32 ${i}, ${i}, 0f3F000000, 0f3F000000; "
    for i in range(4)
)
_EXACT = "".join(
    f"mul.f32 ${i}, ${i + 4}, 0fBFB8AA3B; ex2.approx.f32 ${i}, ${i}; "
    f"add.f32 ${i}, ${i}, 0f3F800000; rcp.approx.f32 ${i}, ${i}; "
    for i in range(4)
)
_SIGMOID = tl.constexpr(
    "{ .reg .pred near; .reg .f32 least, other; "
    + _BY_TANH
    + "min.f32 least, $4, $5; min.f32 other, $6, $7; min.f32 least, least, other; "
    + "setp.geu.f32 near, least, 0fC1000000; @near bra DONE; "
    + _EXACT
    + "DONE: }"
)


@triton.jit
def sigmoid(x, FAST: tl.constexpr):
    """Returns 1 / (1 + exp(-x)) in float32; FAST to 2^-10, far below the rounding of bfloat16 weights."""
    if FAST:
        return tl.inline_asm_elementwise(
            _SIGMOID, "=&f,=&f,=&f,=&f,f,f,f,f", [x], dtype=tl.float32, is_pure=True, pack=4
        )
    else:
        return 1.0 / (1.0 + tl.exp(-x))
