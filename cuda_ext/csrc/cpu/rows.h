// What the forward and the backward attention kernel share: one head of one row as a task, its blocks of queries, and
// the choice of who computes which task.
#pragma once

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <type_traits>
#include <vector>

#include "gemm.h"

namespace hstu_ops {

// A block of scores is kQueryBlock x kKeyBlock at most: it stays in the second-level cache, and memory stays linear in
// the tokens however long a row is.
constexpr int64_t kQueryBlock = 128;
constexpr int64_t kKeyBlock = 1024;

// Sums are kept in float, in double for double tensors.
template <typename scalar_t>
using acc_type = std::conditional_t<std::is_same_v<scalar_t, double>, double, float>;

// Queries [begin, end) of a row; none of them sees beyond visible_end, itself excepted.
struct QueryBlock {
  int64_t begin;
  int64_t end;
  int64_t visible_end;
};

// Cuts a row into blocks of queries. Static tokens lie inside what they see, real-time tokens and candidates behind it:
// a block never holds both, since they see differently far.
inline void cut_row(const int32_t* visible_end, int64_t length, std::vector<QueryBlock>& blocks) {
  blocks.clear();
  for (int64_t i = 0; i < length; ++i) {
    TORCH_CHECK_VALUE(0 <= visible_end[i] && visible_end[i] <= length, "visible_end must lie in [0, ", length,
                      "], the length of its row: token ", i, " of the row has ", visible_end[i]);
    const bool inside = i < visible_end[i];
    const bool starts = blocks.empty() || i - blocks.back().begin == kQueryBlock ||
                        inside != (i - 1 < static_cast<int64_t>(visible_end[i - 1]));
    if (starts) blocks.push_back({i, i, 0});
    blocks.back().end = i + 1;
    blocks.back().visible_end = std::max<int64_t>(blocks.back().visible_end, visible_end[i]);
  }
}

// A tensor [T, N, D] whose last stride is 1.
template <typename scalar_t>
struct Heads {
  scalar_t* data;
  int64_t token_stride;
  int64_t head_stride;

  explicit Heads(const at::Tensor& tensor)
      : data(const_cast<scalar_t*>(tensor.const_data_ptr<scalar_t>())),
        token_stride(tensor.stride(0)),
        head_stride(tensor.stride(1)) {}

  scalar_t* at(int64_t token, int64_t head) const { return data + token * token_stride + head * head_stride; }
};

// The rows [token, token + length) of one head as a matrix to read. Tensors that are summed in another type, or whose
// rows overlap (an expanded gradient), are copied into `scratch`, the others are read where they lie.
template <typename scalar_t>
Matrix<acc_type<scalar_t>> read_head(const Heads<scalar_t>& heads, int64_t token, int64_t length, int64_t head,
                                     int64_t dim, std::vector<acc_type<scalar_t>>& scratch) {
  using acc_t = acc_type<scalar_t>;
  if constexpr (std::is_same_v<scalar_t, acc_t>) {
    if (heads.token_stride >= dim) return {heads.at(token, head), heads.token_stride};  // as BLAS wants it
  }
  scratch.resize(length * dim);
  for (int64_t i = 0; i < length; ++i) {
    const scalar_t* from = heads.at(token + i, head);
    acc_t* to = scratch.data() + i * dim;
    for (int64_t d = 0; d < dim; ++d) to[d] = static_cast<acc_t>(from[d]);
  }
  return {scratch.data(), dim};
}

// Whether a head's rows hold nothing but finite numbers. If not, blocks will not do: their products also multiply what
// the mask hides, by a weight of zero, and zero times NaN or infinity is NaN.
template <typename T>
bool all_finite(Matrix<T> rows, int64_t length, int64_t dim) {
  bool finite = true;
  for (int64_t i = 0; i < length; ++i) {
    const T* row = rows.row(i);
    for (int64_t d = 0; d < dim; ++d) finite &= std::isfinite(row[d]);
  }
  return finite;
}

// The same rows as a matrix to sum into: the result itself, or scratch that `write_head` rounds into the result.
template <typename scalar_t>
Matrix<acc_type<scalar_t>> sum_head(const Heads<scalar_t>& heads, int64_t token, int64_t length, int64_t head,
                                    int64_t dim, std::vector<acc_type<scalar_t>>& scratch) {
  using acc_t = acc_type<scalar_t>;
  Matrix<acc_t> sums{nullptr, dim};
  if constexpr (std::is_same_v<scalar_t, acc_t>) {
    sums = {heads.at(token, head), heads.token_stride};
  } else {
    scratch.resize(length * dim);
    sums.data = scratch.data();
  }
  for (int64_t i = 0; i < length; ++i) std::fill_n(sums.row(i), dim, acc_t(0));
  return sums;
}

template <typename scalar_t>
void write_head(Matrix<acc_type<scalar_t>> sums, const Heads<scalar_t>& heads, int64_t token, int64_t length,
                int64_t head, int64_t dim) {
  if constexpr (!std::is_same_v<scalar_t, acc_type<scalar_t>>) {
    for (int64_t i = 0; i < length; ++i) {
      scalar_t* to = heads.at(token + i, head);
      for (int64_t d = 0; d < dim; ++d) to[d] = static_cast<scalar_t>(sums.row(i)[d]);
    }
  }
}

// Checks the offsets (which costs nothing here), runs `make_worker()` once a thread, and the worker it gives once for
// every (row, head), longest rows first, each thread taking the next one when it is free. A worker holds its thread's
// scratch.
template <typename MakeWorker>
void for_each_head(const at::Tensor& offsets, int64_t num_tokens, int64_t num_heads, const MakeWorker& make_worker) {
  const int32_t* bounds = offsets.const_data_ptr<int32_t>();
  std::vector<int64_t> rows(offsets.numel() - 1);
  for (size_t b = 0; b < rows.size(); ++b) {
    rows[b] = static_cast<int64_t>(b);
    TORCH_CHECK_VALUE(bounds[b] <= bounds[b + 1], "offsets must ascend, row ", b, " has length ",
                      bounds[b + 1] - bounds[b]);
  }
  TORCH_CHECK_VALUE(bounds[0] == 0 && bounds[rows.size()] == num_tokens, "offsets must run from 0 to T = ", num_tokens,
                    ", got ", bounds[0], " to ", bounds[rows.size()]);
  std::stable_sort(rows.begin(), rows.end(),
                   [&](int64_t a, int64_t b) { return bounds[a + 1] - bounds[a] > bounds[b + 1] - bounds[b]; });
  const int64_t num_tasks = static_cast<int64_t>(rows.size()) * num_heads;
  std::atomic<int64_t> next{0};
  at::parallel_for(0, std::min<int64_t>(at::get_num_threads(), num_tasks), 1, [&](int64_t begin, int64_t end) {
    for (int64_t thread = begin; thread < end; ++thread) {
      auto worker = make_worker();
      for (int64_t task = next++; task < num_tasks; task = next++) {
        const int64_t row = rows[task / num_heads];
        if (bounds[row + 1] > bounds[row]) worker(bounds[row], bounds[row + 1] - bounds[row], task % num_heads);
      }
    }
  });
}

}  // namespace hstu_ops
