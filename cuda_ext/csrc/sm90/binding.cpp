// The CUDA kernels of hstu_ops::mtgr_attention and its backward: checks, allocation, and the call into params.h.
//
// The schemas, fake kernels and derivatives are defined in Python (hstu_ops/schemas.py, hstu_ops/attention.py).
#include <ATen/ATen.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include <limits>
#include <optional>
#include <tuple>

#include "params.h"

namespace {

using hstu_sm90::DType;
using hstu_sm90::Matrix;
using hstu_sm90::Problem;

bool loadable(at::Tensor const& x) {
  auto const aligned = [&](int64_t dim) { return x.size(dim) <= 1 || (x.stride(dim) > 0 && x.stride(dim) % 8 == 0); };
  return x.stride(2) == 1 && aligned(0) && aligned(1) && reinterpret_cast<uintptr_t>(x.data_ptr()) % 16 == 0;
}

Matrix matrix(at::Tensor const& x) {
  int64_t const token_stride = x.size(0) > 1 ? x.stride(0) : x.size(1) * x.size(2);
  int64_t const head_stride = x.size(1) > 1 ? x.stride(1) : x.size(2);
  return {x.data_ptr(), token_stride, head_stride};
}

void check_input(char const* name, at::Tensor const& x, at::Tensor const& q) {
  TORCH_CHECK_VALUE(x.is_cuda() && x.device() == q.device(), name, " must be on the CUDA device of q, ", q.device(),
                    ", it is on ", x.device());
  TORCH_CHECK_VALUE(x.dim() == 3 && x.sizes() == q.sizes() && x.scalar_type() == q.scalar_type(), name,
                    " must have the shape and dtype of q, ", q.sizes(), " ", q.scalar_type(), "; got ", x.sizes(), " ",
                    x.scalar_type());
  TORCH_CHECK_VALUE(
      loadable(x), name, " must start at a multiple of 16 bytes, have stride 1 in its last dimension and ",
      "strides that are multiples of 8 elements in the others; got strides ", x.strides(), ": call .contiguous()");
}

void check(at::Tensor const& q, at::Tensor const& k, at::Tensor const& v, at::Tensor const& offsets,
           at::Tensor const& visible_end) {
  TORCH_CHECK_VALUE(q.dim() == 3, "q must be [T, N, D], got ", q.sizes());
  TORCH_CHECK_VALUE(q.scalar_type() == at::kBFloat16 || q.scalar_type() == at::kHalf,
                    "the sm90a kernels take bfloat16 and float16, q is ", q.scalar_type(), ": use backend 'triton'");
  int64_t const dim = q.size(2);
  TORCH_CHECK_VALUE(dim == 64 || dim == 128 || dim == 256, "the sm90a kernels have head dims 64, 128 and 256, q has ",
                    dim, ": use backend 'triton'");
  check_input("q", q, q);
  check_input("k", k, q);
  check_input("v", v, q);
  for (auto const& [name, x] : {std::pair{"offsets", &offsets}, std::pair{"visible_end", &visible_end}}) {
    TORCH_CHECK_VALUE(x->dim() == 1 && x->scalar_type() == at::kInt && x->is_contiguous() && x->device() == q.device(),
                      name, " must be contiguous one-dimensional int32 on ", q.device(), ", got ", x->scalar_type(),
                      " ", x->sizes(), " on ", x->device());
  }
  TORCH_CHECK_VALUE(offsets.size(0) >= 1, "offsets must have B + 1 elements, got none");
  TORCH_CHECK_VALUE(visible_end.size(0) == q.size(0), "visible_end must have T = ", q.size(0), " elements, got ",
                    visible_end.size(0));
  TORCH_CHECK_VALUE(q.size(0) <= std::numeric_limits<int>::max() - 256 && q.size(1) <= 65535,
                    "at most 2^31 - 256 tokens and 65535 heads, got ", q.sizes());
  int major = 0;
  C10_CUDA_CHECK(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, q.get_device()));
  TORCH_CHECK(major == 9, "the sm90a kernels need compute capability 9.0, ", q.device(), " has ", major,
              ".x: use backend 'triton'");
}

Problem describe(at::Tensor const& q, at::Tensor const& k, at::Tensor const& v, at::Tensor const& offsets,
                 at::Tensor const& visible_end, at::Tensor const& workspace, double alpha, double inv_n) {
  Problem problem{};
  problem.in.q = matrix(q);
  problem.in.k = matrix(k);
  problem.in.v = matrix(v);
  problem.offsets = offsets.const_data_ptr<int>();
  problem.visible_end = visible_end.const_data_ptr<int>();
  problem.workspace = workspace.data_ptr();
  problem.num_tokens = q.size(0);
  problem.num_rows = static_cast<int>(offsets.size(0) - 1);
  problem.num_heads = static_cast<int>(q.size(1));
  problem.head_dim = static_cast<int>(q.size(2));
  problem.dtype = q.scalar_type() == at::kHalf ? DType::kFloat16 : DType::kBFloat16;
  problem.alpha = static_cast<float>(alpha);
  problem.inv_n = static_cast<float>(inv_n);
  return problem;
}

using Plan = std::optional<at::Tensor>;

int64_t plan_size(int64_t num_tokens, int64_t num_rows) {
  return hstu_sm90_workspace_bytes(num_tokens, num_rows) / static_cast<int64_t>(sizeof(int));
}

// The plan given, or room for one.
at::Tensor workspace_of(Plan const& plan, at::Tensor const& q, at::Tensor const& offsets) {
  int64_t const size = plan_size(q.size(0), offsets.size(0) - 1);
  if (!plan.has_value()) return at::empty({size}, offsets.options());
  TORCH_CHECK_VALUE(plan->scalar_type() == at::kInt && plan->is_contiguous() && plan->device() == q.device() &&
                        plan->dim() == 1 && plan->size(0) == size,
                    "plan must be as hstu_ops.attention_plan makes it of these offsets and visible_end, int32 [", size,
                    "] on ", q.device(), ", got ", plan->scalar_type(), " ", plan->sizes(), " on ", plan->device());
  return *plan;
}

at::Tensor make_plan(at::Tensor const& offsets, at::Tensor const& visible_end) {
  for (auto const& [name, x] : {std::pair{"offsets", &offsets}, std::pair{"visible_end", &visible_end}}) {
    TORCH_CHECK_VALUE(x->is_cuda() && x->dim() == 1 && x->scalar_type() == at::kInt && x->is_contiguous(), name,
                      " must be contiguous one-dimensional int32 on a GPU, got ", x->scalar_type(), " ", x->sizes(),
                      " on ", x->device());
  }
  TORCH_CHECK_VALUE(offsets.size(0) >= 1, "offsets must have B + 1 elements, got none");
  c10::cuda::CUDAGuard const guard(offsets.device());
  at::Tensor plan = at::empty({plan_size(visible_end.size(0), offsets.size(0) - 1)}, offsets.options());
  if (offsets.size(0) == 1) return plan;  // no rows
  Problem problem{};
  problem.offsets = offsets.const_data_ptr<int>();
  problem.visible_end = visible_end.const_data_ptr<int>();
  problem.workspace = plan.data_ptr();
  problem.num_tokens = visible_end.size(0);
  problem.num_rows = static_cast<int>(offsets.size(0) - 1);
  char const* const message = hstu_sm90_plan(&problem, c10::cuda::getCurrentCUDAStream());
  TORCH_CHECK(message == nullptr, "mtgr_plan: ", message);
  return plan;
}

at::Tensor forward(at::Tensor const& q, at::Tensor const& k, at::Tensor const& v, at::Tensor const& offsets,
                   at::Tensor const& visible_end, double alpha, double inv_n, bool /*deterministic: it always is*/,
                   Plan const& plan) {
  check(q, k, v, offsets, visible_end);
  at::Tensor out = at::empty(q.sizes(), q.options());
  if (out.numel() == 0) return out;
  c10::cuda::CUDAGuard const guard(q.device());
  at::Tensor const workspace = workspace_of(plan, q, offsets);
  Problem problem = describe(q, k, v, offsets, visible_end, workspace, alpha, inv_n);
  problem.planned = plan.has_value();
  problem.out = matrix(out);
  char const* const message = hstu_sm90_forward(&problem, c10::cuda::getCurrentCUDAStream());
  TORCH_CHECK(message == nullptr, "mtgr_attention: ", message);
  return out;
}

// Writes the gradients where the caller wants them, such as into slices of the gradient of a UVQK product.
void backward_out(at::Tensor const& grad_out, at::Tensor const& q, at::Tensor const& k, at::Tensor const& v,
                  at::Tensor const& offsets, at::Tensor const& visible_end, double alpha, double inv_n,
                  bool /*deterministic: it always is*/, at::Tensor const& grad_q, at::Tensor const& grad_k,
                  at::Tensor const& grad_v, Plan const& plan) {
  check(q, k, v, offsets, visible_end);
  TORCH_CHECK_VALUE(grad_out.sizes() == q.sizes() && grad_out.scalar_type() == q.scalar_type(),
                    "grad_out must have the shape and dtype of q, ", q.sizes(), "; got ", grad_out.sizes(), " ",
                    grad_out.scalar_type());
  check_input("grad_q", grad_q, q);
  check_input("grad_k", grad_k, q);
  check_input("grad_v", grad_v, q);
  if (q.numel() == 0) return;
  c10::cuda::CUDAGuard const guard(q.device());
  // A gradient may come expanded or sliced at any offset; a copy is right then.
  at::Tensor const grad = loadable(grad_out) ? grad_out : grad_out.clone(at::MemoryFormat::Contiguous);
  at::Tensor const workspace = workspace_of(plan, q, offsets);
  Problem problem = describe(q, k, v, offsets, visible_end, workspace, alpha, inv_n);
  problem.planned = plan.has_value();
  int64_t const blocks =
      hstu_sm90_grad_score_blocks(q.size(0), offsets.size(0) - 1, static_cast<int>(q.size(2))) * q.size(1);
  at::Tensor grad_scores;
  if (blocks > 0) {
    // The last block is loaded with its neighbour.
    grad_scores = at::empty({(blocks + 1) * hstu_sm90::kBlock}, q.options());
    problem.grad_scores = grad_scores.data_ptr();
  }
  problem.in.grad_out = matrix(grad);
  problem.grad_q = matrix(grad_q);
  problem.grad_k = matrix(grad_k);
  problem.grad_v = matrix(grad_v);
  char const* const message = hstu_sm90_backward(&problem, c10::cuda::getCurrentCUDAStream());
  TORCH_CHECK(message == nullptr, "mtgr_attention_backward: ", message);
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> backward(at::Tensor const& grad_out, at::Tensor const& q,
                                                        at::Tensor const& k, at::Tensor const& v,
                                                        at::Tensor const& offsets, at::Tensor const& visible_end,
                                                        double alpha, double inv_n, bool deterministic,
                                                        Plan const& plan) {
  at::Tensor grad_q = at::empty(q.sizes(), q.options());
  at::Tensor grad_k = at::empty(q.sizes(), q.options());
  at::Tensor grad_v = at::empty(q.sizes(), q.options());
  backward_out(grad_out, q, k, v, offsets, visible_end, alpha, inv_n, deterministic, grad_q, grad_k, grad_v, plan);
  return {grad_q, grad_k, grad_v};
}

}  // namespace

TORCH_LIBRARY_IMPL(hstu_ops, CUDA, m) {
  m.impl("mtgr_plan", make_plan);
  m.impl("mtgr_attention", forward);
  m.impl("mtgr_attention_backward", backward);
  m.impl("mtgr_attention_backward_out", backward_out);
}
