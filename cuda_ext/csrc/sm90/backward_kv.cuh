// The backward kernel of keys for head dim 128: grad_k and grad_v of 128 key tokens of a head at a time.
//
// Persistent, as the forward. Each of the two warpgroups owns 64 keys and keeps both their results in registers; a step
// is a tile of queries: S^T = K Q^T, dP^T = V grad_out^T, grad_v += P^T grad_out, grad_k += dS^T Q. A warpgroup's
// arithmetic runs while the other's products do.
#pragma once

#include "backward_kv_load.cuh"

namespace hstu_sm90 {

template <class Element_, int kDim_, int kQueries_, int kStages_>
struct BackwardKVTraits {
  using Element = Element_;
  static constexpr int kDim = kDim_, kQueries = kQueries_, kStages = kStages_, kHalves = 2, kBlocks = 1;
  using KLayout = KMajor<Element, kHalf, kDim>;
  using QLayout = KMajor<Element, kQueries, kDim>;
  using QtLayout = MNMajor<Element, kQueries, kDim>;
  using MmaScores = MmaSS<Element, kQueries, kDim>;
  using MmaGrad = MmaRS<Element, kDim, kQueries>;

  struct alignas(1024) Shared {
    Element k[kHalves][kHalf * kDim];
    Element v[kHalves][kHalf * kDim];
    Element q[kStages][kQueries * kDim];
    Element grad_out[kStages][kQueries * kDim];
    Barrier k_full, k_empty, v_full, v_empty, full[kStages], empty[kStages];
    int query[kStages];  // first query of the stage's tile, its lowest bit set if the mask must be read
    Outbox outbox[2];
    TileInfo tile;
    int key, head, count;
  };
};

template <class Traits>
__device__ __forceinline__ void backward_kv_compute(BackwardKVParams const& p, typename Traits::Shared& s, int half) {
  using Element = typename Traits::Element;
  constexpr int kQueries = Traits::kQueries, kDim = Traits::kDim, kStages = Traits::kStages;
  typename Traits::MmaScores mma_scores;
  typename Traits::MmaGrad mma_grad;
  auto const thread_scores = mma_scores.get_slice(0);
  auto const thread_grad = mma_grad.get_slice(0);
  typename Traits::KLayout const k_layout;
  auto const k = thread_scores.partition_fragment_A(make_tensor(make_smem_ptr(s.k[half]), k_layout));
  auto const v = thread_scores.partition_fragment_A(make_tensor(make_smem_ptr(s.v[half]), k_layout));
  auto rows_of = [&](Element* queries) {
    return thread_scores.partition_fragment_B(make_tensor(make_smem_ptr(queries), typename Traits::QLayout{}));
  };
  auto columns_of = [&](Element* queries) {
    return thread_grad.partition_fragment_B(make_tensor(make_smem_ptr(queries), typename Traits::QtLayout{}));
  };
  auto grad_k = partition_fragment_C(mma_grad, Shape<_64, Int<kDim>>{});
  auto grad_v = partition_fragment_C(mma_grad, Shape<_64, Int<kDim>>{});
  auto scores = partition_fragment_C(mma_scores, Shape<_64, Int<kQueries>>{});
  auto grad_weights = partition_fragment_C(mma_scores, Shape<_64, Int<kQueries>>{});
  auto weights = make_operand<Element, kQueries>();
  auto grad_scores = make_operand<Element, kQueries>();
  auto weight_words = recast<uint32_t>(weights);

  uint32_t step = 0;
  for (uint32_t parity = 0;; parity ^= 1) {
    s.k_full.wait(parity);
    s.v_full.wait(parity);
    int const count = s.count, head = s.head, key = s.key + half * kHalf;
    TileInfo const tile = s.tile;
    if (count < 0) return;
    int const row = key + fragment_row();
    if (key >= tile.length) {
      s.k_empty.arrive();
      s.v_empty.arrive();
      for (int i = 0; i < count; ++i, ++step) {
        s.full[step % kStages].wait(step / kStages & 1);
        s.empty[step % kStages].arrive();
      }
      continue;
    }
    clear(grad_k);
    clear(grad_v);
    for (int i = 0; i < count; ++i, ++step) {
      int const stage = step % kStages;
      s.full[stage].wait(step / kStages & 1);
      int const query = s.query[stage];
      issue<true>(mma_scores, k, rows_of(s.q[stage]), scores);
      issue<true>(mma_scores, v, rows_of(s.grad_out[stage]), grad_weights);
      finish<1>(scores);
      auto activate = [&](auto exact) {  // scores become twice SiLU' of them
        CUTE_UNROLL
        for (int e = 0; e < size(scores); e += 2) {
          Silu const low = silu<decltype(exact)::value>(scores(e));
          Silu const high = silu<decltype(exact)::value>(scores(e + 1));
          weight_words(e / 2) = pack<Element>(low.weight, high.weight);
          scores(e) = low.twice_slope;
          scores(e + 1) = high.twice_slope;
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
          for (int c = 0; c < 4; ++c) scores(e + c) = keep.pair[c] ? scores(e + c) : 0.f;
          weight_words(e / 2) &= keep.bits(0);
          weight_words(e / 2 + 1) &= keep.bits(1);
        }
      }
      issue<false>(mma_grad, weights, columns_of(s.grad_out[stage]), grad_v);
      finish<1>(grad_weights);
      if (i == count - 1) {
        s.k_empty.arrive();
        s.v_empty.arrive();
      }
      CUTE_UNROLL
      for (int e = 0; e < size(scores); ++e) grad_weights(e) *= scores(e);
      finish<0>(grad_v);
      to_operand<Element>(grad_weights, grad_scores);
      issue<false>(mma_grad, grad_scores, columns_of(s.q[stage]), grad_k);
      finish<0>(grad_k);
      s.empty[stage].arrive();
    }
    int64_t const token = tile.row_start + key;
    Element* const to_k =
        static_cast<Element*>(p.grad_k.data) + token * p.grad_k.token_stride + head * p.grad_k.head_stride;
    Element* const to_v =
        static_cast<Element*>(p.grad_v.data) + token * p.grad_v.token_stride + head * p.grad_v.head_stride;
    int const rows = tile.length - key;
    unsigned const bad_v =
        store_rows<Element, kDim>(grad_v, p.inv_n, to_v, p.grad_v.token_stride, rows, s.outbox[half]);
    unsigned const bad_k =
        store_rows<Element, kDim>(grad_k, p.scale_k, to_k, p.grad_k.token_stride, rows, s.outbox[half]);
    if (bad_v) repair_values<Element, kDim>(p, tile, head, key, bad_v);
    if (bad_k) repair_keys<Element, kDim>(p, tile, head, key, bad_k);
  }
}

template <class Traits>
__global__ void __launch_bounds__(kThreads, 1) backward_kv_kernel(__grid_constant__ BackwardKVParams const p) {
  extern __shared__ __align__(1024) char raw[];
  auto& s = *reinterpret_cast<typename Traits::Shared*>(raw);
  if (threadIdx.x == 0) {
    s.k_full.init(1);
    s.v_full.init(1);
    s.k_empty.init(2 * kWarpgroup);
    s.v_empty.init(2 * kWarpgroup);
    for (int i = 0; i < Traits::kStages; ++i) {
      s.full[i].init(1);
      s.empty[i].init(2 * kWarpgroup);
    }
    cutlass::arch::fence_barrier_init();
  }
  __syncthreads();
  int const group = cutlass::canonical_warp_group_idx();
  if (group == 0) {
    cutlass::arch::warpgroup_reg_dealloc<24>();
    if (threadIdx.x < 32) {
      let_next_kernel_start();
      backward_kv_load<Traits>(p, s);
      wait_for_kernel_before();  // that of queries, which it does not read, but whose results are due when this one
                                 // ends
    }
  } else {
    cutlass::arch::warpgroup_reg_alloc<240>();
    backward_kv_compute<Traits>(p, s, group - 1);
  }
}

}  // namespace hstu_sm90
