// Forward pass of mtgr_attention on the CPU: out = (SiLU(alpha Q K^T) * inv_n * mask) V, one head of one row at a time.
#include <ATen/Dispatch.h>
#include <ATen/ops/empty.h>

#include "ops.h"
#include "rows.h"
#include "vector_math.h"

namespace hstu_ops {
namespace {

template <typename scalar_t>
class ForwardWorker {
 public:
  using acc_t = acc_type<scalar_t>;

  ForwardWorker(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const at::Tensor& visible_end,
                const at::Tensor& out, double alpha, double inv_n)
      : q_(q),
        k_(k),
        v_(v),
        out_(out),
        visible_end_(visible_end.const_data_ptr<int32_t>()),
        dim_(q.size(2)),
        alpha_(static_cast<acc_t>(alpha)),
        inv_n_(static_cast<acc_t>(inv_n)),
        scores_(kQueryBlock * kKeyBlock) {}

  void operator()(int64_t token, int64_t length, int64_t head) {
    const auto q = read_head(q_, token, length, head, dim_, q_scratch_);
    const auto k = read_head(k_, token, length, head, dim_, k_scratch_);
    const auto v = read_head(v_, token, length, head, dim_, v_scratch_);
    const auto out = sum_head(out_, token, length, head, dim_, out_scratch_);
    const int32_t* visible_end = visible_end_ + token;
    cut_row(visible_end, length, blocks_);
    const bool finite = all_finite(q, length, dim_) && all_finite(k, length, dim_) && all_finite(v, length, dim_);
    if (!finite) blocks_.clear();
    for (const QueryBlock& block : blocks_) {
      for (int64_t key = 0; key < block.visible_end; key += kKeyBlock) {
        add_keys(q, k, v, out, visible_end, block, key, std::min(key + kKeyBlock, block.visible_end));
      }
    }
    for (int64_t i = 0; i < length; ++i) {
      for (int64_t j = 0; !finite && j < visible_end[i]; ++j) add_key(q, k, v, out, i, j);
      if (i >= visible_end[i]) add_key(q, k, v, out, i, i);  // it has not yet met itself
    }
    write_head(out, out_, token, length, head, dim_);
  }

 private:
  // Adds what the queries of a block take from the keys [begin, end).
  void add_keys(Matrix<acc_t> q, Matrix<acc_t> k, Matrix<acc_t> v, Matrix<acc_t> out, const int32_t* visible_end,
                const QueryBlock& block, int64_t begin, int64_t end) {
    const int64_t num_queries = block.end - block.begin;
    const int64_t num_keys = end - begin;
    const Matrix<acc_t> scores{scores_.data(), num_keys};
    multiply_matrices<acc_t>(q.rows_from(block.begin), Transpose::kNo, k.rows_from(begin), Transpose::kYes, scores,
                             num_queries, num_keys, dim_, 0);
    for (int64_t i = 0; i < num_queries; ++i) {
      const int64_t seen = std::clamp<int64_t>(visible_end[block.begin + i] - begin, 0, num_keys);
      silu_forward(scores.row(i), seen, alpha_, inv_n_);
      std::fill(scores.row(i) + seen, scores.row(i) + num_keys, acc_t(0));
    }
    multiply_matrices<acc_t>(scores, Transpose::kNo, v.rows_from(begin), Transpose::kNo, out.rows_from(block.begin),
                             num_queries, dim_, num_keys, 1);
  }

  // Adds what token i takes from token j.
  void add_key(Matrix<acc_t> q, Matrix<acc_t> k, Matrix<acc_t> v, Matrix<acc_t> out, int64_t i, int64_t j) {
    acc_t weight = dot(q.row(i), k.row(j), dim_);
    silu_forward(&weight, 1, alpha_, inv_n_);
    add_scaled(out.row(i), v.row(j), weight, dim_);
  }

  Heads<scalar_t> q_, k_, v_, out_;
  const int32_t* visible_end_;
  int64_t dim_;
  acc_t alpha_, inv_n_;
  std::vector<acc_t> scores_, q_scratch_, k_scratch_, v_scratch_, out_scratch_;
  std::vector<QueryBlock> blocks_;
};

}  // namespace

at::Tensor mtgr_attention_cpu(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const at::Tensor& offsets,
                              const at::Tensor& visible_end, double alpha, double inv_n, bool /*deterministic*/,
                              const std::optional<at::Tensor>& /*plan*/) {
  at::Tensor out = at::empty(q.sizes(), q.options());
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, q.scalar_type(), "mtgr_attention_cpu", [&] {
    for_each_head(offsets, q.size(0), q.size(1),
                  [&] { return ForwardWorker<scalar_t>(q, k, v, visible_end, out, alpha, inv_n); });
  });
  return out;
}

}  // namespace hstu_ops
