"""The schema of every operator of `hstu_ops`, in one place, with what each argument means.

They are defined from Python so that the package works from its sources: the compiled libraries only add
kernels to a dispatch key (`TORCH_LIBRARY_IMPL(hstu_ops, CPU, m)` and `TORCH_LIBRARY_IMPL(hstu_ops, CUDA,
m)`), never a schema.

| operator | CPU key | CUDA key |
|---|---|---|
| `mtgr_attention`, `mtgr_attention_backward` | backend `cpu`, C++ | backend `cutlass`, C++ for sm90a |
| `mtgr_attention_triton`, `mtgr_attention_triton_backward` | | backend `triton` |
| `mtgr_attention_backward_out`, `mtgr_plan` | | backend `cutlass`, C++ for sm90a |
| `gated_attention`, `gated_attention_backward` | | backend `cutlass`: the above, and the norm by Triton |
| `gated_attention_triton`, `gated_attention_triton_backward` | | backend `triton` |
| `group_layer_norm`, `group_layer_norm_backward` | backend `cpu`, C++ | |
| `group_layer_norm_triton`, `group_layer_norm_triton_backward` | | backends `triton`, `cutlass` |
| `add_group_layer_norm_triton`, `add_group_layer_norm_triton_backward` | | backends `triton`, `cutlass` |
| `norm_backward_sm90` | | called by the norms above where it takes the tensors, built for sm90a |
| `normed_product_sm90`, `gated_parts_sm90` | | called by `scoring`, built for sm90a |
| `column_sums_triton` | | backends `triton`, `cutlass` |
| `table_*` | C++ | CUDA C++, built with the above for sm90a |

Shapes: T tokens of all rows laid end to end, N heads, D head dim (or width of the norm), B rows, G token
    groups.
"""

import torch

NAMESPACE = "hstu_ops"

# q, k, v: [T, N, D], one dtype, last stride 1, any other strides (slices of one UVQK product).
# offsets: int32 [B + 1], ascending, from 0 to T.
# visible_end: int32 [T], counted from the start of the token's row, from 0 to the row's length.
# Returns out [T, N, D], contiguous, dtype of q: with j over [0, visible_end_i) of i's row, and j = i once,
#   out_i = sum_j SiLU(alpha * q_i . k_j) * inv_n * v_j.
# deterministic is for the backward pass: equal inputs give equal bits.
# plan: what mtgr_plan made of offsets and visible_end, for backend cutlass; without, it makes its own.
_ATTENTION = (
    "(Tensor q, Tensor k, Tensor v, Tensor offsets, Tensor visible_end, float alpha, float inv_n,"
    " bool deterministic, Tensor? plan=None) -> Tensor"
)

# grad_out: [T, N, D], dtype of q, last stride 1 (the caller makes it so). Returns (grad_q, grad_k, grad_v),
# contiguous.
_ATTENTION_BACKWARD = (
    "(Tensor grad_out, Tensor q, Tensor k, Tensor v, Tensor offsets, Tensor visible_end, float alpha,"
    " float inv_n, bool deterministic, Tensor? plan=None) -> (Tensor, Tensor, Tensor)"
)

# The same, written into slices of a larger tensor: any strides but the last, which is 1.
_ATTENTION_BACKWARD_OUT = (
    "(Tensor grad_out, Tensor q, Tensor k, Tensor v, Tensor offsets, Tensor visible_end, float alpha,"
    " float inv_n, bool deterministic, Tensor(a!) grad_q, Tensor(b!) grad_k, Tensor(c!) grad_v,"
    " Tensor? plan=None) -> ()"
)

# uvqk: [T, 4, N, D], contiguous. y [T, N * D] is group_layer_norm(mtgr_attention(q, k, v)) gated by u.
# Returns (y, the attention's out [T, N, D], mean [T], rstd [T]). uvqk_bias [4 N D]: as x_bias below.
_GATED = (
    "(Tensor uvqk, Tensor offsets, Tensor visible_end, Tensor group, Tensor weight, Tensor bias,"
    " float alpha, float inv_n, float eps, bool deterministic, Tensor? plan=None, Tensor? uvqk_bias=None)"
    " -> (Tensor, Tensor, Tensor, Tensor)"
)

# Returns (grad_uvqk [T, 4, N, D], grad_weight, grad_bias, where asked for the sums of grad_uvqk over tokens,
# float32 [4 N D], else nothing): one tensor, so that no slices are copied together.
_GATED_BACKWARD = (
    "(Tensor grad_y, Tensor uvqk, Tensor offsets, Tensor visible_end, Tensor group, Tensor weight,"
    " Tensor out, Tensor mean, Tensor rstd, float alpha, float inv_n, bool deterministic,"
    " Tensor? plan=None, bool with_sums=False) -> (Tensor, Tensor, Tensor, Tensor)"
)

# x, gate: [T, D], last stride 1. group: int32 or int64 [T], 0 <= g < G. weight, bias: [G, D].
# z = x * gate (or x); y = (z - mean(z)) * rstd(z) * weight[group] + bias[group].
# Returns (y [T, D] of x's dtype, mean [T], rstd [T]), the last two float32 (float64 for float64 x).
_NORM = (
    "(Tensor x, Tensor group, Tensor weight, Tensor bias, float eps, Tensor? gate)"
    " -> (Tensor, Tensor, Tensor)"
)

# Returns (grad_x, grad_weight, grad_bias, grad_gate); grad_gate has no elements when gate is None.
_NORM_BACKWARD = (
    "(Tensor grad_y, Tensor x, Tensor group, Tensor weight, Tensor mean, Tensor rstd, Tensor? gate)"
    " -> (Tensor, Tensor, Tensor, Tensor)"
)

# x, residual: [T, D], one dtype, last stride 1. Returns (sum = x + residual in that dtype, y, mean, rstd),
# the last three as of the sum. x_bias [D]: what was added to every token of x, without a gradient so far;
# its gradient is the sum of x's over tokens, which costs nothing where that is made.
_ADD_NORM = (
    "(Tensor x, Tensor residual, Tensor group, Tensor weight, Tensor bias, float eps, Tensor? x_bias)"
    " -> (Tensor, Tensor, Tensor, Tensor)"
)

# grad_sum: what comes back to the sum beside grad_y. Returns (grad_x, which is grad_residual, too,
# grad_weight, grad_bias, the sums of grad_x over tokens, float32 [D]).
_ADD_NORM_BACKWARD = (
    "(Tensor grad_sum, Tensor grad_y, Tensor sum, Tensor group, Tensor weight, Tensor mean, Tensor rstd)"
    " -> (Tensor, Tensor, Tensor, Tensor)"
)

# The backward pass of both norms, for bfloat16 and float16 x of D 256, 512, 768 or 1024, float32 weights and
# int32 groups; gate and grad_gate, or grad_sum, or none. Returns (grad_x, float32 [warps, 2 G + 1, D]: parts
# of grad_weight, of grad_bias and of the sums over tokens of grad_gate, or, with grad_sum, of grad_x).
_NORM_BACKWARD_SM90 = (
    "(Tensor grad_y, Tensor x, Tensor group, Tensor weight, Tensor mean, Tensor rstd, Tensor? gate,"
    " Tensor? grad_sum, Tensor(a!)? grad_gate) -> (Tensor, Tensor)"
)

# For scoring, head dim 256, bfloat16 or float16, forward only. A norm before a product is folded into it
# (hstu_ops/scoring.py): x [T, K] is what is normed times the norm's weight, sums [T, S, 2] are those of what
# is normed and of its square over S ranges of columns, affine [G, N, 2]. out [T, N] = GLN weight^T + bias;
# with scale [G, N], out += that, scaled [T, N] = out * scale[group], out_sums [T, N / 64, 2] as sums.
_NORMED_PRODUCT_SM90 = (
    "(Tensor x, Tensor sums, Tensor group, Tensor weight, Tensor affine, float eps, Tensor(a!) out,"
    " Tensor? scale=None, Tensor(b!)? scaled=None, Tensor(c!)? out_sums=None) -> ()"
)

# uvqk: [T, 4, N, 256]. tiles: int32 [tiles, 12], of scoring.query_tiles. cache: [pages, 2, 64, N * 256], keys
# and values of the leading tokens that pages int32 [B, P] name. parts: 1, 2, 4 or 8 CTAs share a tile's keys.
# out [T, N * 256] = attention * u * scale[group]; sums [T, N * parts, 2] of attention * u.
_GATED_PARTS_SM90 = (
    "(Tensor uvqk, Tensor tiles, Tensor visible_end, Tensor group, Tensor scale, Tensor? cache,"
    " Tensor? pages, float alpha, float inv_n, int parts, Tensor(a!) out, Tensor(b!) sums) -> ()"
)

# x: [T, C], last stride 1. Returns the sums over T, float32 [C].
_COLUMN_SUMS = "(Tensor x) -> Tensor"

# What the kernels of backend cutlass know of a mask, for any number of calls on one stream: int32.
_PLAN = "(Tensor offsets, Tensor visible_end) -> Tensor"

SCHEMAS = {
    "mtgr_plan": _PLAN,
    "mtgr_attention": _ATTENTION,
    "mtgr_attention_backward": _ATTENTION_BACKWARD,
    "mtgr_attention_triton": _ATTENTION,
    "mtgr_attention_triton_backward": _ATTENTION_BACKWARD,
    "mtgr_attention_backward_out": _ATTENTION_BACKWARD_OUT,
    "gated_attention": _GATED,
    "gated_attention_backward": _GATED_BACKWARD,
    "gated_attention_triton": _GATED,
    "gated_attention_triton_backward": _GATED_BACKWARD,
    "group_layer_norm": _NORM,
    "group_layer_norm_backward": _NORM_BACKWARD,
    "group_layer_norm_triton": _NORM,
    "group_layer_norm_triton_backward": _NORM_BACKWARD,
    "add_group_layer_norm_triton": _ADD_NORM,
    "add_group_layer_norm_triton_backward": _ADD_NORM_BACKWARD,
    "column_sums_triton": _COLUMN_SUMS,
    "norm_backward_sm90": _NORM_BACKWARD_SM90,
    "normed_product_sm90": _NORMED_PRODUCT_SM90,
    "gated_parts_sm90": _GATED_PARTS_SM90,
}

# The dynamic hash table (csrc/tables): its memory is the caller's, by address, and changes in place.
#
# addresses: int64 [8, capacity] on the table's device. Row 0: blocks of 64 segments of 2048 entries of 16
#   bytes, all zero when empty. Rows 1 to 7: chunks of 65536 rows of int64 ids, int32 tables (-1 where it is
#   free), int32 counts, int32 steps last seen, vectors (float32, or bfloat16 where `half`), and up to two
#   float32 columns of optimizer state.
# num_segments: of the table; table_split adds more.
# ids: int64 [n], any value; those in [ends[s - 1], ends[s]) are of table tables[s], 0 to 65535.
# counters: int64 [2], rows taken and entries in use. free_rows: int32, taken first, then next_row on.
# A negative row is none: -1 of an id that is not known, -1 - k of one seen k times, too few to have one.
# The caller has seen to it that segments and chunks have space for n more keys.
_KEYS = "Tensor addresses, int num_segments, Tensor ids, int[] ends, int[] tables"
TABLE_SCHEMAS = {
    # Rows, int32 [n].
    "table_find": f"({_KEYS}) -> Tensor",
    # Rows once the unknown ids have got one, with the vector that `seed` gives their id and state 0.
    "table_insert": (
        "(Tensor addresses, int num_segments, Tensor(a!) counters, Tensor free_rows, int next_row,"
        " Tensor ids, int[] ends, int[] tables, int admission, int day, int tick, int seed, int width,"
        " int[] state_widths, bool half) -> Tensor"
    ),
    # Vectors [n, width]; of an id without a row, the one that it would begin with.
    "table_gather": (
        "(Tensor addresses, Tensor rows, Tensor ids, int[] ends, int[] tables, int seed, int width,"
        " bool half) -> Tensor"
    ),
    # One step of SGD (0), row-wise Adagrad (1) or Adam (2) on rows below num_rows; grad: float32 [n, width].
    "table_update": (
        "(Tensor addresses, Tensor rows, Tensor grad, int num_rows, int optimizer, float lr, float eps,"
        " float beta1, float beta2, int step, int tick, int seed, bool half) -> ()"
    ),
    # The rows that were freed.
    "table_delete": f"({_KEYS}) -> Tensor",
    # Fills segments [first, last) from those they are split from; or, not growing, lays these anew. Deleted
    # keys go, and those that wait for admission since before oldest_day.
    "table_split": (
        "(Tensor addresses, Tensor(a!) counters, int first, int last, bool grows, int oldest_day) -> ()"
    ),
}

library = torch.library.Library(NAMESPACE, "DEF")  # type: ignore[no-untyped-call]
for _name, _schema in SCHEMAS.items():
    library.define(_name + _schema, tags=torch.Tag.pt2_compliant_tag)  # type: ignore[no-untyped-call]
for _name, _schema in TABLE_SCHEMAS.items():
    library.define(_name + _schema)  # type: ignore[no-untyped-call]
