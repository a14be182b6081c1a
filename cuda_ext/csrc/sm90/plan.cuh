// The plan of a call, made on the device: every tile of every row with the extent of what it sees.
//
// One block a row. Where a row's tiles stand in the list follows from the lengths alone (rows longest first, ties by
// index), so no block waits for another and the same input always gives the same list. The score gradients of the
// shortest rows, as many as have room, are kept: blocks are counted from the end of the list.
#pragma once

#include <climits>

#include "params.h"

namespace hstu_sm90 {

constexpr int kPlanThreads = 128;

__device__ __forceinline__ long long block_sum(long long value, long long* shared) {
  for (int lane = 16; lane > 0; lane /= 2) value += __shfl_xor_sync(0xffffffffu, value, lane);
  __syncthreads();
  if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = value;
  __syncthreads();
  long long sum = 0;
  for (int i = 0; i < kPlanThreads / 32; ++i) sum += shared[i];
  return sum;
}

__global__ void __launch_bounds__(kPlanThreads) plan_kernel(int const* offsets, int const* visible_end, int num_rows,
                                                            long long num_blocks, WorkHeader* header, TileInfo* tiles) {
  __shared__ long long shared[kPlanThreads / 32];
  asm volatile("griddepcontrol.launch_dependents;");  // the next kernel waits for this one where it reads the plan
  int const row = blockIdx.x;
  int const start = offsets[row], length = offsets[row + 1] - start;
  long long before_sum = 0, all = 0, blocks = 0;  // of rows before this one, of all, of rows behind it
  for (int other = threadIdx.x; other < num_rows; other += kPlanThreads) {
    int const other_length = offsets[other + 1] - offsets[other];
    int const other_tiles = (other_length + kTile - 1) / kTile;
    all += other_tiles;
    if (other_length > length || (other_length == length && other < row)) {
      before_sum += other_tiles;
    } else if (other != row) {
      long long const halves = (other_length + kHalf - 1) / kHalf;
      blocks += halves * halves;
    }
  }
  int const before = block_sum(before_sum, shared);
  blocks = block_sum(blocks, shared);
  long long const halves = (length + kHalf - 1) / kHalf;
  int const block = blocks + halves * halves <= num_blocks ? blocks : -1;
  if (row == 0) {
    all = block_sum(all, shared);
    if (threadIdx.x == 0) *header = WorkHeader{static_cast<int>(all), {0, 0, 0, 0}};
  }
  int const lane = threadIdx.x % 32, num_halves = 2 * ((length + kTile - 1) / kTile);
  for (int half = threadIdx.x / 32; half < num_halves; half += kPlanThreads / 32) {
    int most = 0, least = INT_MAX;
    for (int i = half * kHalf + lane; i < min((half + 1) * kHalf, length); i += 32) {
      int const end = min(max(visible_end[start + i], 0), length);
      most = max(most, end);
      least = min(least, end);
    }
    most = __reduce_max_sync(0xffffffffu, most);
    least = __reduce_min_sync(0xffffffffu, least);
    TileInfo& tile = tiles[before + half / 2];
    if (lane == 0) {
      tile.most[half % 2] = most;
      tile.least[half % 2] = least;
      if (half % 2 == 0) {
        tile.row_start = start;
        tile.first = half * kHalf;
        tile.length = length;
        tile.row_tile = before;
        tile.block = block;
      }
    }
  }
}

}  // namespace hstu_sm90
