// The forward kernel: out = (SiLU(alpha q k^T) * inv_n, masked) v, one tile of 128 query tokens of a head at a time.
//
// Persistent: kBlocks CTAs on each multiprocessor take items (tile, head) from a counter, rows longest first. A thread
// loads; two warpgroups each own 64 query rows, whose result stays in registers. Keys are visited up to the largest
// visible_end of the tile; a self term beyond that is one more tile of keys, 64 of them on its diagonal. There is no
// softmax, so nothing is rescaled: with one CTA, the product P V of a tile runs while the scores of the next one become
// weights; with two, a warpgroup takes its steps in turn, with fewer registers, and the other CTA fills the gaps.
#pragma once

#include "repair.cuh"

namespace hstu_sm90 {

struct ForwardParams {
  CUtensorMap q, k, v;
  WorkHeader* header;
  TileInfo const* tiles;
  int const* visible_end;
  Inputs in;
  Matrix out;
  int num_heads;
  float half_alpha;
  float inv_n;
};

template <class Element_, int kDim_, int kKeys_, int kStages_, int kBlocks_>
struct ForwardTraits {
  using Element = Element_;
  static constexpr int kDim = kDim_, kKeys = kKeys_, kStages = kStages_, kBlocks = kBlocks_;
  static_assert(kKeys % kHalf == 0, "a self term is in a regular key tile or in a diagonal one, never in both");
  using QLayout = KMajor<Element, kHalf, kDim>;
  using KLayout = KMajor<Element, kKeys, kDim>;
  using VLayout = MNMajor<Element, kKeys, kDim>;
  using MmaScores = MmaSS<Element, kKeys, kDim>;
  using MmaOut = MmaRS<Element, kDim, kKeys>;

  struct alignas(1024) Shared {
    Element q[2][kHalf * kDim];
    Element k[kStages][kKeys * kDim];
    Element v[kStages][kKeys * kDim];
    Barrier q_full[2], q_empty, k_full[kStages], k_empty[kStages], v_full[kStages], v_empty[kStages];
    Outbox outbox[2];
    TileInfo tile;
    int head;
  };
};

// The key tiles of an item: [0, regular) below the largest visible_end, then one for each half whose self terms lie
// beyond; own(half) is where that stands in the sequence, or -1.
struct KeyTiles {
  int regular, covered;
  bool diagonal[2];
  __device__ KeyTiles(TileInfo const& tile, int keys) {
    regular = (max(tile.most[0], tile.most[1]) + keys - 1) / keys;
    covered = regular * keys;
    for (int half = 0; half < 2; ++half) {
      int const begin = tile.first + half * kHalf;
      diagonal[half] = begin < tile.length && min(begin + kHalf, tile.length) > covered;
    }
  }
  __device__ int count() const { return regular + diagonal[0] + diagonal[1]; }
  __device__ int own(int half) const { return diagonal[half] ? regular + (half == 1 && diagonal[0]) : -1; }
  __device__ int key(int i, TileInfo const& tile, int keys) const {
    return i < regular ? i * keys : tile.first + (i == own(0) ? 0 : kHalf);
  }
};

// The mask of a thread's two rows against one key tile.
struct RowMask {
  int row, end[2];
  __device__ RowMask(TileInfo const& tile, int half, int const* visible_end) {
    row = tile.first + half * kHalf + fragment_row();
    CUTE_UNROLL
    for (int j = 0; j < 2; ++j) {
      int const position = row + 8 * j;
      end[j] = position < tile.length ? __ldg(visible_end + tile.row_start + position) : 0;
    }
  }
  // Element i of a fragment whose first column is key `base`; on a diagonal tile only self terms count.
  __device__ bool keeps(int i, int base, bool diagonal) const {
    int const j = i / 2 % 2, key = base + fragment_column(i);
    return (key == row + 8 * j) | (!diagonal & (key < end[j]));
  }
};

template <class Traits>
__device__ __forceinline__ void forward_load(ForwardParams const& p, typename Traits::Shared& s) {
  constexpr int kKeys = Traits::kKeys, kStages = Traits::kStages;
  constexpr uint32_t kQBytes = sizeof(s.q[0]), kKeyBytes = sizeof(s.k[0]);
  int const num_items = p.header->num_tiles * p.num_heads;
  uint32_t count = 0, parity = 0;
  int item = blockIdx.x;
  TileInfo tile;
  if (item < num_items) tile = p.tiles[item / p.num_heads];
  while (item < num_items) {
    int const next = take(p.header->next[0], num_items) + gridDim.x;
    int const head = item % p.num_heads;
    KeyTiles const keys(tile, kKeys);
    s.q_empty.wait(parity ^ 1);
    parity ^= 1;
    s.tile = tile;
    s.head = head;
    for (int half = 0; half < 2; ++half) {
      s.q_full[half].arrive_and_expect_tx(kQBytes);
      load_rows(p.q, s.q_full[half], s.q[half], tile.row_start + tile.first + half * kHalf, head);
    }
    int const num_keys = keys.count();
    TileInfo next_tile;
    for (int i = 0; i < num_keys; ++i, ++count) {
      int const stage = count % kStages;
      uint32_t const empty = (count / kStages & 1) ^ 1;
      int const token = tile.row_start + keys.key(i, tile, kKeys);
      s.k_empty[stage].wait(empty);
      s.k_full[stage].arrive_and_expect_tx(kKeyBytes);
      load_rows(p.k, s.k_full[stage], s.k[stage], token, head);
      s.v_empty[stage].wait(empty);
      s.v_full[stage].arrive_and_expect_tx(kKeyBytes);
      load_rows(p.v, s.v_full[stage], s.v[stage], token, head);
      if (i == 0 && next < num_items) next_tile = p.tiles[next / p.num_heads];
    }
    item = next;
    tile = next_tile;
  }
  s.q_empty.wait(parity ^ 1);
  s.tile.length = -1;
  s.q_full[0].arrive();
  s.q_full[1].arrive();
}

template <class Traits>
__device__ __forceinline__ void forward_compute(ForwardParams const& p, typename Traits::Shared& s, int half) {
  using Element = typename Traits::Element;
  constexpr int kKeys = Traits::kKeys, kDim = Traits::kDim, kStages = Traits::kStages;
  typename Traits::MmaScores mma_scores;
  typename Traits::MmaOut mma_out;
  auto const thread_scores = mma_scores.get_slice(0);
  auto const thread_out = mma_out.get_slice(0);
  auto const q_smem = make_tensor(make_smem_ptr(s.q[half]), typename Traits::QLayout{});
  auto const q = thread_scores.partition_fragment_A(q_smem);
  auto k_of = [&](int stage) {
    return thread_scores.partition_fragment_B(make_tensor(make_smem_ptr(s.k[stage]), typename Traits::KLayout{}));
  };
  auto v_of = [&](int stage) {
    return thread_out.partition_fragment_B(make_tensor(make_smem_ptr(s.v[stage]), typename Traits::VLayout{}));
  };
  auto out = partition_fragment_C(mma_out, Shape<_64, Int<kDim>>{});
  auto scores = partition_fragment_C(mma_scores, Shape<_64, Int<kKeys>>{});
  auto weights = make_operand<Element, kKeys>();

  uint32_t base = 0;
  for (uint32_t parity = 0;; parity ^= 1) {
    s.q_full[half].wait(parity);
    TileInfo const tile = s.tile;
    int const head = s.head;
    if (tile.length < 0) return;
    KeyTiles const keys(tile, kKeys);
    RowMask const mask(tile, half, p.visible_end);
    int const rows = tile.length - tile.first - half * kHalf;
    int const num_keys = keys.count(), own = keys.own(half), least = tile.least[half];
    int const last = rows <= 0 ? -1 : own >= 0 ? own : keys.regular - 1;
    if (last < 0) s.q_empty.arrive();

    auto skips = [&](int i) { return rows <= 0 || (i >= keys.regular && i != own); };
    auto skip = [&](int i) {
      int const stage = (base + i) % kStages;
      uint32_t const full = (base + i) / kStages & 1;
      s.k_full[stage].wait(full);
      s.k_empty[stage].arrive();
      s.v_full[stage].wait(full);
      s.v_empty[stage].arrive();
    };
    auto activate = [&](int i) {
      if (halve(scores, p.half_alpha)) {
        CUTE_UNROLL
        for (int e = 0; e < size(scores); ++e) scores(e) = silu<true>(scores(e)).weight;
      } else {
        CUTE_UNROLL
        for (int e = 0; e < size(scores); ++e) scores(e) = silu<false>(scores(e)).weight;
      }
      bool const diagonal = i >= keys.regular;
      if (diagonal || (i + 1) * kKeys > least) {
        int const first_key = diagonal ? tile.first + half * kHalf : i * kKeys;
        CUTE_UNROLL
        for (int e = 0; e < size(scores); ++e) scores(e) = mask.keeps(e, first_key, diagonal) ? scores(e) : 0.f;
      }
    };

    clear(out);
    if constexpr (Traits::kBlocks == 2) {
      for (int i = 0; i < num_keys; ++i) {
        if (skips(i)) {
          skip(i);
          continue;
        }
        int const stage = (base + i) % kStages;
        uint32_t const full = (base + i) / kStages & 1;
        s.k_full[stage].wait(full);
        issue<true>(mma_scores, q, k_of(stage), scores);
        finish<0>(scores);
        s.k_empty[stage].arrive();
        if (i == last) s.q_empty.arrive();
        activate(i);
        to_operand<Element>(scores, weights);
        s.v_full[stage].wait(full);
        issue<false>(mma_out, weights, v_of(stage), out);
        finish<0>(out);
        s.v_empty[stage].arrive();
      }
    } else {
      int i = 0;
      while (i < num_keys && skips(i)) skip(i++);
      if (i < num_keys) {
        int stage = (base + i) % kStages;
        s.k_full[stage].wait((base + i) / kStages & 1);
        issue<true>(mma_scores, q, k_of(stage), scores);
        finish<0>(scores);
        s.k_empty[stage].arrive();
        if (i == last) s.q_empty.arrive();
        activate(i);
        to_operand<Element>(scores, weights);
        int pending = i++;
        for (; i < num_keys; ++i) {
          if (skips(i)) {
            skip(i);
            continue;
          }
          stage = (base + i) % kStages;
          int const v_stage = (base + pending) % kStages;
          s.k_full[stage].wait((base + i) / kStages & 1);
          issue<true>(mma_scores, q, k_of(stage), scores);
          s.v_full[v_stage].wait((base + pending) / kStages & 1);
          issue<false>(mma_out, weights, v_of(v_stage), out);
          finish<1>(scores);
          s.k_empty[stage].arrive();
          if (i == last) s.q_empty.arrive();
          activate(i);
          finish<0>(out);
          s.v_empty[v_stage].arrive();
          to_operand<Element>(scores, weights);
          pending = i;
        }
        stage = (base + pending) % kStages;
        s.v_full[stage].wait((base + pending) / kStages & 1);
        issue<false>(mma_out, weights, v_of(stage), out);
        finish<0>(out);
        s.v_empty[stage].arrive();
      }
    }
    base += num_keys;
    if (rows > 0) {
      int64_t const token = tile.row_start + tile.first + half * kHalf;
      Element* const to = static_cast<Element*>(p.out.data) + token * p.out.token_stride + head * p.out.head_stride;
      unsigned const bad = store_rows<Element, kDim>(out, p.inv_n, to, p.out.token_stride, rows, s.outbox[half]);
      if (bad) {
        Spoilt const spoilt{tile, head, tile.first + half * kHalf, bad, p.half_alpha, p.inv_n};
        Visible const sees{p.visible_end + tile.row_start};
        repair<Element, kDim, false>(spoilt, p.in.q, p.in.k, p.in.q, p.in.k, p.in.v, p.out, sees);
      }
    }
  }
}

template <class Traits>
__global__ void __launch_bounds__(kThreads, Traits::kBlocks) forward_kernel(__grid_constant__ ForwardParams const p) {
  extern __shared__ __align__(1024) char raw[];
  auto& s = *reinterpret_cast<typename Traits::Shared*>(raw);
  if (threadIdx.x == 0) {
    s.q_full[0].init(1);
    s.q_full[1].init(1);
    s.q_empty.init(2 * kWarpgroup);
    for (int i = 0; i < Traits::kStages; ++i) {
      s.k_full[i].init(1);
      s.v_full[i].init(1);
      s.k_empty[i].init(2 * kWarpgroup);
      s.v_empty[i].init(2 * kWarpgroup);
    }
    cutlass::arch::fence_barrier_init();
  }
  __syncthreads();
  int const group = cutlass::canonical_warp_group_idx();
  if (group == 0) {
    cutlass::arch::warpgroup_reg_dealloc<Registers<Traits::kBlocks>::kLoad>();
    if (threadIdx.x == 0) {
      wait_for_kernel_before();  // the plan
      forward_load<Traits>(p, s);
    }
  } else {
    cutlass::arch::warpgroup_reg_alloc<Registers<Traits::kBlocks>::kCompute>();
    forward_compute<Traits>(p, s, group - 1);
  }
}

}  // namespace hstu_sm90
