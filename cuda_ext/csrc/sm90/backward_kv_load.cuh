// What both backward kernels of keys share: their parameters, and the thread that loads.
//
// An item is 64 or 128 keys of a head; its steps are the tiles of queries that see any of those keys.
#pragma once

#include "device.cuh"

namespace hstu_sm90 {

struct BackwardKVParams {
  CUtensorMap q, k, v, grad_out;
  WorkHeader* header;
  TileInfo const* tiles;
  int const* visible_end;
  Matrix grad_k, grad_v;
  int num_heads;
  float half_alpha;
  float scale_k;  // alpha * inv_n / 2: the derivative passed on is doubled
  float inv_n;
};

// Extent of query tile i of a row: which keys some of its queries see, and which all of them do.
template <int kQueries>
__device__ __forceinline__ void query_extent(TileInfo const* row, int length, int i, int& most, int& least) {
  if constexpr (kQueries == kTile) {
    TileInfo const& tile = row[i];
    most = max(tile.most[0], tile.most[1]);
    least = min(tile.least[0], tile.least[1]);
  } else {
    most = row[i / 2].most[i % 2];
    least = row[i / 2].least[i % 2];
  }
  if ((i + 1) * kQueries > length) least = 0;
}

template <class Traits>
__device__ __forceinline__ void backward_kv_load(BackwardKVParams const& p, typename Traits::Shared& s) {
  constexpr int kQueries = Traits::kQueries, kStages = Traits::kStages;
  constexpr int kHalves = Traits::kHalves, kKeys = kHalves * kHalf, kItemsPerTile = kTile / kKeys;
  constexpr uint32_t kKeyBytes = sizeof(s.k), kStageBytes = 2 * sizeof(s.q[0]);
  int const lane = threadIdx.x;
  int const num_items = p.header->num_tiles * kItemsPerTile * p.num_heads;
  uint32_t count = 0, parity = 0;
  int item = blockIdx.x;
  while (item < num_items) {
    int next = 0;
    if (lane == 0) next = atomicAdd(&p.header->next[1], 1) + gridDim.x;
    TileInfo const tile = p.tiles[item / (kItemsPerTile * p.num_heads)];
    int const head = item / kItemsPerTile % p.num_heads, key = tile.first + item % kItemsPerTile * kKeys;
    int const num_queries = (tile.length + kQueries - 1) / kQueries;
    TileInfo const* const row = p.tiles + tile.row_tile;
    // Bit i of a chunk of 32 query tiles: visited, and with a mask.
    auto visits = [&](int chunk, unsigned& masked) {
      int const i = chunk + lane;
      int most = 0, least = 0;
      if (i < num_queries) query_extent<kQueries>(row, tile.length, i, most, least);
      bool const diagonal = i * kQueries < key + kKeys && key < (i + 1) * kQueries;
      masked = __ballot_sync(0xffffffffu, least < key + kKeys);
      return __ballot_sync(0xffffffffu, i < num_queries && (most > key || diagonal));
    };
    if (key < tile.length) {
      int num_visits = 0;
      unsigned masked;
      for (int chunk = 0; chunk < num_queries; chunk += 32) num_visits += __popc(visits(chunk, masked));
      if (lane == 0) {
        s.k_empty.wait(parity ^ 1);
        s.v_empty.wait(parity ^ 1);
        s.tile = tile;
        s.key = key;
        s.head = head;
        s.count = num_visits;
        s.k_full.arrive_and_expect_tx(kKeyBytes);
        for (int half = 0; half < kHalves; ++half) {
          load_rows(p.k, s.k_full, s.k[half], tile.row_start + key + half * kHalf, head);
        }
        s.v_full.arrive_and_expect_tx(kKeyBytes);
        for (int half = 0; half < kHalves; ++half) {
          load_rows(p.v, s.v_full, s.v[half], tile.row_start + key + half * kHalf, head);
        }
      }
      parity ^= 1;
      for (int chunk = 0; chunk < num_queries; chunk += 32) {
        unsigned todo = visits(chunk, masked);
        for (; todo; todo &= todo - 1, ++count) {
          if (lane != 0) continue;
          int const bit = __ffs(todo) - 1, query = (chunk + bit) * kQueries, stage = count % kStages;
          s.empty[stage].wait((count / kStages & 1) ^ 1);
          s.query[stage] = query | (masked >> bit & 1);
          s.full[stage].arrive_and_expect_tx(kStageBytes);
          load_rows(p.q, s.full[stage], s.q[stage], tile.row_start + query, head);
          load_rows(p.grad_out, s.full[stage], s.grad_out[stage], tile.row_start + query, head);
        }
        __syncwarp();
      }
    }
    item = __shfl_sync(0xffffffffu, next, 0);
  }
  if (lane == 0) {
    s.k_empty.wait(parity ^ 1);
    s.v_empty.wait(parity ^ 1);
    s.count = -1;
    s.k_full.arrive();
    s.v_full.arrive();
  }
}

}  // namespace hstu_sm90
