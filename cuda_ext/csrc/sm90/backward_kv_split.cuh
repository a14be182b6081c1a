// The backward kernel of keys for head dim 64: grad_k and grad_v of 64 key tokens of a head at a time.
//
// Persistent, as the forward. Each result takes the registers of one warpgroup, so the two share the work of a step, a
// tile of queries: one computes the scores S^T = K Q^T, from them the weights, and accumulates
// grad_v += P^T grad_out; the other computes dP^T = V grad_out^T, takes SiLU'(S^T) from the first through shared memory
// and accumulates grad_k += dS^T Q. Either's arithmetic runs while the other's products do.
#pragma once

#include "backward_kv_load.cuh"

namespace hstu_sm90 {

template <class Element_, int kDim_, int kQueries_, int kStages_, int kBlocks_>
struct BackwardKVSplitTraits {
  using Element = Element_;
  static constexpr int kDim = kDim_, kQueries = kQueries_, kStages = kStages_, kHalves = 1, kBlocks = kBlocks_;
  using KLayout = KMajor<Element, kHalf, kDim>;
  using QLayout = KMajor<Element, kQueries, kDim>;
  using QtLayout = MNMajor<Element, kQueries, kDim>;
  using MmaScores = MmaSS<Element, kQueries, kDim>;
  using MmaGrad = MmaRS<Element, kDim, kQueries>;
  static constexpr int kExchange = kQueries / 8;  // 16-byte words a thread passes on, four pairs each, over 2

  struct alignas(1024) Shared {
    Element k[kHalves][kHalf * kDim];
    Element v[kHalves][kHalf * kDim];
    Element q[kStages][kQueries * kDim];
    Element grad_out[kStages][kQueries * kDim];
    uint4 slope[2][kExchange / 2][kWarpgroup];  // SiLU'(S^T) in pairs, each thread's own
    Barrier k_full, k_empty, v_full, v_empty, full[kStages], empty[kStages], slope_full[2], slope_empty[2];
    int query[kStages];  // first query of the stage's tile, its lowest bit set if the mask must be read
    Outbox outbox[2];
    TileInfo tile;
    int key, head, count;
  };
};

// Scores, weights and grad_v.
template <class Traits>
__device__ __forceinline__ void backward_kv_split_values(BackwardKVParams const& p, typename Traits::Shared& s) {
  using Element = typename Traits::Element;
  constexpr int kQueries = Traits::kQueries, kDim = Traits::kDim, kStages = Traits::kStages;
  typename Traits::MmaScores mma_scores;
  typename Traits::MmaGrad mma_grad;
  auto const thread_scores = mma_scores.get_slice(0);
  auto const thread_grad = mma_grad.get_slice(0);
  auto const k = thread_scores.partition_fragment_A(make_tensor(make_smem_ptr(s.k[0]), typename Traits::KLayout{}));
  auto grad_v = partition_fragment_C(mma_grad, Shape<_64, Int<kDim>>{});
  auto scores = partition_fragment_C(mma_scores, Shape<_64, Int<kQueries>>{});
  auto weights = make_operand<Element, kQueries>();
  auto weight_words = recast<uint32_t>(weights);
  int const thread = threadIdx.x % kWarpgroup;

  uint32_t step = 0;
  for (uint32_t parity = 0;; parity ^= 1) {
    s.k_full.wait(parity);
    int const count = s.count, head = s.head, key = s.key;
    TileInfo const tile = s.tile;
    if (count < 0) return;
    int const row = key + fragment_row();
    clear(grad_v);
    for (int i = 0; i < count; ++i, ++step) {
      int const stage = step % kStages, buffer = step % 2;
      s.full[stage].wait(step / kStages & 1);
      int const query = s.query[stage];
      issue<true>(
          mma_scores, k,
          thread_scores.partition_fragment_B(make_tensor(make_smem_ptr(s.q[stage]), typename Traits::QLayout{})),
          scores);
      finish<0>(scores);
      if (i == count - 1) s.k_empty.arrive();
      s.slope_empty[buffer].wait((step / 2 & 1) ^ 1);
      uint32_t slope[2 * Traits::kExchange];
      auto activate = [&](auto exact) {
        CUTE_UNROLL
        for (int e = 0; e < size(scores); e += 2) {
          Silu const low = silu<decltype(exact)::value>(scores(e));
          Silu const high = silu<decltype(exact)::value>(scores(e + 1));
          weight_words(e / 2) = pack<Element>(low.weight, high.weight);
          slope[e / 2] = pack<Element>(low.twice_slope, high.twice_slope);
        }
      };
      if (halve(scores, p.half_alpha)) {
        activate(true_type{});
      } else {
        activate(false_type{});
      }
      if (query & 1) {
        CUTE_UNROLL
        for (int e = 0; e < size(scores); e += 4) {  // two neighbouring queries of two keys
          KeepPairs const keep(p, tile, row, query & ~1, e);
          CUTE_UNROLL
          for (int j = 0; j < 2; ++j) {
            weight_words(e / 2 + j) &= keep.bits(j);
            slope[e / 2 + j] &= keep.bits(j);
          }
        }
      }
      CUTE_UNROLL
      for (int w = 0; w < Traits::kExchange / 2; ++w) {
        s.slope[buffer][w][thread] = make_uint4(slope[4 * w], slope[4 * w + 1], slope[4 * w + 2], slope[4 * w + 3]);
      }
      s.slope_full[buffer].arrive();
      issue<false>(
          mma_grad, weights,
          thread_grad.partition_fragment_B(make_tensor(make_smem_ptr(s.grad_out[stage]), typename Traits::QtLayout{})),
          grad_v);
      finish<0>(grad_v);
      s.empty[stage].arrive();
    }
    Element* const to = static_cast<Element*>(p.grad_v.data) + int64_t(tile.row_start + key) * p.grad_v.token_stride +
                        head * p.grad_v.head_stride;
    unsigned const bad =
        store_rows<Element, kDim>(grad_v, p.inv_n, to, p.grad_v.token_stride, tile.length - key, s.outbox[0]);
    if (bad) repair_values<Element, kDim>(p, tile, head, key, bad);
  }
}

// The derivative of the scores, and grad_k.
template <class Traits>
__device__ __forceinline__ void backward_kv_split_keys(BackwardKVParams const& p, typename Traits::Shared& s) {
  using Element = typename Traits::Element;
  constexpr int kQueries = Traits::kQueries, kDim = Traits::kDim, kStages = Traits::kStages;
  typename Traits::MmaScores mma_scores;
  typename Traits::MmaGrad mma_grad;
  auto const thread_scores = mma_scores.get_slice(0);
  auto const thread_grad = mma_grad.get_slice(0);
  auto const v = thread_scores.partition_fragment_A(make_tensor(make_smem_ptr(s.v[0]), typename Traits::KLayout{}));
  auto grad_k = partition_fragment_C(mma_grad, Shape<_64, Int<kDim>>{});
  auto grad_weights = partition_fragment_C(mma_scores, Shape<_64, Int<kQueries>>{});
  auto grad_scores = make_operand<Element, kQueries>();
  int const thread = threadIdx.x % kWarpgroup;

  uint32_t step = 0;
  for (uint32_t parity = 0;; parity ^= 1) {
    s.v_full.wait(parity);
    int const count = s.count, head = s.head, key = s.key;
    TileInfo const tile = s.tile;
    if (count < 0) return;
    clear(grad_k);
    for (int i = 0; i < count; ++i, ++step) {
      int const stage = step % kStages, buffer = step % 2;
      s.full[stage].wait(step / kStages & 1);
      issue<true>(
          mma_scores, v,
          thread_scores.partition_fragment_B(make_tensor(make_smem_ptr(s.grad_out[stage]), typename Traits::QLayout{})),
          grad_weights);
      s.slope_full[buffer].wait(step / 2 & 1);
      finish<0>(grad_weights);
      if (i == count - 1) s.v_empty.arrive();
      CUTE_UNROLL
      for (int w = 0; w < Traits::kExchange / 2; ++w) {
        uint4 const got = s.slope[buffer][w][thread];
        uint32_t const words[4] = {got.x, got.y, got.z, got.w};
        CUTE_UNROLL
        for (int c = 0; c < 4; ++c) {
          float2 const slope = unpack<Element>(words[c]);
          grad_weights(8 * w + 2 * c) *= slope.x;
          grad_weights(8 * w + 2 * c + 1) *= slope.y;
        }
      }
      s.slope_empty[buffer].arrive();
      to_operand<Element>(grad_weights, grad_scores);
      issue<false>(
          mma_grad, grad_scores,
          thread_grad.partition_fragment_B(make_tensor(make_smem_ptr(s.q[stage]), typename Traits::QtLayout{})),
          grad_k);
      finish<0>(grad_k);
      s.empty[stage].arrive();
    }
    Element* const to = static_cast<Element*>(p.grad_k.data) + int64_t(tile.row_start + key) * p.grad_k.token_stride +
                        head * p.grad_k.head_stride;
    unsigned const bad =
        store_rows<Element, kDim>(grad_k, p.scale_k, to, p.grad_k.token_stride, tile.length - key, s.outbox[1]);
    if (bad) repair_keys<Element, kDim>(p, tile, head, key, bad);
  }
}

template <class Traits>
__global__ void __launch_bounds__(kThreads, Traits::kBlocks)
    backward_kv_split_kernel(__grid_constant__ BackwardKVParams const p) {
  extern __shared__ __align__(1024) char raw[];
  auto& s = *reinterpret_cast<typename Traits::Shared*>(raw);
  if (threadIdx.x == 0) {
    s.k_full.init(1);
    s.v_full.init(1);
    s.k_empty.init(kWarpgroup);
    s.v_empty.init(kWarpgroup);
    for (int i = 0; i < Traits::kStages; ++i) {
      s.full[i].init(1);
      s.empty[i].init(2 * kWarpgroup);
    }
    for (int i = 0; i < 2; ++i) {
      s.slope_full[i].init(kWarpgroup);
      s.slope_empty[i].init(kWarpgroup);
    }
    cutlass::arch::fence_barrier_init();
  }
  __syncthreads();
  int const group = cutlass::canonical_warp_group_idx();
  if (group == 0) {
    cutlass::arch::warpgroup_reg_dealloc<Registers<Traits::kBlocks>::kLoad>();
    if (threadIdx.x < 32) {
      let_next_kernel_start();
      backward_kv_load<Traits>(p, s);
      wait_for_kernel_before();  // that of queries, which it does not read, but whose results are due when this one
                                 // ends
    }
  } else {
    cutlass::arch::warpgroup_reg_alloc<Registers<Traits::kBlocks>::kCompute>();
    if (group == 1) {
      backward_kv_split_values<Traits>(p, s);
    } else {
      backward_kv_split_keys<Traits>(p, s);
    }
  }
}

}  // namespace hstu_sm90
