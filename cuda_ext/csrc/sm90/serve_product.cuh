// A product whose left side is still to be normed (serve.h), one tile of kRows x kColumns a CTA.
//
// A thread loads; three warps bring what the end needs, moments and affine, while the product runs; each of kWarpgroups
// owns 64 rows. CTAs of a cluster that share rows or columns load a part of them each and send it to all. Weights are
// on their way before the kernel before this one has ended.
#pragma once

#include "device.cuh"
#include "serve.h"

namespace hstu_sm90 {

struct ProductParams {
  CUtensorMap x, weight;
  Product p;
};

// kAcross: CTAs of a cluster along rows, which share columns; kAlong: along columns, which share rows.
template <class Element_, int kWarpgroups_, int kColumns_, int kStages_, int kAcross_, int kAlong_, bool kAdds_>
struct ProductTraits {
  using Element = Element_;
  static constexpr int kWarpgroups = kWarpgroups_, kColumns = kColumns_, kStages = kStages_;
  static constexpr int kAcross = kAcross_, kAlong = kAlong_;
  static constexpr bool kAdds = kAdds_;
  static constexpr int kRows = kHalf * kWarpgroups, kDepth = 64, kThreads = (1 + kWarpgroups) * kWarpgroup;
  using ALayout = KMajor<Element, kHalf, kDepth>;
  using BLayout = KMajor<Element, kColumns, kDepth>;
  using Mma = MmaSS<Element, kColumns, kDepth>;

  struct alignas(1024) Shared {
    Element a[kStages][kRows * kDepth];
    Element b[kStages][kColumns * kDepth];
    Outbox outbox[kWarpgroups];
    float4 affine[kGroups][kColumns / 2];
    float2 scale[kAdds ? kGroups : 1][kColumns / 2];
    float2 moments[kRows];  // mean and reciprocal deviation
    Barrier full[kStages], empty[kStages], prepared;
  };
};

template <class Traits>
__device__ __forceinline__ void product_load(ProductParams const& params, typename Traits::Shared& s) {
  constexpr int kStages = Traits::kStages, kDepth = Traits::kDepth, kAcross = Traits::kAcross;
  constexpr int kShareA = Traits::kRows / Traits::kAlong, kShareB = Traits::kColumns / kAcross;
  constexpr uint32_t kBytes = sizeof(s.a[0]) + sizeof(s.b[0]);
  int const steps = params.p.depth / kDepth;
  int const across = blockIdx.x % kAcross, along = blockIdx.y % Traits::kAlong;
  uint16_t mask_a = 0, mask_b = 0;
  for (int j = 0; j < Traits::kAlong; ++j) mask_a |= 1 << (across + j * kAcross);
  for (int i = 0; i < kAcross; ++i) mask_b |= 1 << (i + along * kAcross);
  auto load = [&](CUtensorMap const& map, int step, typename Traits::Element* to, int row, uint16_t mask) {
    auto* const full = reinterpret_cast<uint64_t*>(&s.full[step % kStages]);
    constexpr auto kHint = static_cast<uint64_t>(TMA::CacheHintSm90::EVICT_NORMAL);
    if constexpr (kAcross * Traits::kAlong == 1) {
      SM90_TMA_LOAD_2D::copy(&map, full, kHint, to, step * kDepth, row);
    } else {
      SM90_TMA_LOAD_MULTICAST_2D::copy(&map, full, mask, kHint, to, step * kDepth, row);
    }
  };
  auto load_a = [&](int step) {
    int const row = blockIdx.x * Traits::kRows + along * kShareA;
    load(params.x, step, s.a[step % kStages] + along * kShareA * kDepth, row, mask_a);
  };
  auto load_b = [&](int step) {
    int const row = blockIdx.y * Traits::kColumns + across * kShareB;
    load(params.weight, step, s.b[step % kStages] + across * kShareB * kDepth, row, mask_b);
  };
  int const first = min(steps, kStages);
  for (int step = 0; step < first; ++step) {
    s.full[step].arrive_and_expect_tx(kBytes);
    load_b(step);
  }
  wait_for_kernel_before();
  for (int step = 0; step < first; ++step) load_a(step);
  for (int step = first; step < steps; ++step) {
    s.empty[step % kStages].wait(step / kStages + 1 & 1);
    s.full[step % kStages].arrive_and_expect_tx(kBytes);
    load_b(step);
    load_a(step);
  }
}

constexpr int kPreparing = kWarpgroup - 32;  // threads

template <class Traits>
__device__ __forceinline__ void product_prepare(Product const& p, typename Traits::Shared& s) {
  constexpr int kColumns = Traits::kColumns;
  int const thread = threadIdx.x - 32, first_column = blockIdx.y * kColumns;
  for (int i = thread; i < p.num_groups * kColumns / 2; i += kPreparing) {
    int const group = i / (kColumns / 2), pair = i % (kColumns / 2);
    int64_t const at = static_cast<int64_t>(group) * p.num_columns + first_column + 2 * pair;
    s.affine[group][pair] = __ldg(reinterpret_cast<float4 const*>(p.affine + 2 * at));
    if constexpr (Traits::kAdds) s.scale[group][pair] = __ldg(reinterpret_cast<float2 const*>(p.scale + at));
  }
  wait_for_kernel_before();
  for (int row = thread; row < Traits::kRows; row += kPreparing) {
    int64_t const token = min(static_cast<int>(blockIdx.x) * Traits::kRows + row, p.num_tokens - 1);
    auto const* const from = reinterpret_cast<float2 const*>(p.sums + token * p.num_sums);
    float sum = 0.f, squares = 0.f;
#pragma unroll 8
    for (int i = 0; i < p.num_sums; ++i) {
      float2 const part = from[i];
      sum += part.x;
      squares += part.y;
    }
    float const mean = sum / p.depth;
    s.moments[row] = {mean, rsqrtf(fmaxf(squares / p.depth - mean * mean, 0.f) + p.eps)};
  }
  s.prepared.arrive();
}

template <class Traits>
__device__ __forceinline__ void product_compute(ProductParams const& params, typename Traits::Shared& s, int half) {
  using Element = typename Traits::Element;
  constexpr int kStages = Traits::kStages, kColumns = Traits::kColumns, kBlocks = kColumns / 8;
  constexpr int kAcross = Traits::kAcross, kAlong = Traits::kAlong;
  Product const& p = params.p;
  typename Traits::Mma mma;
  auto const thread = mma.get_slice(0);
  auto a_of = [&](int stage) {
    auto* const a = s.a[stage] + half * kHalf * Traits::kDepth;
    return thread.partition_fragment_A(make_tensor(make_smem_ptr(a), typename Traits::ALayout{}));
  };
  auto b_of = [&](int stage) {
    return thread.partition_fragment_B(make_tensor(make_smem_ptr(s.b[stage]), typename Traits::BLayout{}));
  };
  auto out = partition_fragment_C(mma, Shape<_64, Int<kColumns>>{});
  // Those of the cluster that send to this CTA must know when a stage is free: one lane tells one of them.
  int const across = blockIdx.x % kAcross, along = blockIdx.y % kAlong, lane = threadIdx.x % kWarpgroup;
  int const peer = lane < kAlong ? across + lane * kAcross
                                 : (lane - kAlong < across ? lane - kAlong : lane - kAlong + 1) + along * kAcross;
  bool const tells = lane < kAlong + kAcross - 1;
  auto release = [&](int step) { s.empty[step % kStages].arrive(peer, tells); };

  int const first_row = blockIdx.x * Traits::kRows + half * kHalf, first_column = blockIdx.y * kColumns;
  int token[2], of_group[2];
  CUTE_UNROLL
  for (int j = 0; j < 2; ++j) {
    token[j] = min(first_row + fragment_row() + 8 * j, p.num_tokens - 1);
    of_group[j] = __ldg(p.group + token[j]);
  }
  wait_for_kernel_before();
  uint32_t before[Traits::kAdds ? 2 * kBlocks : 1];
  if constexpr (Traits::kAdds) {
    CUTE_UNROLL
    for (int j = 0; j < 2; ++j) {
      auto const* const from = static_cast<Element const*>(p.out) + static_cast<int64_t>(token[j]) * p.num_columns +
                               first_column + threadIdx.x % 4 * 2;
      CUTE_UNROLL
      for (int b = 0; b < kBlocks; ++b) before[2 * b + j] = *reinterpret_cast<uint32_t const*>(from + 8 * b);
    }
  }

  int const steps = p.depth / Traits::kDepth;
  s.full[0].wait(0);
  issue<true>(mma, a_of(0), b_of(0), out);
  for (int step = 1; step < steps; ++step) {
    int const stage = step % kStages;
    s.full[stage].wait(step / kStages & 1);
    issue<false>(mma, a_of(stage), b_of(stage), out);
    finish<1>(out);
    release(step - 1);
  }
  finish<0>(out);

  s.prepared.wait(0);
  float2 sums[2] = {}, moment[2];
  CUTE_UNROLL
  for (int j = 0; j < 2; ++j) moment[j] = s.moments[half * kHalf + fragment_row() + 8 * j];
  CUTE_UNROLL
  for (int b = 0; b < kBlocks; ++b) {
    CUTE_UNROLL
    for (int j = 0; j < 2; ++j) {
      float4 const of_column = s.affine[of_group[j]][4 * b + threadIdx.x % 4];
      float& x = out(4 * b + 2 * j);
      float& y = out(4 * b + 2 * j + 1);
      x = moment[j].y * (x - moment[j].x * of_column.x) + of_column.y;
      y = moment[j].y * (y - moment[j].x * of_column.z) + of_column.w;
      if constexpr (Traits::kAdds) {
        float2 const held = unpack<Element>(before[2 * b + j]);
        x += held.x;
        y += held.y;
        sums[j].x += x + y;
        sums[j].y += x * x + y * y;
      }
    }
  }
  int const rows = p.num_tokens - first_row;
  int64_t const at = static_cast<int64_t>(first_row) * p.num_columns + first_column;
  store_rows<Element, kColumns>(out, 1.f, static_cast<Element*>(p.out) + at, p.num_columns, rows, s.outbox[half]);
  if constexpr (Traits::kAdds) {
    CUTE_UNROLL
    for (int b = 0; b < kBlocks; ++b) {
      CUTE_UNROLL
      for (int j = 0; j < 2; ++j) {
        float2 const of_column = s.scale[of_group[j]][4 * b + threadIdx.x % 4];
        out(4 * b + 2 * j) *= of_column.x;
        out(4 * b + 2 * j + 1) *= of_column.y;
      }
    }
    store_rows<Element, kColumns>(out, 1.f, static_cast<Element*>(p.scaled) + at, p.num_columns, rows, s.outbox[half]);
    CUTE_UNROLL
    for (int j = 0; j < 2; ++j) {
      CUTE_UNROLL
      for (int lane = 1; lane < 4; lane *= 2) {
        sums[j].x += __shfl_xor_sync(0xffffffffu, sums[j].x, lane);
        sums[j].y += __shfl_xor_sync(0xffffffffu, sums[j].y, lane);
      }
      if (threadIdx.x % 4 == 0 && fragment_row() + 8 * j < rows) {
        auto* const to = p.out_sums + static_cast<int64_t>(token[j]) * gridDim.y + blockIdx.y;
        *reinterpret_cast<float2*>(to) = sums[j];
      }
    }
  }
}

template <class Traits>
__global__ void __launch_bounds__(Traits::kThreads, 1) product_kernel(__grid_constant__ ProductParams const params) {
  extern __shared__ __align__(1024) char raw[];
  auto& s = *reinterpret_cast<typename Traits::Shared*>(raw);
  constexpr bool kIsCluster = Traits::kAcross * Traits::kAlong > 1;
  let_next_kernel_start();
  if (threadIdx.x == 0) {
    prefetch_tma_descriptor(&params.weight);
    prefetch_tma_descriptor(&params.x);
    for (int i = 0; i < Traits::kStages; ++i) {
      s.full[i].init(1);
      s.empty[i].init((Traits::kAcross + Traits::kAlong - 1) * Traits::kWarpgroups);
    }
    s.prepared.init(kPreparing);
    cutlass::arch::fence_barrier_init();
  }
  if constexpr (kIsCluster) {
    cluster_sync();
  } else {
    __syncthreads();
  }
  int const group = cutlass::canonical_warp_group_idx();
  if (group == 0) {
    if constexpr (Traits::kWarpgroups == 2) cutlass::arch::warpgroup_reg_dealloc<Registers<1>::kLoad>();
    if (threadIdx.x == 0) product_load<Traits>(params, s);
    if (threadIdx.x >= 32) product_prepare<Traits>(params.p, s);
    __syncwarp();
  } else {
    if constexpr (Traits::kWarpgroups == 2) cutlass::arch::warpgroup_reg_alloc<Registers<1>::kCompute>();
    product_compute<Traits>(params, s, group - 1);
  }
  if constexpr (kIsCluster) cluster_sync();  // none leaves while another may still send to it
}

}  // namespace hstu_sm90
