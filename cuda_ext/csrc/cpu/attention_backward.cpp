// Backward pass of mtgr_attention on the CPU. Scores are computed again block by block; each (row, head) writes its own
// part of the gradients, so equal inputs give equal bits on any number of threads.
#include <ATen/Dispatch.h>
#include <ATen/ops/empty.h>

#include "ops.h"
#include "rows.h"
#include "vector_math.h"

namespace hstu_ops {
namespace {

template <typename scalar_t>
class BackwardWorker {
 public:
  using acc_t = acc_type<scalar_t>;

  BackwardWorker(const at::Tensor& grad_out, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                 const at::Tensor& visible_end, const at::Tensor& grad_q, const at::Tensor& grad_k,
                 const at::Tensor& grad_v, double alpha, double inv_n)
      : grad_out_(grad_out),
        q_(q),
        k_(k),
        v_(v),
        grad_q_(grad_q),
        grad_k_(grad_k),
        grad_v_(grad_v),
        visible_end_(visible_end.const_data_ptr<int32_t>()),
        dim_(q.size(2)),
        alpha_(static_cast<acc_t>(alpha)),
        inv_n_(static_cast<acc_t>(inv_n)),
        weights_(kQueryBlock * kKeyBlock),
        grad_weights_(kQueryBlock * kKeyBlock) {}

  void operator()(int64_t token, int64_t length, int64_t head) {
    const Row row{
        read_head(grad_out_, token, length, head, dim_, scratch_[0]),
        read_head(q_, token, length, head, dim_, scratch_[1]),
        read_head(k_, token, length, head, dim_, scratch_[2]),
        read_head(v_, token, length, head, dim_, scratch_[3]),
        sum_head(grad_q_, token, length, head, dim_, scratch_[4]),
        sum_head(grad_k_, token, length, head, dim_, scratch_[5]),
        sum_head(grad_v_, token, length, head, dim_, scratch_[6]),
        visible_end_ + token,
    };
    cut_row(row.visible_end, length, blocks_);
    const bool finite = all_finite(row.grad_out, length, dim_) && all_finite(row.q, length, dim_) &&
                        all_finite(row.k, length, dim_) && all_finite(row.v, length, dim_);
    if (!finite) blocks_.clear();
    for (const QueryBlock& block : blocks_) {
      for (int64_t key = 0; key < block.visible_end; key += kKeyBlock) {
        add_keys(row, block, key, std::min(key + kKeyBlock, block.visible_end));
      }
    }
    for (int64_t i = 0; i < length; ++i) {
      for (int64_t j = 0; !finite && j < row.visible_end[i]; ++j) add_key(row, i, j);
      if (i >= row.visible_end[i]) add_key(row, i, i);
    }
    write_head(row.grad_q, grad_q_, token, length, head, dim_);
    write_head(row.grad_k, grad_k_, token, length, head, dim_);
    write_head(row.grad_v, grad_v_, token, length, head, dim_);
  }

 private:
  struct Row {
    Matrix<acc_t> grad_out, q, k, v, grad_q, grad_k, grad_v;
    const int32_t* visible_end;
  };

  // Adds the gradients of what the queries of a block take from the keys [begin, end).
  void add_keys(const Row& row, const QueryBlock& block, int64_t begin, int64_t end) {
    const int64_t num_queries = block.end - block.begin;
    const int64_t num_keys = end - begin;
    const Matrix<acc_t> weights{weights_.data(), num_keys};
    const Matrix<acc_t> grad_weights{grad_weights_.data(), num_keys};
    const Matrix<acc_t> q = row.q.rows_from(block.begin);
    const Matrix<acc_t> grad_out = row.grad_out.rows_from(block.begin);
    const Matrix<acc_t> k = row.k.rows_from(begin);
    multiply_matrices<acc_t>(q, Transpose::kNo, k, Transpose::kYes, weights, num_queries, num_keys, dim_, 0);
    multiply_matrices<acc_t>(grad_out, Transpose::kNo, row.v.rows_from(begin), Transpose::kYes, grad_weights,
                             num_queries, num_keys, dim_, 0);
    for (int64_t i = 0; i < num_queries; ++i) {
      const int64_t seen = std::clamp<int64_t>(row.visible_end[block.begin + i] - begin, 0, num_keys);
      silu_backward(weights.row(i), grad_weights.row(i), seen, alpha_, inv_n_);
      std::fill(weights.row(i) + seen, weights.row(i) + num_keys, acc_t(0));
      std::fill(grad_weights.row(i) + seen, grad_weights.row(i) + num_keys, acc_t(0));
    }
    multiply_matrices<acc_t>(weights, Transpose::kYes, grad_out, Transpose::kNo, row.grad_v.rows_from(begin), num_keys,
                             dim_, num_queries, 1);
    multiply_matrices<acc_t>(grad_weights, Transpose::kYes, q, Transpose::kNo, row.grad_k.rows_from(begin), num_keys,
                             dim_, num_queries, 1);
    multiply_matrices<acc_t>(grad_weights, Transpose::kNo, k, Transpose::kNo, row.grad_q.rows_from(block.begin),
                             num_queries, dim_, num_keys, 1);
  }

  // Adds the gradients of what token i takes from token j.
  void add_key(const Row& row, int64_t i, int64_t j) {
    acc_t weight = dot(row.q.row(i), row.k.row(j), dim_);
    acc_t grad = dot(row.grad_out.row(i), row.v.row(j), dim_);
    silu_backward(&weight, &grad, 1, alpha_, inv_n_);
    add_scaled(row.grad_v.row(j), row.grad_out.row(i), weight, dim_);
    add_scaled(row.grad_q.row(i), row.k.row(j), grad, dim_);
    add_scaled(row.grad_k.row(j), row.q.row(i), grad, dim_);
  }

  Heads<scalar_t> grad_out_, q_, k_, v_, grad_q_, grad_k_, grad_v_;
  const int32_t* visible_end_;
  int64_t dim_;
  acc_t alpha_, inv_n_;
  std::vector<acc_t> weights_, grad_weights_;
  std::vector<acc_t> scratch_[7];
  std::vector<QueryBlock> blocks_;
};

}  // namespace

std::tuple<at::Tensor, at::Tensor, at::Tensor> mtgr_attention_backward_cpu(
    const at::Tensor& grad_out, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
    const at::Tensor& offsets, const at::Tensor& visible_end, double alpha, double inv_n, bool /*deterministic*/,
    const std::optional<at::Tensor>& /*plan*/) {
  at::Tensor grad_q = at::empty(q.sizes(), q.options());
  at::Tensor grad_k = at::empty(q.sizes(), q.options());
  at::Tensor grad_v = at::empty(q.sizes(), q.options());
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, q.scalar_type(), "mtgr_attention_backward_cpu", [&] {
    for_each_head(offsets, q.size(0), q.size(1), [&] {
      return BackwardWorker<scalar_t>(grad_out, q, k, v, visible_end, grad_q, grad_k, grad_v, alpha, inv_n);
    });
  });
  return {grad_q, grad_k, grad_v};
}

}  // namespace hstu_ops
