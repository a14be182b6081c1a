// The backward kernel of keys for head dim 256: grad_k and grad_v of 64 key tokens of a head at a time.
//
// Persistent, as the forward. A step is a tile of 64 queries, and three warpgroups share its work, so that the products
// of one run beside the arithmetic of another:
//
//   scores   S^T = K Q^T, from it the weights P^T and their slopes, which go to values through shared memory
//   values   dP^T = V grad_out^T, times the slopes: dS^T, to keys; grad_v += P^T grad_out, in its registers
//   keys     grad_k += dS^T Q, in its registers; and dS^T goes to memory for the kernel of queries
#pragma once

#include "backward_kv_load.cuh"

namespace hstu_sm90 {

template <class Element_, int kDim_>
struct BackwardKVTrioTraits {
  using Element = Element_;
  static constexpr int kDim = kDim_, kQueries = kHalf, kStages = 2, kHalves = 1, kBlocks = 1;
  static constexpr int kThreads = 4 * kWarpgroup;
  using KLayout = KMajor<Element, kHalf, kDim>;
  using QtLayout = MNMajor<Element, kQueries, kDim>;
  using BlockLayout = KMajor<Element, kHalf, kQueries>;
  using MmaScores = MmaSS<Element, kQueries, kDim>;
  // In halves of the head dim: of 512 threads none may name more than 128 registers in one instruction.
  using MmaGrad =
      decltype(make_tiled_mma(GMMA::ss_op_selector<Element, Element, float, Shape<_64, Int<kDim / 2>, Int<kQueries>>,
                                                   GMMA::Major::K, GMMA::Major::MN>()));

  struct Item {
    TileInfo tile;
    int key, head, count;
  };
  struct alignas(1024) Shared {
    Element k[kHalf * kDim];
    Element v[kHalf * kDim];
    Element q[kStages][kQueries * kDim];
    Element grad_out[kStages][kQueries * kDim];
    Element weights[kBlock];                 // P^T; at the end of an item, grad_v goes out through it
    Element grad_scores[kBlock];             // dS^T; likewise grad_k
    uint4 slope[kQueries / 16][kWarpgroup];  // in pairs, each thread's own
    Barrier k_full, k_empty, v_full, v_empty, q_full[kStages], q_empty[kStages], grad_full[kStages],
        grad_empty[kStages];
    Barrier item_full[2], item_empty[2], weights_full, weights_empty, scores_full, scores_empty;
    int query[kStages];  // first query of the stage's tile, its lowest bit set if the mask must be read
    Item item[2];
  };
  static_assert(sizeof(Shared) <= 227 * 1024);
};

template <class Traits>
__device__ __forceinline__ void backward_kv_trio_load(BackwardKVParams const& p, typename Traits::Shared& s) {
  constexpr int kQueries = Traits::kQueries, kStages = Traits::kStages, kItemsPerTile = kTile / kHalf;
  int const lane = threadIdx.x;
  int const num_items = p.header->num_tiles * kItemsPerTile * p.num_heads;
  uint32_t count = 0, turn = 0;
  int item = blockIdx.x;
  while (item < num_items) {
    int next = 0;
    if (lane == 0) next = take(p.header->next[1], num_items) + gridDim.x;
    TileInfo const tile = p.tiles[item / (kItemsPerTile * p.num_heads)];
    int const head = item / kItemsPerTile % p.num_heads, key = tile.first + item % kItemsPerTile * kHalf;
    QueryVisits<kQueries, kHalf> const visits(p.tiles + tile.row_tile, tile.length, key);
    if (key < tile.length) {
      int const num_visits = visits.count();
      if (lane == 0) {
        s.item_empty[turn % 2].wait((turn / 2 & 1) ^ 1);
        s.item[turn % 2] = {tile, key, head, num_visits};
        s.item_full[turn % 2].arrive();
      }
      bool first = true;
      visits.each([&](int query, bool masked) {
        int const stage = count % kStages;
        uint32_t const empty = (count / kStages & 1) ^ 1;
        ++count;
        if (lane != 0) return;
        s.q_empty[stage].wait(empty);
        s.query[stage] = query | masked;
        s.q_full[stage].arrive_and_expect_tx(sizeof(s.q[0]));
        load_rows(p.q, s.q_full[stage], s.q[stage], tile.row_start + query, head);
        if (first) {  // only now: the first queries' stage is free before the last keys are
          s.k_empty.wait(turn & 1 ^ 1);
          s.k_full.arrive_and_expect_tx(sizeof(s.k));
          load_rows(p.k, s.k_full, s.k, tile.row_start + key, head);
        }
        s.grad_empty[stage].wait(empty);
        s.grad_full[stage].arrive_and_expect_tx(sizeof(s.grad_out[0]));
        load_rows(p.grad_out, s.grad_full[stage], s.grad_out[stage], tile.row_start + query, head);
        if (first) {
          s.v_empty.wait(turn & 1 ^ 1);
          s.v_full.arrive_and_expect_tx(sizeof(s.v));
          load_rows(p.v, s.v_full, s.v, tile.row_start + key, head);
        }
        first = false;
      });
      ++turn;
    }
    item = __shfl_sync(0xffffffffu, next, 0);
  }
  if (lane == 0) {
    s.item_empty[turn % 2].wait((turn / 2 & 1) ^ 1);
    s.item[turn % 2].count = -1;
    s.item_full[turn % 2].arrive();
  }
}

// Takes the next item; its count is negative after the last one.
template <class Shared>
__device__ __forceinline__ auto next_item(Shared& s, uint32_t turn) {
  s.item_full[turn % 2].wait(turn / 2 & 1);
  auto const item = s.item[turn % 2];
  s.item_empty[turn % 2].arrive();
  return item;
}

// Writes a thread's words of a block, keys x queries, to shared memory as a product reads it: a line of 64 queries a
// key, 128-byte swizzle.
template <class Element, class Words>
__device__ __forceinline__ void write_block(Words const& words, Element* block) {
  int const warp = threadIdx.x % kWarpgroup / 32, row = threadIdx.x % 16, block_of_two = threadIdx.x % 32 / 16;
  uint4* const line = reinterpret_cast<uint4*>(block) + (16 * warp + row) * 8;
  CUTE_UNROLL
  for (int b = 0; b < 4; ++b) {
    int const chunk = 2 * b + block_of_two;
    store_matrices(line + (chunk ^ (row % 8)), words(4 * b), words(4 * b + 1), words(4 * b + 2), words(4 * b + 3));
  }
}

template <class Traits>
__device__ __forceinline__ void backward_kv_trio_scores(BackwardKVParams const& p, typename Traits::Shared& s) {
  using Element = typename Traits::Element;
  constexpr int kStages = Traits::kStages;
  typename Traits::MmaScores mma_scores;
  auto const thread_scores = mma_scores.get_slice(0);
  auto const k = thread_scores.partition_fragment_A(make_tensor(make_smem_ptr(s.k), typename Traits::KLayout{}));
  auto scores = partition_fragment_C(mma_scores, Shape<_64, Int<Traits::kQueries>>{});
  auto weights = make_tensor<uint32_t>(Int<decltype(size(scores))::value / 2>{});
  auto slope = make_tensor<uint32_t>(Int<decltype(size(scores))::value / 2>{});
  int const thread = threadIdx.x % kWarpgroup;

  uint32_t step = 0;
  for (uint32_t turn = 0;; ++turn) {
    auto const item = next_item(s, turn);
    if (item.count < 0) return;
    int const row = item.key + fragment_row();
    s.k_full.wait(turn & 1);
    for (int i = 0; i < item.count; ++i, ++step) {
      int const stage = step % kStages;
      s.q_full[stage].wait(step / kStages & 1);
      int const query = s.query[stage];
      issue<true>(
          mma_scores, k,
          thread_scores.partition_fragment_B(make_tensor(make_smem_ptr(s.q[stage]), typename Traits::KLayout{})),
          scores);
      finish<0>(scores);
      s.q_empty[stage].arrive();
      if (i == item.count - 1) s.k_empty.arrive();
      auto activate = [&](auto exact) {
        CUTE_UNROLL
        for (int e = 0; e < size(scores); e += 2) {
          Silu const low = silu<decltype(exact)::value>(scores(e));
          Silu const high = silu<decltype(exact)::value>(scores(e + 1));
          weights(e / 2) = pack<Element>(low.weight, high.weight);
          slope(e / 2) = pack<Element>(low.twice_slope, high.twice_slope);
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
          KeepPairs const keep(p, item.tile, row, query & ~1, e);
          CUTE_UNROLL
          for (int j = 0; j < 2; ++j) {
            weights(e / 2 + j) &= keep.bits(j);
            slope(e / 2 + j) &= keep.bits(j);
          }
        }
      }
      s.weights_empty.wait(step & 1 ^ 1);
      write_block<Element>(weights, s.weights);
      CUTE_UNROLL
      for (int w = 0; w < Traits::kQueries / 16; ++w) {
        s.slope[w][thread] = make_uint4(slope(4 * w), slope(4 * w + 1), slope(4 * w + 2), slope(4 * w + 3));
      }
      cutlass::arch::fence_view_async_shared();
      s.weights_full.arrive();
    }
  }
}

template <class Traits>
__device__ __forceinline__ void backward_kv_trio_values(BackwardKVParams const& p, typename Traits::Shared& s) {
  using Element = typename Traits::Element;
  constexpr int kDim = Traits::kDim, kStages = Traits::kStages;
  typename Traits::MmaScores mma_scores;
  typename Traits::MmaGrad mma_grad;
  auto const thread_scores = mma_scores.get_slice(0);
  auto const thread_grad = mma_grad.get_slice(0);
  auto const v = thread_scores.partition_fragment_A(make_tensor(make_smem_ptr(s.v), typename Traits::KLayout{}));
  auto const weights =
      thread_grad.partition_fragment_A(make_tensor(make_smem_ptr(s.weights), typename Traits::BlockLayout{}));
  auto grad_v = partition_fragment_C(mma_grad, Shape<_64, Int<kDim>>{});
  auto grad_weights = partition_fragment_C(mma_scores, Shape<_64, Int<Traits::kQueries>>{});
  auto grad_scores = make_tensor<uint32_t>(Int<decltype(size(grad_weights))::value / 2>{});
  int const thread = threadIdx.x % kWarpgroup;

  uint32_t step = 0;
  for (uint32_t turn = 0;; ++turn) {
    auto const item = next_item(s, turn);
    if (item.count < 0) return;
    s.v_full.wait(turn & 1);
    clear(grad_v);
    for (int i = 0; i < item.count; ++i, ++step) {
      int const stage = step % kStages;
      bool const last = i == item.count - 1;
      s.grad_full[stage].wait(step / kStages & 1);
      issue<true>(
          mma_scores, v,
          thread_scores.partition_fragment_B(make_tensor(make_smem_ptr(s.grad_out[stage]), typename Traits::KLayout{})),
          grad_weights);
      finish<0>(grad_weights);
      if (last) s.v_empty.arrive();
      s.weights_full.wait(step & 1);
      CUTE_UNROLL
      for (int w = 0; w < Traits::kQueries / 16; ++w) {
        uint4 const got = s.slope[w][thread];
        uint32_t const words[4] = {got.x, got.y, got.z, got.w};
        CUTE_UNROLL
        for (int c = 0; c < 4; ++c) {
          float2 const slope = unpack<Element>(words[c]);
          grad_scores(4 * w + c) =
              pack<Element>(grad_weights(8 * w + 2 * c) * slope.x, grad_weights(8 * w + 2 * c + 1) * slope.y);
        }
      }
      s.scores_empty.wait(step & 1 ^ 1);
      write_block<Element>(grad_scores, s.grad_scores);
      cutlass::arch::fence_view_async_shared();
      s.scores_full.arrive();
      issue<false>(
          mma_grad, weights,
          thread_grad.partition_fragment_B(make_tensor(make_smem_ptr(s.grad_out[stage]), typename Traits::QtLayout{})),
          grad_v);
      finish<0>(grad_v);
      s.grad_empty[stage].arrive();
      if (!last) s.weights_empty.arrive();
    }
    cutlass::arch::NamedBarrier::sync(kWarpgroup, 1);  // all have read the weights
    Element* const to = static_cast<Element*>(p.grad_v.data) +
                        int64_t(item.tile.row_start + item.key) * p.grad_v.token_stride +
                        item.head * p.grad_v.head_stride;
    unsigned const bad = store_rows<Element, kDim>(grad_v, p.inv_n, to, p.grad_v.token_stride,
                                                   item.tile.length - item.key, *reinterpret_cast<Outbox*>(s.weights));
    s.weights_empty.arrive();
    if (bad) repair_values<Element, kDim>(p, item.tile, item.head, item.key, bad);
  }
}

template <class Traits>
__device__ __forceinline__ void backward_kv_trio_keys(BackwardKVParams const& p, typename Traits::Shared& s) {
  using Element = typename Traits::Element;
  constexpr int kDim = Traits::kDim, kStages = Traits::kStages;
  typename Traits::MmaGrad mma_grad;
  auto const thread_grad = mma_grad.get_slice(0);
  auto const grad_scores =
      thread_grad.partition_fragment_A(make_tensor(make_smem_ptr(s.grad_scores), typename Traits::BlockLayout{}));
  auto grad_k = partition_fragment_C(mma_grad, Shape<_64, Int<kDim>>{});
  bool const leader = threadIdx.x % kWarpgroup == 0;

  uint32_t step = 0;
  for (uint32_t turn = 0;; ++turn) {
    auto const item = next_item(s, turn);
    if (item.count < 0) return;
    int const halves = (item.tile.length + kHalf - 1) / kHalf;
    Element* const blocks =
        static_cast<Element*>(p.grad_scores) +
        (item.head * p.blocks_a_head + item.tile.block + int64_t(item.key / kHalf) * halves) * kBlock;
    clear(grad_k);
    for (int i = 0; i < item.count; ++i, ++step) {
      int const stage = step % kStages;
      s.q_full[stage].wait(step / kStages & 1);
      s.scores_full.wait(step & 1);
      if (leader && item.tile.block >= 0) {
        SM90_BULK_COPY_S2G::copy(s.grad_scores, blocks + int64_t(s.query[stage] / kHalf) * kBlock,
                                 sizeof(s.grad_scores));
        tma_store_arrive();
      }
      issue<false>(
          mma_grad, grad_scores,
          thread_grad.partition_fragment_B(make_tensor(make_smem_ptr(s.q[stage]), typename Traits::QtLayout{})),
          grad_k);
      finish<0>(grad_k);
      s.q_empty[stage].arrive();
      if (leader) tma_store_wait<0>();
      if (i < item.count - 1) s.scores_empty.arrive();
    }
    cutlass::arch::NamedBarrier::sync(kWarpgroup, 2);  // all have read the score gradients
    Element* const to = static_cast<Element*>(p.grad_k.data) +
                        int64_t(item.tile.row_start + item.key) * p.grad_k.token_stride +
                        item.head * p.grad_k.head_stride;
    unsigned const bad =
        store_rows<Element, kDim>(grad_k, p.scale_k, to, p.grad_k.token_stride, item.tile.length - item.key,
                                  *reinterpret_cast<Outbox*>(s.grad_scores));
    s.scores_empty.arrive();
    if (bad) repair_keys<Element, kDim>(p, item.tile, item.head, item.key, bad);
  }
}

template <class Traits>
__global__ void __launch_bounds__(Traits::kThreads, 1)
    backward_kv_trio_kernel(__grid_constant__ BackwardKVParams const p) {
  extern __shared__ __align__(1024) char raw[];
  auto& s = *reinterpret_cast<typename Traits::Shared*>(raw);
  if (threadIdx.x == 0) {
    s.k_full.init(1);
    s.v_full.init(1);
    s.k_empty.init(kWarpgroup);
    s.v_empty.init(kWarpgroup);
    for (int i = 0; i < Traits::kStages; ++i) {
      s.q_full[i].init(1);
      s.q_empty[i].init(2 * kWarpgroup);
      s.grad_full[i].init(1);
      s.grad_empty[i].init(kWarpgroup);
    }
    for (int i = 0; i < 2; ++i) {
      s.item_full[i].init(1);
      s.item_empty[i].init(3 * kWarpgroup);
    }
    s.weights_full.init(kWarpgroup);
    s.weights_empty.init(kWarpgroup);
    s.scores_full.init(kWarpgroup);
    s.scores_empty.init(kWarpgroup);
    cutlass::arch::fence_barrier_init();
  }
  __syncthreads();
  int const group = cutlass::canonical_warp_group_idx();
  if (group == 0) {
    cutlass::arch::warpgroup_reg_dealloc<24>();
    if (threadIdx.x < 32) {
      let_next_kernel_start();
      backward_kv_trio_load<Traits>(p, s);
      wait_for_kernel_before();  // that of queries, which it does not read, but whose results are due when this one
                                 // ends
    }
  } else if (group == 1) {
    cutlass::arch::warpgroup_reg_dealloc<112>();
    backward_kv_trio_scores<Traits>(p, s);
  } else if (group == 2) {
    cutlass::arch::warpgroup_reg_alloc<208>();
    backward_kv_trio_values<Traits>(p, s);
  } else {
    cutlass::arch::warpgroup_reg_alloc<160>();
    backward_kv_trio_keys<Traits>(p, s);
  }
}

}  // namespace hstu_sm90
