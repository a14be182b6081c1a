// Attention times the gate for the scoring engine (serve.h): a tile of 128 queries of a head by the CTAs of a cluster.
//
// A request has few tiles, and scores are not normalised over keys: each CTA of a cluster takes a part of the tiles of
// 64 keys, as the kernel of forward.cuh takes all of them, and sums of all parts are added up through shared memory,
// each CTA some of the rows. What is sent is rounded to 16 bits: the way between CTAs is narrow, and of 128 rows in
// float32 it would take as long as the products. Keys of a row's leading tokens may lie in pages of a cache.
#pragma once

#include "forward.cuh"
#include "serve.h"

namespace hstu_sm90 {

struct GatedParams {
  CUtensorMap q, k, v, cached_k, cached_v;
  Gated p;
};

template <class Element_, int kParts_>
struct GatedTraits {
  using Element = Element_;
  static constexpr int kParts = kParts_, kDim = 256, kKeys = kHalf, kStages = 2;
  static constexpr int kShare = 8 / kParts, kLines = kDim / 16;  // warps' rows that a CTA adds up; 16 columns a line
  using QLayout = KMajor<Element, kHalf, kDim>;
  using KLayout = KMajor<Element, kKeys, kDim>;
  using VLayout = MNMajor<Element, kKeys, kDim>;
  using MmaScores = MmaSS<Element, kKeys, kDim>;
  using MmaOut = MmaRS<Element, kDim, kKeys>;

  struct alignas(1024) Shared {
    Element q[2][kHalf * kDim];
    union {
      Element kv[2 * kStages][kKeys * kDim];  // keys of all stages, then values
      uint4 sums[kTile / 16 * kLines][32];    // 16 rows x 16 columns of a part, as they lie in a warp
    };
    Barrier q_full[2], k_full[kStages], k_empty[kStages], v_full[kStages], v_empty[kStages];
  };
};

// The tiles of keys of a tile of queries: cached ones, then the row's own below the largest visible_end, then one for
// each half whose self terms lie beyond. Places are counted from the first key that is not in the cache.
struct KeyRange {
  int cached_tiles, regular, begin, end;
  bool has_first, has_second;  // whether self terms of each half lie beyond
  __device__ KeyRange(QueryTile const& tile, int part, int parts) {
    cached_tiles = (min(tile.most, tile.cached) + kHalf - 1) / kHalf;
    int const own = (max(tile.most - tile.cached, 0) + kHalf - 1) / kHalf;
    regular = cached_tiles + own;
    int const second = tile.first + kHalf, end_of_first = min(second, tile.first + tile.rows);
    has_first = end_of_first > own * kHalf;
    has_second = tile.rows > kHalf && tile.first + tile.rows > own * kHalf;
    int const count = regular + has_first + has_second;
    begin = count * part / parts;
    end = count * (part + 1) / parts;
  }
  __device__ int own(int half) const {
    if (half == 0) return has_first ? regular : -1;
    return has_second ? regular + has_first : -1;
  }
  __device__ bool is_cached(int i) const { return i < cached_tiles; }
  __device__ int place(int i, QueryTile const& tile) const {
    if (i < cached_tiles) return i * kHalf - tile.cached;
    return i < regular ? (i - cached_tiles) * kHalf : tile.first + (i == own(0) ? 0 : kHalf);
  }
};

template <class Traits>
__device__ __forceinline__ void gated_load(GatedParams const& params, typename Traits::Shared& s, QueryTile const& tile,
                                           int head) {
  constexpr int kStages = Traits::kStages;
  constexpr uint32_t kQBytes = sizeof(s.q[0]), kKeyBytes = sizeof(s.kv[0]);
  Gated const& p = params.p;
  KeyRange const keys(tile, block_rank_in_cluster(), Traits::kParts);
  auto page_of = [&](int i) {
    return keys.is_cached(i) && i < keys.end ? __ldg(p.pages + static_cast<int64_t>(tile.row) * p.num_pages + i) : 0;
  };
  int page = page_of(keys.begin);
  auto load = [&](CUtensorMap const& own, CUtensorMap const& cached, Barrier& full, void* to, int i) {
    full.arrive_and_expect_tx(kKeyBytes);
    if (keys.is_cached(i)) {
      SM90_TMA_LOAD_5D::copy(&cached, reinterpret_cast<uint64_t*>(&full),
                             static_cast<uint64_t>(TMA::CacheHintSm90::EVICT_NORMAL), to, 0, 0, 0, head, page);
    } else {
      load_rows(own, full, to, tile.key_start + keys.place(i, tile), head);
    }
  };
  auto load_tile = [&](int i) {
    int const count = i - keys.begin, stage = count % kStages;
    uint32_t const empty = (count / kStages & 1) ^ 1;
    int const next_page = page_of(i + 1);
    s.k_empty[stage].wait(empty);
    load(params.k, params.cached_k, s.k_full[stage], s.kv[stage], i);
    s.v_empty[stage].wait(empty);
    load(params.v, params.cached_v, s.v_full[stage], s.kv[kStages + stage], i);
    page = next_page;
  };
  int i = keys.begin;
  for (; i < keys.end && i < keys.begin + kStages && keys.is_cached(i); ++i) load_tile(i);  // are there already
  wait_for_kernel_before();
  for (int half = 0; half < 2 && half * kHalf < tile.rows; ++half) {
    s.q_full[half].arrive_and_expect_tx(kQBytes);
    load_rows(params.q, s.q_full[half], s.q[half], tile.start + half * kHalf, head);
  }
  for (; i < keys.end; ++i) load_tile(i);
}

// A thread's part of the sum over the keys of this CTA.
template <class Traits, class Out>
__device__ __forceinline__ void gated_sum(GatedParams const& params, typename Traits::Shared& s, QueryTile const& tile,
                                          int half, Out& out) {
  using Element = typename Traits::Element;
  constexpr int kKeys = Traits::kKeys, kStages = Traits::kStages;
  Gated const& p = params.p;
  typename Traits::MmaScores mma_scores;
  typename Traits::MmaOut mma_out;
  auto const thread_scores = mma_scores.get_slice(0);
  auto const thread_out = mma_out.get_slice(0);
  auto const q_smem = make_tensor(make_smem_ptr(s.q[half]), typename Traits::QLayout{});
  auto const q = thread_scores.partition_fragment_A(q_smem);
  auto k_of = [&](int stage) {
    return thread_scores.partition_fragment_B(make_tensor(make_smem_ptr(s.kv[stage]), typename Traits::KLayout{}));
  };
  auto v_of = [&](int stage) {
    return thread_out.partition_fragment_B(
        make_tensor(make_smem_ptr(s.kv[kStages + stage]), typename Traits::VLayout{}));
  };
  auto scores = partition_fragment_C(mma_scores, Shape<_64, Int<kKeys>>{});
  auto weights = make_operand<Element, kKeys>();

  KeyRange const keys(tile, block_rank_in_cluster(), Traits::kParts);
  int const rows = tile.rows - half * kHalf, own = keys.own(half), num_keys = keys.end - keys.begin;
  int const row = tile.first + half * kHalf + fragment_row();
  int const least = (half == 0 ? tile.least[0] : tile.least[1]) - tile.cached;
  int limit[2];
  CUTE_UNROLL
  for (int j = 0; j < 2; ++j) {
    int const in_tile = half * kHalf + fragment_row() + 8 * j;
    limit[j] = in_tile < tile.rows ? __ldg(p.visible_end + tile.start + in_tile) - tile.cached : INT_MIN;
  }
  auto skips = [&](int n) { return keys.begin + n >= keys.regular && keys.begin + n != own; };
  auto skip = [&](int n) {
    int const stage = n % kStages;
    uint32_t const full = n / kStages & 1;
    s.k_full[stage].wait(full);
    s.k_empty[stage].arrive();
    s.v_full[stage].wait(full);
    s.v_empty[stage].arrive();
  };
  auto activate = [&](int n) {
    if (halve(scores, 0.5f * p.alpha)) {
      CUTE_UNROLL
      for (int e = 0; e < size(scores); ++e) scores(e) = silu<true>(scores(e)).weight;
    } else {
      CUTE_UNROLL
      for (int e = 0; e < size(scores); ++e) scores(e) = silu<false>(scores(e)).weight;
    }
    int const i = keys.begin + n, place = keys.place(i, tile);
    bool const is_diagonal = i >= keys.regular, is_cached = keys.is_cached(i);
    if (is_diagonal || place + kKeys > (is_cached ? min(least, 0) : least)) {
      CUTE_UNROLL
      for (int e = 0; e < size(scores); ++e) {
        int const j = e / 2 % 2, key = place + fragment_column(e);
        bool const sees = !is_diagonal & (key < limit[j]);
        scores(e) = (is_cached ? sees & (key < 0) : sees | (key == row + 8 * j)) ? scores(e) : 0.f;
      }
    }
  };

  clear(out);
  int n = 0;
  if (rows <= 0) {
    while (n < num_keys) skip(n++);
    return;
  }
  s.q_full[half].wait(0);
  while (n < num_keys && skips(n)) skip(n++);
  if (n == num_keys) return;
  s.k_full[n % kStages].wait(n / kStages & 1);
  issue<true>(mma_scores, q, k_of(n % kStages), scores);
  finish<0>(scores);
  s.k_empty[n % kStages].arrive();
  activate(n);
  to_operand<Element>(scores, weights);
  int pending = n++;
  for (; n < num_keys; ++n) {
    if (skips(n)) {
      skip(n);
      continue;
    }
    int const stage = n % kStages, v_stage = pending % kStages;
    s.k_full[stage].wait(n / kStages & 1);
    issue<true>(mma_scores, q, k_of(stage), scores);
    s.v_full[v_stage].wait(pending / kStages & 1);
    issue<false>(mma_out, weights, v_of(v_stage), out);
    finish<1>(scores);
    s.k_empty[stage].arrive();
    activate(n);
    finish<0>(out);
    s.v_empty[v_stage].arrive();
    to_operand<Element>(scores, weights);
    pending = n;
  }
  s.v_full[pending % kStages].wait(pending / kStages & 1);
  issue<false>(mma_out, weights, v_of(pending % kStages), out);
  finish<0>(out);
}

// Sends a warp's 16 rows, scaled, to the CTA of the cluster that adds them up.
template <class Traits, class Out>
__device__ __forceinline__ void send_sums(typename Traits::Shared& s, int warp, float scale, Out const& out) {
  using Element = typename Traits::Element;
  constexpr int kShare = Traits::kShare, kLines = Traits::kLines;
  int const slot = block_rank_in_cluster() * kShare + warp % kShare;
  uint32_t const here = cast_smem_ptr_to_uint(&s.sums[slot * kLines][threadIdx.x % 32]);
  uint32_t const there = set_block_rank(here, warp / kShare);
  CUTE_UNROLL
  for (int line = 0; line < kLines; ++line) {
    uint32_t word[4];
    CUTE_UNROLL
    for (int w = 0; w < 4; ++w) {
      word[w] = pack<Element>(out(8 * line + 2 * w) * scale, out(8 * line + 2 * w + 1) * scale);
    }
    asm volatile("st.shared::cluster.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(there + 512 * line), "r"(word[0]),
                 "r"(word[1]), "r"(word[2]), "r"(word[3])
                 : "memory");
  }
}

// The end of a tile: 16 rows and 256 / kParts columns a warp. What it needs from memory is on its way before the sums.
template <class Traits>
struct GatedEnd {
  using Element = typename Traits::Element;
  static constexpr int kParts = Traits::kParts, kShare = Traits::kShare, kBlocks = 32 / kParts;
  static constexpr int kAhead = kBlocks < 8 ? kBlocks : 8;
  int first_block, first_row, of_share, slice, lane;
  int64_t token[2];
  Element const* gate[2];
  Element* to[2];
  float const* scale[2];
  uint32_t u[kAhead][2];
  float2 w[kAhead][2];

  __device__ GatedEnd(Gated const& p, QueryTile const& tile, int head, int warp) {
    int const dim = p.num_heads * Traits::kDim;
    lane = threadIdx.x % 32;
    of_share = warp / kParts;
    slice = warp % kParts;
    first_block = slice * kBlocks;
    first_row = (block_rank_in_cluster() * kShare + of_share) * 16 + lane / 4;
    int const column = head * Traits::kDim + first_block * 8 + lane % 4 * 2;
    CUTE_UNROLL
    for (int j = 0; j < 2; ++j) {
      token[j] = tile.start + min(first_row + 8 * j, tile.rows - 1);
      gate[j] = static_cast<Element const*>(p.uvqk) + token[j] * 4 * dim + column;
      to[j] = static_cast<Element*>(p.out) + token[j] * dim + column;
      scale[j] = p.scale + static_cast<int64_t>(__ldg(p.group + token[j])) * dim + column;
    }
    load(0);
  }

  __device__ void load(int first) {
    CUTE_UNROLL
    for (int b = 0; b < kAhead; ++b) {
      CUTE_UNROLL
      for (int j = 0; j < 2; ++j) {
        u[b][j] = *reinterpret_cast<uint32_t const*>(gate[j] + 8 * (first + b));
        w[b][j] = __ldg(reinterpret_cast<float2 const*>(scale[j] + 8 * (first + b)));
      }
    }
  }

  __device__ static void add(float2& sum, uint32_t pair) {
    float2 const x = unpack<Element>(pair);
    sum.x += x.x;
    sum.y += x.y;
  }

  // Adds up all parts, gates, and stores them with their sums.
  __device__ void store(Gated const& p, typename Traits::Shared& s, QueryTile const& tile, int head) {
    float2 sums[2] = {};
#pragma unroll 1
    for (int first = 0; first < kBlocks; first += kAhead) {
      if (first > 0) load(first);
      CUTE_UNROLL
      for (int b = 0; b < kAhead; b += 2) {
        int const at = of_share * Traits::kLines + (first_block + first + b) / 2;
        float2 x[4] = {};
        CUTE_UNROLL
        for (int part = 0; part < kParts; ++part) {
          uint4 const of_part = s.sums[part * kShare * Traits::kLines + at][lane];
          add(x[0], of_part.x);
          add(x[1], of_part.y);
          add(x[2], of_part.z);
          add(x[3], of_part.w);
        }
        CUTE_UNROLL
        for (int i = 0; i < 4; ++i) {
          int const block = b + i / 2, j = i % 2;
          float2 const by = unpack<Element>(u[block][j]);
          float const low = x[i].x * by.x, high = x[i].y * by.y;
          sums[j].x += low + high;
          sums[j].y += low * low + high * high;
          if (first_row + 8 * j < tile.rows) {
            *reinterpret_cast<uint32_t*>(to[j] + 8 * (first + block)) =
                pack<Element>(low * w[block][j].x, high * w[block][j].y);
          }
        }
      }
    }
    CUTE_UNROLL
    for (int j = 0; j < 2; ++j) {
      CUTE_UNROLL
      for (int step = 1; step < 4; step *= 2) {
        sums[j].x += __shfl_xor_sync(0xffffffffu, sums[j].x, step);
        sums[j].y += __shfl_xor_sync(0xffffffffu, sums[j].y, step);
      }
      if (lane % 4 == 0 && first_row + 8 * j < tile.rows) {
        *reinterpret_cast<float2*>(p.sums + (token[j] * p.num_heads + head) * kParts + slice) = sums[j];
      }
    }
  }
};

template <class Traits>
__global__ void __launch_bounds__(kThreads, 1) gated_kernel(__grid_constant__ GatedParams const params) {
  extern __shared__ __align__(1024) char raw[];
  auto& s = *reinterpret_cast<typename Traits::Shared*>(raw);
  let_next_kernel_start();
  QueryTile const tile = params.p.tiles[blockIdx.y];
  if (tile.rows == 0) return;  // all of a cluster
  if (threadIdx.x == 0) {
    prefetch_tma_descriptor(&params.q);
    prefetch_tma_descriptor(&params.k);
    prefetch_tma_descriptor(&params.v);
    if (params.p.cache != nullptr) {
      prefetch_tma_descriptor(&params.cached_k);
      prefetch_tma_descriptor(&params.cached_v);
    }
    s.q_full[0].init(1);
    s.q_full[1].init(1);
    for (int i = 0; i < Traits::kStages; ++i) {
      s.k_full[i].init(1);
      s.v_full[i].init(1);
      s.k_empty[i].init(2 * kWarpgroup);
      s.v_empty[i].init(2 * kWarpgroup);
    }
    cutlass::arch::fence_barrier_init();
  }
  __syncthreads();
  int const group = cutlass::canonical_warp_group_idx(), head = blockIdx.z;
  if (group == 0) {
    cutlass::arch::warpgroup_reg_dealloc<Registers<1>::kLoad>();
    if (threadIdx.x == 0) gated_load<Traits>(params, s, tile, head);
    __syncwarp();
    cluster_sync();
    cluster_sync();
  } else {
    cutlass::arch::warpgroup_reg_alloc<Registers<1>::kCompute>();
    auto out = partition_fragment_C(typename Traits::MmaOut{}, Shape<_64, Int<Traits::kDim>>{});
    gated_sum<Traits>(params, s, tile, group - 1, out);
    int const warp = threadIdx.x / 32 - 4;
    wait_for_kernel_before();
    GatedEnd<Traits> end(params.p, tile, head, warp);
    cluster_sync();  // keys and values have been read by all
    if (warp * 16 < tile.rows) send_sums<Traits>(s, warp, params.p.inv_n, out);
    cluster_sync();
    if (end.first_row / 16 * 16 < tile.rows) end.store(params.p, s, tile, head);
  }
}

}  // namespace hstu_sm90
