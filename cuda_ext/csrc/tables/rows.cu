// The dynamic hash table's kernels for NVIDIA GPUs: vectors. Lookups copy rows; an update sorts the positions of a
// batch by row, adds up the gradients of a row in the order of their positions, and writes each row once. A group of
// lanes adds up a tile of 32 sorted positions; what a tile begins or leaves unfinished goes through partial sums, so
// that a row of many positions is spread over the chip and the order of additions is still fixed.
#include <cub/device/device_radix_sort.cuh>

#include "launch.h"

namespace hstu_tables {
namespace {

constexpr int kThreads = 256;
constexpr int kLongRun = 32;  // tiles from which a block adds up a row

template <int kVector>
struct alignas(4 * kVector) Values {
  float v[kVector];
};

template <int kVector>
struct alignas(2 * kVector) Halves {
  uint16_t v[kVector];
};

__device__ __forceinline__ uint64_t hash_at(const int64_t* ids, const Slices& slices, int64_t i) {
  int s = 0;
  while (i >= slices.ends[s]) ++s;
  return hash_of(static_cast<uint64_t>(ids[i]), static_cast<uint32_t>(slices.tables[s]));
}

// A group of `lanes` lanes copies kRows rows, all loads before the first store.
template <int kVector, bool kHalf>
__global__ void gather_kernel(Memory memory, const int32_t* __restrict__ rows, const int64_t* __restrict__ ids,
                              const __grid_constant__ Slices slices, int64_t first, int64_t last, Fresh fresh,
                              void* __restrict__ out, int lanes) {
  using Stored = std::conditional_t<kHalf, Halves<kVector>, Values<kVector>>;
  using Scalar = std::conditional_t<kHalf, uint16_t, float>;
  constexpr int kRows = 8;
  const int64_t group = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) / lanes;
  const int lane = threadIdx.x % lanes;
  const int64_t begin = first + group * kRows;
  const int64_t vectors = fresh.width / kVector;
  int32_t row[kRows];
#pragma unroll
  for (int r = 0; r < kRows; ++r) row[r] = begin + r < last ? rows[begin + r] : -1;
  for (int64_t j = lane; j < vectors; j += lanes) {
    Stored values[kRows];
#pragma unroll
    for (int r = 0; r < kRows; ++r)
      if (row[r] >= 0)
        values[r] = reinterpret_cast<const Stored*>(memory.column<Scalar>(kWeights, row[r], fresh.width))[j];
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      if (begin + r >= last) break;
      if (row[r] < 0) {
        const uint64_t base = initial_base(hash_at(ids, slices, begin + r), fresh.seed);
#pragma unroll
        for (int k = 0; k < kVector; ++k) {
          const float value = initial_value(base, j * kVector + k, fresh.scale);
          if constexpr (kHalf) {
            values[r].v[k] = to_bfloat16(value);
          } else {
            values[r].v[k] = value;
          }
        }
      }
      reinterpret_cast<Stored*>(out)[(begin + r) * vectors + j] = values[r];
    }
  }
}

__global__ void prepare_kernel(const int32_t* __restrict__ rows, uint32_t* __restrict__ keys,
                               uint32_t* __restrict__ places, int64_t count, uint32_t none) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= count) return;
  keys[i] = rows[i] < 0 ? none : static_cast<uint32_t>(rows[i]);
  places[i] = static_cast<uint32_t>(i);
}

// Vectors of a lane: kCount of kVector values each, `lanes` vectors apart.
template <int kVector, int kCount>
struct Sum {
  Values<kVector> part[kCount];

  __device__ __forceinline__ void load(const float* from, int lane, int lanes, int64_t vectors) {
#pragma unroll
    for (int c = 0; c < kCount; ++c) {
      const int64_t j = lane + static_cast<int64_t>(c) * lanes;
      if (j < vectors) {
        part[c] = reinterpret_cast<const Values<kVector>*>(from)[j];
      } else {
#pragma unroll
        for (int k = 0; k < kVector; ++k) part[c].v[k] = 0.0f;
      }
    }
  }
  __device__ __forceinline__ void store(float* to, int lane, int lanes, int64_t vectors) const {
#pragma unroll
    for (int c = 0; c < kCount; ++c) {
      const int64_t j = lane + static_cast<int64_t>(c) * lanes;
      if (j < vectors) reinterpret_cast<Values<kVector>*>(to)[j] = part[c];
    }
  }
  __device__ __forceinline__ void add(const Sum& other) {
#pragma unroll
    for (int c = 0; c < kCount; ++c)
#pragma unroll
      for (int k = 0; k < kVector; ++k) part[c].v[k] += other.part[c].v[k];
  }
};

// Writes a row once: `sum` is its gradient over `count` positions. All lanes of the group call it.
template <int kVector, int kCount, Optimizer kOptimizer, bool kHalf>
__device__ __forceinline__ void apply(const Memory& memory, const Step& step, uint32_t row, int32_t count,
                                      const Sum<kVector, kCount>& sum, int lane, int lanes, unsigned mask) {
  float rate = step.lr;
  if constexpr (kOptimizer == kRowwiseAdagrad) {
    float squares = 0.0f;
#pragma unroll
    for (int c = 0; c < kCount; ++c)
#pragma unroll
      for (int k = 0; k < kVector; ++k) squares += sum.part[c].v[k] * sum.part[c].v[k];
    for (int offset = lanes / 2; offset > 0; offset /= 2) squares += __shfl_xor_sync(mask, squares, offset, lanes);
    float* const state = memory.column<float>(kState, row);
    const float total = *state + squares / static_cast<float>(step.width);
    __syncwarp(mask);
    if (lane == 0) *state = total;
    rate = step.lr / (sqrtf(total) + step.eps);
  }
  using Stored = std::conditional_t<kHalf, Halves<kVector>, Values<kVector>>;
  using Scalar = std::conditional_t<kHalf, uint16_t, float>;
  Stored* const weights = reinterpret_cast<Stored*>(memory.column<Scalar>(kWeights, row, step.width));
  uint64_t base = 0;
  if constexpr (kHalf) {
    const uint64_t hash = hash_of(static_cast<uint64_t>(*memory.column<int64_t>(kIds, row)),
                                  static_cast<uint32_t>(*memory.column<int32_t>(kTables, row)));
    base = initial_base(hash, step.seed + 1 + static_cast<uint64_t>(step.tick));
  }
  const int64_t vectors = step.width / kVector;
  // As torch.optim.SparseAdam has it: eps is added to the root before its correction.
  [[maybe_unused]] const float adam_rate = step.lr * sqrtf(step.correction2) / step.correction1;
#pragma unroll
  for (int c = 0; c < kCount; ++c) {
    const int64_t j = lane + static_cast<int64_t>(c) * lanes;
    if (j >= vectors) break;
    Stored stored = weights[j];
    Values<kVector> moved;
    if constexpr (kOptimizer == kAdam) {
      auto* const firsts = reinterpret_cast<Values<kVector>*>(memory.column<float>(kState, row, step.width)) + j;
      auto* const seconds = reinterpret_cast<Values<kVector>*>(memory.column<float>(kState + 1, row, step.width)) + j;
      Values<kVector> first = *firsts, second = *seconds;
#pragma unroll
      for (int k = 0; k < kVector; ++k) {
        const float grad = sum.part[c].v[k];
        first.v[k] = step.beta1 * first.v[k] + step.rest1 * grad;
        second.v[k] = step.beta2 * second.v[k] + step.rest2 * grad * grad;
        moved.v[k] = adam_rate * first.v[k] / (sqrtf(second.v[k]) + step.eps);
      }
      *firsts = first;
      *seconds = second;
    } else {
#pragma unroll
      for (int k = 0; k < kVector; ++k) moved.v[k] = rate * sum.part[c].v[k];
    }
#pragma unroll
    for (int k = 0; k < kVector; ++k) {
      if constexpr (kHalf) {
        stored.v[k] = round_stochastic(from_bfloat16(stored.v[k]) - moved.v[k], base, j * kVector + k);
      } else {
        stored.v[k] -= moved.v[k];
      }
    }
    weights[j] = stored;
  }
  if (lane == 0) {
    *memory.column<int32_t>(kCounts, row) += count;
    *memory.column<int32_t>(kSeen, row) = step.tick;
  }
}

__device__ __forceinline__ unsigned mask_of(int lanes) {
  if (lanes == 32) return 0xFFFFFFFFu;
  return ((1u << lanes) - 1) << ((threadIdx.x & 31) / lanes * lanes);
}

template <int kVector, int kCount, Optimizer kOptimizer, bool kHalf>
__global__ void __launch_bounds__(kThreads) tile_kernel(Memory memory, Gradients gradients, Step step, int lanes) {
  constexpr int kAhead = kCount == 1 ? 8 : 2;
  const int64_t tile = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) / lanes;
  const int lane = threadIdx.x % lanes;
  const unsigned mask = mask_of(lanes);
  const int64_t vectors = step.width / kVector;
  const int64_t begin = tile * kTile, end = min(begin + kTile, gradients.count);
  if (begin >= end) return;
  Sum<kVector, kCount> sum, ahead[kAhead];
  uint32_t row = gradients.rows[begin];
  bool entered = begin > 0 && gradients.rows[begin - 1] == row;
  const uint32_t after = end < gradients.count ? gradients.rows[end] : gradients.none;
  int32_t count = 0;
  for (int64_t at = begin; at < end; at += kAhead) {
    uint32_t next[kAhead];
#pragma unroll
    for (int a = 0; a < kAhead; ++a) {
      next[a] = at + a < end ? gradients.rows[at + a] : gradients.none;
      if (next[a] != gradients.none)
        ahead[a].load(gradients.values + static_cast<int64_t>(gradients.positions[at + a]) * step.width, lane, lanes,
                      vectors);
    }
#pragma unroll
    for (int a = 0; a < kAhead; ++a) {
      if (at + a >= end) break;
      if (next[a] != row) {
        if (entered) {
          sum.store(gradients.partial + 2 * tile * step.width, lane, lanes, vectors);
        } else {
          apply<kVector, kCount, kOptimizer, kHalf>(memory, step, row, count, sum, lane, lanes, mask);
        }
        entered = false;
        row = next[a];
        count = 0;
      }
      if (row == gradients.none) return;  // these are last
      if (count == 0) {
        sum = ahead[a];
      } else {
        sum.add(ahead[a]);
      }
      ++count;
    }
  }
  if (row == gradients.none) return;
  if (!entered && after != row) {
    apply<kVector, kCount, kOptimizer, kHalf>(memory, step, row, count, sum, lane, lanes, mask);
  } else {
    sum.store(gradients.partial + (2 * tile + (entered ? 0 : 1)) * step.width, lane, lanes, vectors);
  }
}

// First sorted position after those of `row`, which has one at `at`.
__device__ __forceinline__ int64_t run_end(const Gradients& gradients, uint32_t row, int64_t at) {
  int64_t low = at, high = gradients.count;  // rows[low] == row, rows[high] != row
  while (high - low > 1) {
    const int64_t middle = (low + high) / 2;
    if (gradients.rows[middle] == row) {
      low = middle;
    } else {
      high = middle;
    }
  }
  return high;
}

// Where the run that a tile leaves unfinished starts, or -1 if none starts in this tile.
__device__ __forceinline__ int64_t run_start(const Gradients& gradients, int64_t tile) {
  const int64_t begin = tile * kTile, end = begin + kTile;
  if (end >= gradients.count) return -1;
  const uint32_t row = gradients.rows[end];
  if (row == gradients.none || gradients.rows[end - 1] != row) return -1;
  int64_t start = end - 1;
  while (start > begin && gradients.rows[start - 1] == row) --start;
  return start == begin && begin > 0 && gradients.rows[begin - 1] == row ? -1 : start;
}

// Rows over several tiles: few are finished by a group of lanes, many are left to `long_kernel`.
template <int kVector, int kCount, Optimizer kOptimizer, bool kHalf>
__global__ void __launch_bounds__(kThreads) border_kernel(Memory memory, Gradients gradients, Step step, int lanes) {
  const int64_t tile = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) / lanes;
  const int lane = threadIdx.x % lanes;
  if (tile * kTile >= gradients.count) return;
  const int64_t start = run_start(gradients, tile);
  if (start < 0) return;
  const uint32_t row = gradients.rows[start];
  const int64_t vectors = step.width / kVector;
  const int64_t far = (tile + kLongRun) * kTile;
  if (far < gradients.count && gradients.rows[far] == row) {
    if (lane == 0) gradients.long_runs[1 + atomicAdd(gradients.long_runs, 1u)] = static_cast<uint32_t>(tile);
    return;
  }
  Sum<kVector, kCount> sum, other;
  sum.load(gradients.partial + (2 * tile + 1) * step.width, lane, lanes, vectors);
  int64_t next = tile + 1, end = next * kTile;
  for (; next * kTile < gradients.count && gradients.rows[next * kTile] == row; ++next) {
    other.load(gradients.partial + 2 * next * step.width, lane, lanes, vectors);
    sum.add(other);
    end = next * kTile;
  }
  while (end < gradients.count && gradients.rows[end] == row) ++end;
  apply<kVector, kCount, kOptimizer, kHalf>(memory, step, row, static_cast<int32_t>(end - start), sum, lane, lanes,
                                            mask_of(lanes));
}

// A block adds up one row: each of its groups a fixed stretch of tiles, then the groups' sums in order.
template <int kVector, int kCount, Optimizer kOptimizer, bool kHalf>
__global__ void __launch_bounds__(kThreads) long_kernel(Memory memory, Gradients gradients, Step step, int lanes) {
  extern __shared__ float shared[];
  const int groups = kThreads / lanes, group = threadIdx.x / lanes, lane = threadIdx.x % lanes;
  const int64_t vectors = step.width / kVector;
  for (uint32_t run = blockIdx.x; run < gradients.long_runs[0]; run += gridDim.x) {
    const int64_t tile = gradients.long_runs[1 + run];
    const int64_t start = run_start(gradients, tile);
    const uint32_t row = gradients.rows[start];
    const int64_t end = run_end(gradients, row, (tile + 1) * kTile);
    const int64_t last = (end + kTile - 1) / kTile;  // tile after the run's last
    const int64_t each = (last - tile + groups - 1) / groups;
    Sum<kVector, kCount> sum, other;
    sum.load(gradients.partial, lane, lanes, 0);  // zero
    const int64_t from = tile + group * each, to = min(from + each, last);
#pragma unroll 4
    for (int64_t t = from; t < to; ++t) {
      other.load(gradients.partial + (2 * t + (t == tile ? 1 : 0)) * step.width, lane, lanes, vectors);
      sum.add(other);
    }
    sum.store(shared + group * step.width, lane, lanes, vectors);
    __syncthreads();
    if (group == 0) {
      for (int g = 1; g < groups; ++g) {
        other.load(shared + g * step.width, lane, lanes, vectors);
        sum.add(other);
      }
      apply<kVector, kCount, kOptimizer, kHalf>(memory, step, row, static_cast<int32_t>(end - start), sum, lane, lanes,
                                                mask_of(lanes));
    }
    __syncthreads();
  }
}

int lanes_of(int64_t vectors) {
  int lanes = 1;
  while (lanes < vectors && lanes < 32) lanes *= 2;
  return lanes;
}

template <int kVector, int kCount, Optimizer kOptimizer, bool kHalf>
void update_with(const Memory& memory, const Gradients& gradients, const Step& step, cudaStream_t stream) {
  const int lanes = lanes_of(step.width / kVector);
  const int64_t tiles = (gradients.count + kTile - 1) / kTile;
  const auto blocks = static_cast<unsigned>((tiles * lanes + kThreads - 1) / kThreads);
  cudaMemsetAsync(gradients.long_runs, 0, sizeof(uint32_t), stream);
  tile_kernel<kVector, kCount, kOptimizer, kHalf><<<blocks, kThreads, 0, stream>>>(memory, gradients, step, lanes);
  if (tiles == 1) return;
  border_kernel<kVector, kCount, kOptimizer, kHalf><<<blocks, kThreads, 0, stream>>>(memory, gradients, step, lanes);
  if (tiles <= kLongRun) return;
  const size_t shared = kThreads / lanes * step.width * sizeof(float);
  long_kernel<kVector, kCount, kOptimizer, kHalf><<<256, kThreads, shared, stream>>>(memory, gradients, step, lanes);
}

template <int kVector, int kCount>
void update_by(const Memory& memory, const Gradients& gradients, Optimizer optimizer, const Step& step,
               cudaStream_t stream) {
  const auto call = [&](auto half) {
    constexpr bool kHalf = decltype(half)::value;
    if (optimizer == kAdam) {
      update_with<kVector, kCount, kAdam, kHalf>(memory, gradients, step, stream);
    } else if (optimizer == kRowwiseAdagrad) {
      update_with<kVector, kCount, kRowwiseAdagrad, kHalf>(memory, gradients, step, stream);
    } else {
      update_with<kVector, kCount, kSgd, kHalf>(memory, gradients, step, stream);
    }
  };
  if (step.half) {
    call(std::true_type{});
  } else {
    call(std::false_type{});
  }
}

}  // namespace

void launch_gather(const Memory& memory, const int32_t* rows, const int64_t* ids, const Slices& slices, int64_t first,
                   int64_t last, const Fresh& fresh, void* out, cudaStream_t stream) {
  const bool aligned = fresh.width % 4 == 0;
  const int lanes = lanes_of(aligned ? fresh.width / 4 : fresh.width);
  const int64_t groups = (last - first + 7) / 8;
  const auto blocks = static_cast<unsigned>((groups * lanes + kThreads - 1) / kThreads);
  const auto call = [&](auto kernel) {
    kernel<<<blocks, kThreads, 0, stream>>>(memory, rows, ids, slices, first, last, fresh, out, lanes);
  };
  if (aligned) {
    fresh.half ? call(gather_kernel<4, true>) : call(gather_kernel<4, false>);
  } else {
    fresh.half ? call(gather_kernel<1, true>) : call(gather_kernel<1, false>);
  }
}

void sort_by_row(void* workspace, size_t& bytes, const int32_t* rows, uint32_t* keys, uint32_t* sorted,
                 uint32_t* places, uint32_t* positions, int64_t count, int bits, cudaStream_t stream) {
  if (workspace != nullptr) {
    const auto none = static_cast<uint32_t>((uint64_t{1} << bits) - 1);
    prepare_kernel<<<static_cast<unsigned>((count + kThreads - 1) / kThreads), kThreads, 0, stream>>>(
        rows, keys, places, count, none);
  }
  cub::DeviceRadixSort::SortPairs(workspace, bytes, keys, sorted, places, positions, static_cast<int>(count), 0, bits,
                                  stream);
}

void launch_update(const Memory& memory, const Gradients& gradients, Optimizer optimizer, const Step& step,
                   cudaStream_t stream) {
  const int64_t vectors = step.width % 4 == 0 ? step.width / 4 : 0;
  if (vectors == 0) {
    update_by<1, 8>(memory, gradients, optimizer, step, stream);
  } else if (vectors <= 32) {
    update_by<4, 1>(memory, gradients, optimizer, step, stream);
  } else {
    update_by<4, 4>(memory, gradients, optimizer, step, stream);
  }
}

}  // namespace hstu_tables
