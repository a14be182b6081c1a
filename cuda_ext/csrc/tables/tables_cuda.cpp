// The dynamic hash table's operators on CUDA: checks, memory and launches; nothing here waits for the device.
#include <ATen/ATen.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include <algorithm>

#include "launch.h"
#include "operators.h"

namespace hstu_tables {
namespace {

// Calls launch(slices, first, last) for at most kMaxSlices slices of ids at a time.
template <typename Launch>
void for_slices(c10::IntArrayRef ends, c10::IntArrayRef tables, const Launch& launch) {
  int64_t first = 0;
  for (size_t begin = 0; begin < ends.size(); begin += kMaxSlices) {
    const size_t count = std::min(ends.size() - begin, size_t{kMaxSlices});
    Slices slices{};
    for (size_t s = 0; s < count; ++s) {
      slices.ends[s] = ends[begin + s];
      slices.tables[s] = static_cast<int32_t>(tables[begin + s]);
    }
    slices.count = static_cast<int32_t>(count);
    const int64_t last = ends[begin + count - 1];
    if (last > first) launch(slices, first, last);
    first = last;
  }
  C10_CUDA_CHECK(cudaGetLastError());
}

cudaStream_t stream_of(const at::Tensor& tensor) { return c10::cuda::getCurrentCUDAStream(tensor.get_device()); }

at::Tensor find(const at::Tensor& addresses, int64_t num_segments, const at::Tensor& ids, c10::IntArrayRef ends,
                c10::IntArrayRef tables) {
  const c10::cuda::CUDAGuard guard(ids.device());
  at::Tensor rows = at::empty({ids.numel()}, ids.options().dtype(at::kInt));
  for_slices(ends, tables, [&](const Slices& slices, int64_t first, int64_t last) {
    launch_find(memory_of(addresses, num_segments), ids.const_data_ptr<int64_t>(), slices, first, last,
                rows.mutable_data_ptr<int32_t>(), stream_of(ids));
  });
  return rows;
}

at::Tensor insert(const at::Tensor& addresses, int64_t num_segments, const at::Tensor& counters,
                  const at::Tensor& free_rows, int64_t next_row, const at::Tensor& ids, c10::IntArrayRef ends,
                  c10::IntArrayRef tables, int64_t admission, int64_t day, int64_t tick, int64_t seed, int64_t width,
                  c10::IntArrayRef state_widths, bool half) {
  const c10::cuda::CUDAGuard guard(ids.device());
  at::Tensor rows = at::empty({ids.numel()}, ids.options().dtype(at::kInt));
  const Rows space = {counters.mutable_data_ptr<int64_t>(), free_rows.const_data_ptr<int32_t>(), free_rows.numel(),
                      next_row};
  const Fresh fresh = fresh_of(width, state_widths, tick, seed, half);
  for_slices(ends, tables, [&](const Slices& slices, int64_t first, int64_t last) {
    launch_insert(memory_of(addresses, num_segments), space, ids.const_data_ptr<int64_t>(), slices, first, last,
                  admission, static_cast<uint32_t>(day), fresh, rows.mutable_data_ptr<int32_t>(), stream_of(ids));
  });
  return rows;
}

at::Tensor gather(const at::Tensor& addresses, const at::Tensor& rows, const at::Tensor& ids, c10::IntArrayRef ends,
                  c10::IntArrayRef tables, int64_t seed, int64_t width, bool half) {
  const c10::cuda::CUDAGuard guard(ids.device());
  at::Tensor out = at::empty({rows.numel(), width}, ids.options().dtype(half ? at::kBFloat16 : at::kFloat));
  for_slices(ends, tables, [&](const Slices& slices, int64_t first, int64_t last) {
    launch_gather(memory_of(addresses, 1), rows.const_data_ptr<int32_t>(), ids.const_data_ptr<int64_t>(), slices, first,
                  last, fresh_of(width, {}, 0, seed, half), out.mutable_data_ptr(), stream_of(ids));
  });
  return out;
}

void update(const at::Tensor& addresses, const at::Tensor& rows, const at::Tensor& grad, int64_t num_rows,
            int64_t optimizer, double lr, double eps, double beta1, double beta2, int64_t step, int64_t tick,
            int64_t seed, bool half) {
  const int64_t count = rows.numel();
  TORCH_CHECK_VALUE(grad.size(1) <= (grad.size(1) % 4 == 0 ? 512 : 256),
                    "the kernels update rows of up to 512 values, ",
                    "256 where the width is no multiple of four; the width is ", grad.size(1));
  if (count == 0) return;
  const c10::cuda::CUDAGuard guard(rows.device());
  const int bits = 64 - __builtin_clzll(static_cast<uint64_t>(num_rows));  // all ones are no row
  const auto options = rows.options();
  at::Tensor items = at::empty({4, count}, options);
  auto* const item = reinterpret_cast<uint32_t*>(items.mutable_data_ptr<int32_t>());
  size_t bytes = 0;
  sort_by_row(nullptr, bytes, nullptr, item, item + count, item + 2 * count, item + 3 * count, count, bits, nullptr);
  at::Tensor workspace = at::empty({static_cast<int64_t>(bytes)}, options.dtype(at::kByte));
  const cudaStream_t stream = stream_of(rows);
  sort_by_row(workspace.mutable_data_ptr(), bytes, rows.const_data_ptr<int32_t>(), item, item + count, item + 2 * count,
              item + 3 * count, count, bits, stream);
  const int64_t tiles = (count + kTile - 1) / kTile;
  at::Tensor partial = at::empty({tiles, 2, grad.size(1)}, grad.options());
  at::Tensor long_runs = at::empty({tiles + 1}, options);
  const Gradients gradients = {grad.const_data_ptr<float>(),
                               item + count,
                               item + 3 * count,
                               partial.mutable_data_ptr<float>(),
                               reinterpret_cast<uint32_t*>(long_runs.mutable_data_ptr<int32_t>()),
                               count,
                               static_cast<uint32_t>((uint64_t{1} << bits) - 1)};
  launch_update(memory_of(addresses, 1), gradients, static_cast<Optimizer>(optimizer),
                step_of(grad.size(1), lr, eps, beta1, beta2, step, tick, seed, half), stream);
  C10_CUDA_CHECK(cudaGetLastError());
}

at::Tensor remove(const at::Tensor& addresses, int64_t num_segments, const at::Tensor& ids, c10::IntArrayRef ends,
                  c10::IntArrayRef tables) {
  const c10::cuda::CUDAGuard guard(ids.device());
  at::Tensor rows = at::empty({ids.numel()}, ids.options().dtype(at::kInt));
  for_slices(ends, tables, [&](const Slices& slices, int64_t first, int64_t last) {
    launch_delete(memory_of(addresses, num_segments), ids.const_data_ptr<int64_t>(), slices, first, last,
                  rows.mutable_data_ptr<int32_t>(), stream_of(ids));
  });
  return rows;
}

void split(const at::Tensor& addresses, const at::Tensor& counters, int64_t first, int64_t last, bool grows,
           int64_t oldest_day) {
  const c10::cuda::CUDAGuard guard(counters.device());
  while (first < last) {  // within a level no segment is split twice
    const int64_t bit = grows ? upper_bit(first) : 0;
    const int64_t end = grows ? std::min(last, 2 * bit) : last;
    launch_split(memory_of(addresses, end), counters.mutable_data_ptr<int64_t>(), first, end, bit, oldest_day,
                 stream_of(counters));
    first = end;
  }
  C10_CUDA_CHECK(cudaGetLastError());
}

}  // namespace
}  // namespace hstu_tables

TORCH_LIBRARY_IMPL(hstu_ops, CUDA, m) {
  m.impl("table_find", &hstu_tables::find);
  m.impl("table_insert", &hstu_tables::insert);
  m.impl("table_gather", &hstu_tables::gather);
  m.impl("table_update", &hstu_tables::update);
  m.impl("table_delete", &hstu_tables::remove);
  m.impl("table_split", &hstu_tables::split);
}
