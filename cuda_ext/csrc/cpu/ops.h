// The operators of backend `cpu`. Their arguments are checked in Python (hstu_ops/checks.py), their schemas, with what
// each argument means, are in hstu_ops/schemas.py.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <tuple>

namespace hstu_ops {

at::Tensor mtgr_attention_cpu(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const at::Tensor& offsets,
                              const at::Tensor& visible_end, double alpha, double inv_n, bool deterministic,
                              const std::optional<at::Tensor>& plan);

std::tuple<at::Tensor, at::Tensor, at::Tensor> mtgr_attention_backward_cpu(
    const at::Tensor& grad_out, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
    const at::Tensor& offsets, const at::Tensor& visible_end, double alpha, double inv_n, bool deterministic,
    const std::optional<at::Tensor>& plan);

std::tuple<at::Tensor, at::Tensor, at::Tensor> group_layer_norm_cpu(const at::Tensor& x, const at::Tensor& group,
                                                                    const at::Tensor& weight, const at::Tensor& bias,
                                                                    double eps, const std::optional<at::Tensor>& gate);

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> group_layer_norm_backward_cpu(
    const at::Tensor& grad_y, const at::Tensor& x, const at::Tensor& group, const at::Tensor& weight,
    const at::Tensor& mean, const at::Tensor& rstd, const std::optional<at::Tensor>& gate);

}  // namespace hstu_ops
