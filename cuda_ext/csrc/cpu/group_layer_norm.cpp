// Group layer norm on the CPU, forward and backward, with the optional gate.
#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include "ops.h"
#include "rows.h"
#include "vector_math.h"

namespace hstu_ops {
namespace {

// Tokens whose weight gradients are summed together. A constant, so that the order of sums, and with it every bit of
// the result, does not depend on the number of threads.
constexpr int64_t kChunk = 512;

template <typename scalar_t>
void load(const scalar_t* from, acc_type<scalar_t>* to, int64_t n) {
  for (int64_t j = 0; j < n; ++j) to[j] = static_cast<acc_type<scalar_t>>(from[j]);
}

template <typename scalar_t>
void store(const acc_type<scalar_t>* from, scalar_t* to, int64_t n) {
  for (int64_t j = 0; j < n; ++j) to[j] = static_cast<scalar_t>(from[j]);
}

// z = x * gate of one token; gate may be null.
template <typename scalar_t>
void load_gated(const scalar_t* x, const scalar_t* gate, std::vector<acc_type<scalar_t>>& z,
                std::vector<acc_type<scalar_t>>& gate_values, int64_t n) {
  load(x, z.data(), n);
  if (gate == nullptr) return;
  load(gate, gate_values.data(), n);
  multiply(z.data(), gate_values.data(), n);
}

template <typename scalar_t>
void forward(const at::Tensor& x, const at::Tensor& group, const at::Tensor& weight, const at::Tensor& bias, double eps,
             const std::optional<at::Tensor>& gate, const at::Tensor& y, const at::Tensor& mean,
             const at::Tensor& rstd) {
  using acc_t = acc_type<scalar_t>;
  const int64_t dim = x.size(1);
  const auto* groups = group.const_data_ptr<int64_t>();
  at::parallel_for(0, x.size(0), kChunk, [&](int64_t begin, int64_t end) {
    std::vector<acc_t> z(dim), gate_values(dim), normed(dim);
    for (int64_t i = begin; i < end; ++i) {
      load_gated<scalar_t>(x.const_data_ptr<scalar_t>() + i * x.stride(0),
                           gate ? gate->const_data_ptr<scalar_t>() + i * gate->stride(0) : nullptr, z, gate_values,
                           dim);
      norm_forward(z.data(), weight.const_data_ptr<acc_t>() + groups[i] * dim,
                   bias.const_data_ptr<acc_t>() + groups[i] * dim, normed.data(), dim, static_cast<acc_t>(eps),
                   mean.mutable_data_ptr<acc_t>() + i, rstd.mutable_data_ptr<acc_t>() + i);
      store<scalar_t>(normed.data(), y.mutable_data_ptr<scalar_t>() + i * dim, dim);
    }
  });
}

// Writes grad_x and grad_gate; returns the gradients of weight and bias as one partial sum a chunk, [chunks, 2, G, D].
template <typename scalar_t>
at::Tensor backward(const at::Tensor& grad_y, const at::Tensor& x, const at::Tensor& group, const at::Tensor& weight,
                    const at::Tensor& mean, const at::Tensor& rstd, const std::optional<at::Tensor>& gate,
                    const at::Tensor& grad_x, const at::Tensor& grad_gate) {
  using acc_t = acc_type<scalar_t>;
  const int64_t num_tokens = x.size(0), dim = x.size(1), num_groups = weight.size(0);
  const auto* groups = group.const_data_ptr<int64_t>();
  const int64_t num_chunks = (num_tokens + kChunk - 1) / kChunk;
  at::Tensor partial = at::zeros({num_chunks, 2, num_groups, dim}, weight.options());
  at::parallel_for(0, num_chunks, 1, [&](int64_t first, int64_t last) {
    std::vector<acc_t> z(dim), gate_values(dim), grad(dim), grad_z(dim), product(dim);
    for (int64_t i = first * kChunk; i < std::min(last * kChunk, num_tokens); ++i) {
      const scalar_t* x_row = x.const_data_ptr<scalar_t>() + i * x.stride(0);
      load_gated<scalar_t>(x_row, gate ? gate->const_data_ptr<scalar_t>() + i * gate->stride(0) : nullptr, z,
                           gate_values, dim);
      load(grad_y.const_data_ptr<scalar_t>() + i * grad_y.stride(0), grad.data(), dim);
      acc_t* sums = partial.mutable_data_ptr<acc_t>() + (i / kChunk) * 2 * num_groups * dim + groups[i] * dim;
      norm_backward(grad.data(), z.data(), weight.const_data_ptr<acc_t>() + groups[i] * dim,
                    mean.const_data_ptr<acc_t>()[i], rstd.const_data_ptr<acc_t>()[i], grad_z.data(), sums,
                    sums + num_groups * dim, dim);
      if (gate) {
        load(x_row, product.data(), dim);
        multiply(product.data(), grad_z.data(), dim);
        store<scalar_t>(product.data(), grad_gate.mutable_data_ptr<scalar_t>() + i * dim, dim);
        multiply(grad_z.data(), gate_values.data(), dim);
      }
      store<scalar_t>(grad_z.data(), grad_x.mutable_data_ptr<scalar_t>() + i * dim, dim);
    }
  });
  return partial;
}

// The groups as contiguous int64, checked: a group out of range would read beside the weights.
at::Tensor checked_groups(const at::Tensor& group, int64_t num_groups) {
  at::Tensor groups = group.to(at::kLong).contiguous();
  const auto* values = groups.const_data_ptr<int64_t>();
  for (int64_t i = 0; i < groups.numel(); ++i) {
    TORCH_CHECK_VALUE(0 <= values[i] && values[i] < num_groups, "group must lie in [0, ", num_groups, "), token ", i,
                      " has ", values[i]);
  }
  return groups;
}

at::ScalarType statistics_type(const at::Tensor& x) {
  return x.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
}

}  // namespace

std::tuple<at::Tensor, at::Tensor, at::Tensor> group_layer_norm_cpu(const at::Tensor& x, const at::Tensor& group,
                                                                    const at::Tensor& weight, const at::Tensor& bias,
                                                                    double eps, const std::optional<at::Tensor>& gate) {
  const auto statistics = statistics_type(x);
  at::Tensor y = at::empty(x.sizes(), x.options());
  at::Tensor mean = at::empty({x.size(0)}, x.options().dtype(statistics));
  at::Tensor rstd = at::empty({x.size(0)}, x.options().dtype(statistics));
  const at::Tensor groups = checked_groups(group, weight.size(0));
  const at::Tensor weights = weight.to(statistics).contiguous();
  const at::Tensor biases = bias.to(statistics).contiguous();
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, x.scalar_type(), "group_layer_norm_cpu",
                                  [&] { forward<scalar_t>(x, groups, weights, biases, eps, gate, y, mean, rstd); });
  return {y, mean, rstd};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> group_layer_norm_backward_cpu(
    const at::Tensor& grad_y, const at::Tensor& x, const at::Tensor& group, const at::Tensor& weight,
    const at::Tensor& mean, const at::Tensor& rstd, const std::optional<at::Tensor>& gate) {
  at::Tensor grad_x = at::empty(x.sizes(), x.options());
  at::Tensor grad_gate = gate ? at::empty(x.sizes(), x.options()) : at::empty({0}, x.options());
  const at::Tensor groups = checked_groups(group, weight.size(0));
  const at::Tensor weights = weight.to(statistics_type(x)).contiguous();
  at::Tensor partial;
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, x.scalar_type(), "group_layer_norm_backward_cpu", [&] {
    partial = backward<scalar_t>(grad_y, x, groups, weights, mean, rstd, gate, grad_x, grad_gate);
  });
  const at::Tensor grad_weight = partial.select(1, 0).sum(0).to(weight.scalar_type());
  const at::Tensor grad_bias = partial.select(1, 1).sum(0).to(weight.scalar_type());
  return {grad_x, grad_weight, grad_bias, grad_gate};
}

}  // namespace hstu_ops
