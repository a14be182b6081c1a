// hstu_ops::norm_backward_sm90: checks, allocation, and the call into norm_backward.h.
#include <ATen/ATen.h>
#include <ATen/cuda/CUDAContextLight.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include <algorithm>
#include <optional>
#include <tuple>

#include "norm_backward.h"

namespace {

int64_t stride_of(char const* name, at::Tensor const& tensor, at::Tensor const& x) {
  TORCH_CHECK_VALUE(tensor.sizes() == x.sizes() && tensor.scalar_type() == x.scalar_type() && tensor.is_cuda(), name,
                    " must be as x, ", x.sizes(), " ", x.scalar_type(), ", got ", tensor.sizes(), " ",
                    tensor.scalar_type());
  TORCH_CHECK_VALUE(tensor.stride(1) == 1 && tensor.stride(0) % 8 == 0 &&
                        reinterpret_cast<uintptr_t>(tensor.const_data_ptr()) % 16 == 0,
                    name, " must start at a multiple of 16 bytes and have strides 8 n and 1, got ", tensor.strides());
  return tensor.stride(0);
}

std::tuple<at::Tensor, at::Tensor> norm_backward(at::Tensor const& grad_y, at::Tensor const& x, at::Tensor const& group,
                                                 at::Tensor const& weight, at::Tensor const& mean,
                                                 at::Tensor const& rstd, std::optional<at::Tensor> const& gate,
                                                 std::optional<at::Tensor> const& grad_sum,
                                                 std::optional<at::Tensor> const& grad_gate) {
  TORCH_CHECK_VALUE(x.dim() == 2 && (x.scalar_type() == at::kBFloat16 || x.scalar_type() == at::kHalf),
                    "x must be [T, D] in bfloat16 or float16, got ", x.sizes(), " ", x.scalar_type());
  int64_t const dim = x.size(1);
  TORCH_CHECK_VALUE(dim % 256 == 0 && dim >= 256 && dim <= 1024, "D must be 256, 512, 768 or 1024, got ", dim);
  TORCH_CHECK_VALUE(gate.has_value() == grad_gate.has_value() && !(gate && grad_sum),
                    "gate and grad_gate go together, and not with grad_sum");
  TORCH_CHECK_VALUE(group.scalar_type() == at::kInt && group.is_contiguous() && group.numel() == x.size(0),
                    "group must be contiguous int32 [T], got ", group.scalar_type(), " ", group.sizes());
  TORCH_CHECK_VALUE(
      weight.scalar_type() == at::kFloat && weight.is_contiguous() && weight.dim() == 2 && weight.size(1) == dim,
      "weight must be contiguous float32 [G, D], got ", weight.scalar_type(), " ", weight.sizes());
  TORCH_CHECK_VALUE(mean.is_contiguous() && rstd.is_contiguous() && mean.scalar_type() == at::kFloat &&
                        rstd.scalar_type() == at::kFloat && mean.numel() == x.size(0) && rstd.numel() == x.size(0),
                    "mean and rstd must be contiguous float32 [T]");
  c10::cuda::CUDAGuard const guard(x.device());
  int64_t const tokens = x.size(0), groups = weight.size(0);
  int const blocks = hstu_sm90::kNormBlocks * at::cuda::getCurrentDeviceProperties()->multiProcessorCount;
  int64_t const warps = int64_t{blocks} * hstu_sm90::kNormWarps;
  at::Tensor grad_x = at::empty(x.sizes(), x.options());
  at::Tensor partial = at::zeros({warps, 2 * groups + 1, dim}, x.options().dtype(at::kFloat));
  if (tokens == 0) return {grad_x, partial};
  std::optional<at::Tensor> const& other = gate ? gate : grad_sum;
  hstu_sm90::NormBackward p{};
  p.grad_y_stride = stride_of("grad_y", grad_y, x);
  p.x_stride = stride_of("x", x, x);
  p.other_stride = other ? stride_of("gate or grad_sum", *other, x) : 0;
  p.grad_gate_stride = grad_gate ? stride_of("grad_gate", *grad_gate, x) : 0;
  p.grad_y = grad_y.const_data_ptr();
  p.x = x.const_data_ptr();
  p.other = other ? other->const_data_ptr() : nullptr;
  p.group = group.const_data_ptr<int>();
  p.weight = weight.const_data_ptr<float>();
  p.mean = mean.const_data_ptr<float>();
  p.rstd = rstd.const_data_ptr<float>();
  p.grad_x = grad_x.mutable_data_ptr();
  p.grad_gate = grad_gate ? grad_gate->mutable_data_ptr() : nullptr;
  p.partial = partial.mutable_data_ptr<float>();
  p.num_tokens = static_cast<int>(tokens);
  p.num_groups = static_cast<int>(groups);
  p.tokens_a_warp = static_cast<int>((tokens + warps - 1) / warps);
  p.is_gated = gate.has_value();
  p.is_added = grad_sum.has_value();
  p.is_bfloat16 = x.scalar_type() == at::kBFloat16;
  hstu_sm90::norm_backward(p, static_cast<int>(dim), blocks, c10::cuda::getCurrentCUDAStream(x.get_device()));
  C10_CUDA_CHECK(cudaGetLastError());
  return {grad_x, partial};
}

}  // namespace

TORCH_LIBRARY_IMPL(hstu_ops, CUDA, m) { m.impl("norm_backward_sm90", norm_backward); }
