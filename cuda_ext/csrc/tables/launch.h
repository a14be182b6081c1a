// What tables_cuda.cu launches and tables_cuda.cpp calls: no header of PyTorch is read by nvcc.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

#include "layout.h"

namespace hstu_tables {

// Slices of the ids of one launch: ids [ends[s - 1], ends[s]) are of table tables[s].
struct Slices {
  int64_t ends[kMaxSlices];
  int32_t tables[kMaxSlices];
  int32_t count;
};

struct Rows {
  int64_t* counters;
  const int32_t* free_rows;
  int64_t num_free, next_row;
};

struct Gradients {
  const float* values;
  const uint32_t* rows;       // sorted; `none` are left out
  const uint32_t* positions;  // of the sorted rows, those of a row ascending
  float* partial;             // [tiles, 2, width]
  uint32_t* long_runs;        // how many, and the tiles where they start
  int64_t count;
  uint32_t none;
};

constexpr int kTile = 32;  // sorted positions that one group of lanes adds up

void launch_find(const Memory& memory, const int64_t* ids, const Slices& slices, int64_t first, int64_t last,
                 int32_t* rows, cudaStream_t stream);
void launch_insert(const Memory& memory, const Rows& space, const int64_t* ids, const Slices& slices, int64_t first,
                   int64_t last, int64_t admission, uint32_t day, const Fresh& fresh, int32_t* rows,
                   cudaStream_t stream);
void launch_gather(const Memory& memory, const int32_t* rows, const int64_t* ids, const Slices& slices, int64_t first,
                   int64_t last, const Fresh& fresh, void* out, cudaStream_t stream);
void launch_delete(const Memory& memory, const int64_t* ids, const Slices& slices, int64_t first, int64_t last,
                   int32_t* rows, cudaStream_t stream);
void launch_split(const Memory& memory, int64_t* counters, int64_t first, int64_t last, int64_t bit, int64_t oldest_day,
                  cudaStream_t stream);
// Sorts; with workspace null it says how many bytes it needs.
void sort_by_row(void* workspace, size_t& bytes, const int32_t* rows, uint32_t* keys, uint32_t* sorted,
                 uint32_t* places, uint32_t* positions, int64_t count, int bits, cudaStream_t stream);
void launch_update(const Memory& memory, const Gradients& gradients, Optimizer optimizer, const Step& step,
                   cudaStream_t stream);

}  // namespace hstu_tables
