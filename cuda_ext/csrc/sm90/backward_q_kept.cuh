// The backward kernel of queries where the kernel of keys kept the gradients of the scores: grad_q = dS K, one product
// a tile of keys instead of three.
//
// Persistent, as the forward, with its items, from the first row on whose score gradients are kept. A stage is a tile
// of 64 keys and its block of score gradients for each half of the queries; each warpgroup owns a half.
#pragma once

#include "backward_q.cuh"

namespace hstu_sm90 {

template <class Element_, int kDim_, int kStages_>
struct BackwardQKeptTraits {
  using Element = Element_;
  static constexpr int kDim = kDim_, kKeys = kHalf, kStages = kStages_;
  using ScoresLayout = decltype(tile_to_shape(GMMA::Layout_MN_SW128_Atom<Element>{}, Shape<_64, _64>{}));
  using KtLayout = MNMajor<Element, kKeys, kDim>;
  using MmaGrad =
      decltype(make_tiled_mma(GMMA::ss_op_selector<Element, Element, float, Shape<_64, Int<kDim>, Int<kKeys>>,
                                                   GMMA::Major::MN, GMMA::Major::MN>()));

  struct alignas(1024) Shared {
    Element k[kStages][kKeys * kDim];
    Element grad_scores[kStages][2][kBlock];  // of the two halves, keys x queries
    Barrier full[kStages], empty[kStages], item_full[2], item_empty[2];
    Outbox outbox[2];
    TileInfo tile[2];
    int head[2];
  };
};

template <class Traits>
__device__ __forceinline__ void backward_q_kept_load(BackwardQParams const& p, typename Traits::Shared& s) {
  using Element = typename Traits::Element;
  constexpr int kStages = Traits::kStages;
  constexpr uint32_t kBlockBytes = sizeof(s.grad_scores[0]), kStageBytes = sizeof(s.k[0]) + kBlockBytes;
  int const first = first_kept(p.tiles, p.header->num_tiles);
  int const num_items = (p.header->num_tiles - first) * p.num_heads;
  uint32_t count = 0, turn = 0;
  for (int item = blockIdx.x; item < num_items; ++turn) {
    int const next = take(p.header->next[3], num_items) + gridDim.x;
    TileInfo const tile = p.tiles[first + item / p.num_heads];
    int const head = item % p.num_heads, halves = (tile.length + kHalf - 1) / kHalf;
    KeyTiles const keys(tile, Traits::kKeys);
    s.item_empty[turn % 2].wait((turn / 2 & 1) ^ 1);
    s.tile[turn % 2] = tile;
    s.head[turn % 2] = head;
    s.item_full[turn % 2].arrive();
    int64_t const block = head * p.blocks_a_head + tile.block + tile.first / kHalf;
    int const num_keys = keys.count();
    for (int i = 0; i < num_keys; ++i, ++count) {
      int const stage = count % kStages, key = keys.key(i, tile, Traits::kKeys);
      s.empty[stage].wait((count / kStages & 1) ^ 1);
      s.full[stage].arrive_and_expect_tx(kStageBytes);
      load_rows(p.k, s.full[stage], s.k[stage], tile.row_start + key, head);
      SM90_BULK_COPY_G2S::copy(
          static_cast<Element const*>(p.grad_scores) + (block + int64_t(key / kHalf) * halves) * kBlock,
          reinterpret_cast<uint64_t*>(&s.full[stage]), s.grad_scores[stage], kBlockBytes);
    }
    item = next;
  }
  s.item_empty[turn % 2].wait((turn / 2 & 1) ^ 1);
  s.tile[turn % 2].length = -1;
  s.item_full[turn % 2].arrive();
}

template <class Traits>
__device__ __forceinline__ void backward_q_kept_compute(BackwardQParams const& p, typename Traits::Shared& s,
                                                        int half) {
  using Element = typename Traits::Element;
  constexpr int kDim = Traits::kDim, kStages = Traits::kStages;
  typename Traits::MmaGrad mma_grad;
  auto const thread_grad = mma_grad.get_slice(0);
  auto grad_q = partition_fragment_C(mma_grad, Shape<_64, Int<kDim>>{});

  uint32_t count = 0;
  for (uint32_t turn = 0;; ++turn) {
    s.item_full[turn % 2].wait(turn / 2 & 1);
    TileInfo const tile = s.tile[turn % 2];
    int const head = s.head[turn % 2];
    s.item_empty[turn % 2].arrive();
    if (tile.length < 0) return;
    KeyTiles const keys(tile, Traits::kKeys);
    int const begin = tile.first + half * kHalf, rows = tile.length - begin;
    clear(grad_q);
    for (int i = 0, num_keys = keys.count(); i < num_keys; ++i, ++count) {
      int const stage = count % kStages, key = keys.key(i, tile, Traits::kKeys);
      s.full[stage].wait(count / kStages & 1);
      if (rows > 0 && (key < tile.most[half] || key == begin)) {  // else its block was not written
        auto const a = make_tensor(make_smem_ptr(s.grad_scores[stage][half]), typename Traits::ScoresLayout{});
        auto const b = make_tensor(make_smem_ptr(s.k[stage]), typename Traits::KtLayout{});
        issue<false>(mma_grad, thread_grad.partition_fragment_A(a), thread_grad.partition_fragment_B(b), grad_q);
        finish<0>(grad_q);
      }
      s.empty[stage].arrive();
    }
    if (rows > 0) {
      int64_t const token = tile.row_start + begin;
      Element* const to =
          static_cast<Element*>(p.grad_q.data) + token * p.grad_q.token_stride + head * p.grad_q.head_stride;
      unsigned const bad = store_rows<Element, kDim>(grad_q, p.scale, to, p.grad_q.token_stride, rows, s.outbox[half]);
      if (bad) {
        Spoilt const spoilt{tile, head, begin, bad, p.half_alpha, p.scale};
        Visible const sees{p.visible_end + tile.row_start};
        repair<Element, kDim, true>(spoilt, p.in.q, p.in.k, p.in.grad_out, p.in.v, p.in.k, p.grad_q, sees);
      }
    }
  }
}

template <class Traits>
__global__ void __launch_bounds__(kThreads, 1) backward_q_kept_kernel(__grid_constant__ BackwardQParams const p) {
  extern __shared__ __align__(1024) char raw[];
  auto& s = *reinterpret_cast<typename Traits::Shared*>(raw);
  if (threadIdx.x == 0) {
    for (int i = 0; i < Traits::kStages; ++i) {
      s.full[i].init(1);
      s.empty[i].init(2 * kWarpgroup);
    }
    for (int i = 0; i < 2; ++i) {
      s.item_full[i].init(1);
      s.item_empty[i].init(2 * kWarpgroup);
    }
    cutlass::arch::fence_barrier_init();
  }
  __syncthreads();
  int const group = cutlass::canonical_warp_group_idx();
  if (group == 0) {
    cutlass::arch::warpgroup_reg_dealloc<40>();
    if (threadIdx.x == 0) {
      wait_for_kernel_before();  // that of keys, whose score gradients it reads
      backward_q_kept_load<Traits>(p, s);
    }
  } else {
    cutlass::arch::warpgroup_reg_alloc<232>();
    backward_q_kept_compute<Traits>(p, s, group - 1);
  }
}

}  // namespace hstu_sm90
