// The backward kernel of queries: grad_q of one tile of 128 query tokens of a head at a time.
//
// The forward's items with three products a key tile: S = Q K^T, dP = grad_out V^T, grad_q += dS K. Each warpgroup does
// them in turn; the other's fill the gaps. The kernel of keys starts while its last CTAs still run. Nothing is
// accumulated across CTAs, so the result is the same every time.
#pragma once

#include "forward.cuh"

namespace hstu_sm90 {

struct BackwardQParams {
  CUtensorMap q, k, v, grad_out;
  WorkHeader* header;
  TileInfo const* tiles;
  int const* visible_end;
  Inputs in;
  Matrix grad_q;
  void const* grad_scores;
  int64_t blocks_a_head;
  int num_heads;
  float half_alpha;
  float scale;  // alpha * inv_n / 2: the derivative kept is doubled
};

template <class Element_, int kDim_, int kKeys_, int kKStages_, int kVStages_>
struct BackwardQTraits {
  using Element = Element_;
  static constexpr int kDim = kDim_, kKeys = kKeys_, kKStages = kKStages_, kVStages = kVStages_;
  static_assert(kKeys % kHalf == 0, "a self term is in a regular key tile or in a diagonal one, never in both");
  static constexpr bool kOwnOutbox = kDim < 256;  // else results go out through grad_out's memory
  using QLayout = KMajor<Element, kHalf, kDim>;
  using KLayout = KMajor<Element, kKeys, kDim>;
  using KtLayout = MNMajor<Element, kKeys, kDim>;
  using MmaScores = MmaSS<Element, kKeys, kDim>;
  using MmaGrad = MmaRS<Element, kDim, kKeys>;

  struct alignas(1024) Shared {
    Element q[2][kHalf * kDim];
    Element grad_out[2][kHalf * kDim];
    Element k[kKStages][kKeys * kDim];
    Element v[kVStages][kKeys * kDim];
    Barrier q_full[2], q_empty, k_full[kKStages], k_empty[kKStages], v_full[kVStages], v_empty[kVStages];
    std::conditional_t<kOwnOutbox, Outbox, char> outbox[2];
    TileInfo tile;
    int head;
  };
  static_assert(sizeof(Shared) <= 227 * 1024);
};

// The first tile of the first row whose score gradients are kept; those of all rows behind it are.
__device__ __forceinline__ int first_kept(TileInfo const* tiles, int num_tiles) {
  int low = 0, high = num_tiles;
  while (low < high) {
    int const middle = low == 0 ? 0 : (low + high) / 2;  // most often all are kept
    if (tiles[middle].block >= 0) {
      high = middle;
    } else {
      low = middle + 1;
    }
  }
  return low;
}

template <class Traits>
__device__ __forceinline__ void backward_q_load(BackwardQParams const& p, typename Traits::Shared& s) {
  constexpr int kKeys = Traits::kKeys, kKStages = Traits::kKStages, kVStages = Traits::kVStages;
  constexpr uint32_t kQBytes = 2 * sizeof(s.q[0]), kKeyBytes = sizeof(s.k[0]);
  int const num_tiles = p.grad_scores ? first_kept(p.tiles, p.header->num_tiles) : p.header->num_tiles;
  int const num_items = num_tiles * p.num_heads;
  uint32_t count = 0, parity = 0;
  int item = blockIdx.x;
  TileInfo tile;
  if (item < num_items) tile = p.tiles[item / p.num_heads];
  while (item < num_items) {
    int const next = take(p.header->next[2], num_items) + gridDim.x;
    int const head = item % p.num_heads;
    KeyTiles const keys(tile, kKeys);
    s.q_empty.wait(parity ^ 1);
    parity ^= 1;
    s.tile = tile;
    s.head = head;
    for (int half = 0; half < 2; ++half) {
      int const token = tile.row_start + tile.first + half * kHalf;
      s.q_full[half].arrive_and_expect_tx(kQBytes);
      load_rows(p.q, s.q_full[half], s.q[half], token, head);
      load_rows(p.grad_out, s.q_full[half], s.grad_out[half], token, head);
    }
    int const num_keys = keys.count();
    TileInfo next_tile;
    for (int i = 0; i < num_keys; ++i, ++count) {
      int const k_stage = count % kKStages, v_stage = count % kVStages;
      int const token = tile.row_start + keys.key(i, tile, kKeys);
      s.k_empty[k_stage].wait((count / kKStages & 1) ^ 1);
      s.k_full[k_stage].arrive_and_expect_tx(kKeyBytes);
      load_rows(p.k, s.k_full[k_stage], s.k[k_stage], token, head);
      s.v_empty[v_stage].wait((count / kVStages & 1) ^ 1);
      s.v_full[v_stage].arrive_and_expect_tx(kKeyBytes);
      load_rows(p.v, s.v_full[v_stage], s.v[v_stage], token, head);
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
__device__ __forceinline__ void backward_q_compute(BackwardQParams const& p, typename Traits::Shared& s, int half) {
  using Element = typename Traits::Element;
  constexpr int kKeys = Traits::kKeys, kDim = Traits::kDim;
  constexpr int kKStages = Traits::kKStages, kVStages = Traits::kVStages;
  typename Traits::MmaScores mma_scores;
  typename Traits::MmaGrad mma_grad;
  auto const thread_scores = mma_scores.get_slice(0);
  auto const thread_grad = mma_grad.get_slice(0);
  typename Traits::QLayout const q_layout;
  auto const q = thread_scores.partition_fragment_A(make_tensor(make_smem_ptr(s.q[half]), q_layout));
  auto const grad_out = thread_scores.partition_fragment_A(make_tensor(make_smem_ptr(s.grad_out[half]), q_layout));
  auto rows_of = [&](Element* keys) {
    return thread_scores.partition_fragment_B(make_tensor(make_smem_ptr(keys), typename Traits::KLayout{}));
  };
  auto columns_of = [&](Element* keys) {
    return thread_grad.partition_fragment_B(make_tensor(make_smem_ptr(keys), typename Traits::KtLayout{}));
  };
  auto grad_q = partition_fragment_C(mma_grad, Shape<_64, Int<kDim>>{});
  auto scores = partition_fragment_C(mma_scores, Shape<_64, Int<kKeys>>{});
  auto grad_weights = partition_fragment_C(mma_scores, Shape<_64, Int<kKeys>>{});
  auto grad_scores = make_operand<Element, kKeys>();

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
      uint32_t const c = base + i;
      s.k_full[c % kKStages].wait(c / kKStages & 1);
      s.k_empty[c % kKStages].arrive();
      s.v_full[c % kVStages].wait(c / kVStages & 1);
      s.v_empty[c % kVStages].arrive();
    };
    auto slope = [&](int i) {  // scores become twice SiLU' of them, 0 where masked
      if (halve(scores, p.half_alpha)) {
        CUTE_UNROLL
        for (int e = 0; e < size(scores); ++e) scores(e) = silu<true>(scores(e)).twice_slope;
      } else {
        CUTE_UNROLL
        for (int e = 0; e < size(scores); ++e) scores(e) = silu<false>(scores(e)).twice_slope;
      }
      bool const diagonal = i >= keys.regular;
      if (diagonal || (i + 1) * kKeys > least) {
        int const first_key = diagonal ? tile.first + half * kHalf : i * kKeys;
        CUTE_UNROLL
        for (int e = 0; e < size(scores); ++e) scores(e) = mask.keeps(e, first_key, diagonal) ? scores(e) : 0.f;
      }
    };
    clear(grad_q);
    for (int i = 0; i < num_keys; ++i) {
      if (skips(i)) {
        skip(i);
        continue;
      }
      int const k_stage = (base + i) % kKStages, v_stage = (base + i) % kVStages;
      s.k_full[k_stage].wait((base + i) / kKStages & 1);
      issue<true>(mma_scores, q, rows_of(s.k[k_stage]), scores);
      s.v_full[v_stage].wait((base + i) / kVStages & 1);
      issue<true>(mma_scores, grad_out, rows_of(s.v[v_stage]), grad_weights);
      finish<1>(scores);
      slope(i);
      finish<0>(grad_weights);
      s.v_empty[v_stage].arrive();
      if (Traits::kOwnOutbox && i == last) s.q_empty.arrive();
      CUTE_UNROLL
      for (int e = 0; e < size(scores); ++e) grad_weights(e) *= scores(e);
      to_operand<Element>(grad_weights, grad_scores);
      issue<false>(mma_grad, grad_scores, columns_of(s.k[k_stage]), grad_q);
      finish<0>(grad_q);
      s.k_empty[k_stage].arrive();
    }
    base += num_keys;
    if (rows > 0) {
      int64_t const token = tile.row_start + tile.first + half * kHalf;
      Element* const to =
          static_cast<Element*>(p.grad_q.data) + token * p.grad_q.token_stride + head * p.grad_q.head_stride;
      Outbox* const box =
          Traits::kOwnOutbox ? reinterpret_cast<Outbox*>(s.outbox) + half : reinterpret_cast<Outbox*>(s.grad_out[half]);
      unsigned const bad = store_rows<Element, kDim>(grad_q, p.scale, to, p.grad_q.token_stride, rows, *box);
      if constexpr (!Traits::kOwnOutbox) {
        cutlass::arch::fence_view_async_shared();  // what is loaded next comes after what was written here
        s.q_empty.arrive();
      }
      if (bad) {
        Spoilt const spoilt{tile, head, tile.first + half * kHalf, bad, p.half_alpha, p.scale};
        Visible const sees{p.visible_end + tile.row_start};
        repair<Element, kDim, true>(spoilt, p.in.q, p.in.k, p.in.grad_out, p.in.v, p.in.k, p.grad_q, sees);
      }
    }
  }
}

template <class Traits>
__global__ void __launch_bounds__(kThreads, 1) backward_q_kernel(__grid_constant__ BackwardQParams const p) {
  extern __shared__ __align__(1024) char raw[];
  auto& s = *reinterpret_cast<typename Traits::Shared*>(raw);
  if (threadIdx.x == 0) {
    s.q_full[0].init(1);
    s.q_full[1].init(1);
    s.q_empty.init(2 * kWarpgroup);
    for (int i = 0; i < Traits::kKStages; ++i) {
      s.k_full[i].init(1);
      s.k_empty[i].init(2 * kWarpgroup);
    }
    for (int i = 0; i < Traits::kVStages; ++i) {
      s.v_full[i].init(1);
      s.v_empty[i].init(2 * kWarpgroup);
    }
    cutlass::arch::fence_barrier_init();
  }
  __syncthreads();
  int const group = cutlass::canonical_warp_group_idx();
  if (group == 0) {
    cutlass::arch::warpgroup_reg_dealloc<40>();
    if (threadIdx.x == 0) {
      wait_for_kernel_before();  // the plan
      let_next_kernel_start();   // the kernel of keys fills the multiprocessors this one leaves
      backward_q_load<Traits>(p, s);
    }
  } else {
    cutlass::arch::warpgroup_reg_alloc<232>();
    backward_q_compute<Traits>(p, s, group - 1);
  }
}

}  // namespace hstu_sm90
