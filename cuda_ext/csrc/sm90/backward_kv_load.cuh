// What both backward kernels of keys share: their parameters, and the thread that loads.
//
// An item is 64 or 128 keys of a head; its steps are the tiles of queries that see any of those keys.
#pragma once

#include "repair.cuh"

namespace hstu_sm90 {

struct BackwardKVParams {
  CUtensorMap q, k, v, grad_out;
  WorkHeader* header;
  TileInfo const* tiles;
  int const* visible_end;
  Inputs in;
  Matrix grad_k, grad_v;
  void* grad_scores;
  int64_t blocks_a_head;
  int num_heads;
  float half_alpha;
  float scale_k;  // alpha * inv_n / 2: the derivative passed on is doubled
  float inv_n;
};

// Which of two neighbouring queries (elements e and e + 1 of a fragment) see which of a thread's keys, `row` and 8 on.
struct KeepPairs {
  bool pair[4];
  __device__ KeepPairs(BackwardKVParams const& p, TileInfo const& tile, int row, int query, int e) {
    CUTE_UNROLL
    for (int c = 0; c < 2; ++c) {
      int const position = query + fragment_column(e + c);
      bool const inside = position < tile.length;
      int const end = inside ? __ldg(p.visible_end + tile.row_start + position) : 0;
      pair[c] = (row < end) | (inside & (row == position));
      pair[c + 2] = (row + 8 < end) | (inside & (row + 8 == position));
    }
  }
  // Bits of key j's two numbers of 16 bits.
  __device__ uint32_t bits(int j) const { return (pair[2 * j] ? 0xffffu : 0u) | (pair[2 * j + 1] ? 0xffff0000u : 0u); }
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

// The tiles of queries that a warp's item, keys [key, key + kKeys) of a row, is visited by.
template <int kQueries, int kKeys>
struct QueryVisits {
  TileInfo const* row;
  int length, key, num_queries;

  __device__ QueryVisits(TileInfo const* row, int length, int key)
      : row(row), length(length), key(key), num_queries((length + kQueries - 1) / kQueries) {}

  // Bit i of a chunk of 32 query tiles: visited, and with a mask.
  __device__ unsigned of(int chunk, unsigned& masked) const {
    int const i = chunk + threadIdx.x % 32;
    int most = 0, least = 0;
    if (i < num_queries) query_extent<kQueries>(row, length, i, most, least);
    bool const diagonal = i * kQueries < key + kKeys && key < (i + 1) * kQueries;
    masked = __ballot_sync(0xffffffffu, least < key + kKeys);
    return __ballot_sync(0xffffffffu, i < num_queries && (most > key || diagonal));
  }
  __device__ int count() const {
    int visits = 0;
    unsigned masked;
    for (int chunk = 0; chunk < num_queries; chunk += 32) visits += __popc(of(chunk, masked));
    return visits;
  }
  // Calls visit(first query, whether with a mask) for each.
  template <class Visit>
  __device__ void each(Visit const& visit) const {
    unsigned masked;
    for (int chunk = 0; chunk < num_queries; chunk += 32) {
      for (unsigned todo = of(chunk, masked); todo; todo &= todo - 1) {
        int const bit = __ffs(todo) - 1;
        visit((chunk + bit) * kQueries, masked >> bit & 1);
      }
      __syncwarp();
    }
  }
};

// Takes spoilt results again: of values the sum of the weights times grad_out, of keys that of the scores' gradients
// times q, over the queries that see them.
template <class T, int kDim>
__device__ __forceinline__ void repair_values(BackwardKVParams const& p, TileInfo const& tile, int head, int begin,
                                              unsigned rows) {
  Visible const sees{p.visible_end + tile.row_start};
  auto const seen_by = [&](int j, int i) { return sees(i, j); };
  Spoilt const spoilt{tile, head, begin, rows, p.half_alpha, p.inv_n};
  repair<T, kDim, false>(spoilt, p.in.k, p.in.q, p.in.k, p.in.q, p.in.grad_out, p.grad_v, seen_by);
}

template <class T, int kDim>
__device__ __forceinline__ void repair_keys(BackwardKVParams const& p, TileInfo const& tile, int head, int begin,
                                            unsigned rows) {
  Visible const sees{p.visible_end + tile.row_start};
  auto const seen_by = [&](int j, int i) { return sees(i, j); };
  Spoilt const spoilt{tile, head, begin, rows, p.half_alpha, p.scale_k};
  repair<T, kDim, true>(spoilt, p.in.k, p.in.q, p.in.v, p.in.grad_out, p.in.q, p.grad_k, seen_by);
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
    if (lane == 0) next = take(p.header->next[1], num_items) + gridDim.x;
    TileInfo const tile = p.tiles[item / (kItemsPerTile * p.num_heads)];
    int const head = item / kItemsPerTile % p.num_heads, key = tile.first + item % kItemsPerTile * kKeys;
    QueryVisits<kQueries, kKeys> const visits(p.tiles + tile.row_tile, tile.length, key);
    if (key < tile.length) {
      int const num_visits = visits.count();
      auto load_keys = [&] {
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
      };
      bool first = true;
      visits.each([&](int query, bool masked) {
        int const stage = count % kStages;
        uint32_t const empty = (count / kStages & 1) ^ 1;
        ++count;
        if (lane != 0) return;
        s.empty[stage].wait(empty);
        s.query[stage] = query | masked;
        s.full[stage].arrive_and_expect_tx(kStageBytes);
        load_rows(p.q, s.full[stage], s.q[stage], tile.row_start + query, head);
        load_rows(p.grad_out, s.full[stage], s.grad_out[stage], tile.row_start + query, head);
        if (first) load_keys();  // only now: the first queries' stage is free before the last keys are
        first = false;
      });
      parity ^= 1;
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
