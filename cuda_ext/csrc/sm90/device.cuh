// Device helpers shared by the sm90a kernels: barriers, tensor loads, wgmma on one warpgroup, SiLU, stores.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cutlass/arch/barrier.h>
#include <cutlass/arch/reg_reconfig.h>
#include <cutlass/numeric_types.h>

#include <cute/tensor.hpp>

#include "params.h"

namespace hstu_sm90 {

using namespace cute;
using Barrier = cutlass::arch::ClusterTransactionBarrier;

// Also how many times a warpgroup arrives at a barrier: every lane for itself. One lane for its warp after __syncwarp
// is no faster (docs/log.md), and compute-sanitizer's racecheck takes the other lanes' accesses for unordered.
constexpr int kWarpgroup = 128;
constexpr int kThreads = 3 * kWarpgroup;  // one producer and two consumer warpgroups

// Registers of a loading and of a computing thread where kBlocks CTAs share a multiprocessor.
template <int kBlocks>
struct Registers {
  static_assert(kBlocks == 1 || kBlocks == 2);
  static constexpr int kLoad = kBlocks == 1 ? 40 : 32, kCompute = kBlocks == 1 ? 232 : 104;
};

// Shared-memory views of kRows tokens of D numbers, as one tensor load leaves them: slabs of 64 columns, 128-byte
// swizzle. The same bytes serve as operand with the head dim inside the product (KMajor: rows x D) and outside of it
// (MNMajor: D x rows).
template <class T, int kRows, int kDim>
using KMajor = decltype(tile_to_shape(GMMA::Layout_K_SW128_Atom<T>{}, Shape<Int<kRows>, Int<kDim>>{}));
template <class T, int kRows, int kDim>
using MNMajor =
    decltype(tile_to_shape(GMMA::Layout_MN_SW128_Atom<T>{}, Shape<Int<kDim>, Int<kRows>>{}, Step<_2, _1>{}));

// wgmma of one warpgroup: 64 x N, both operands K-major in shared memory.
template <class T, int N, int K>
using MmaSS = decltype(make_tiled_mma(
    GMMA::ss_op_selector<T, T, float, Shape<_64, Int<N>, Int<K>>, GMMA::Major::K, GMMA::Major::K>()));
// 64 x N, the left operand in registers, the right one MN-major in shared memory.
template <class T, int N, int K>
using MmaRS = decltype(make_tiled_mma(
    GMMA::rs_op_selector<T, T, float, Shape<_64, Int<N>, Int<K>>, GMMA::Major::K, GMMA::Major::MN>()));

// Enqueues c = a b^T (kZero) or c += a b^T over all k blocks; the caller waits.
template <bool kZero, class Mma, class A, class B, class C>
__device__ __forceinline__ void issue(Mma mma, A const& a, B const& b, C& c) {
  constexpr bool kFromRegisters = !is_base_of<GMMA::DescriptorIterator, typename Mma::FrgTypeA>::value;
  if constexpr (kFromRegisters) warpgroup_fence_operand(const_cast<A&>(a));
  warpgroup_fence_operand(c);
  warpgroup_arrive();
  mma.accumulate_ = kZero ? GMMA::ScaleOut::Zero : GMMA::ScaleOut::One;
  CUTE_UNROLL
  for (int k = 0; k < size<2>(a); ++k) {
    cute::gemm(mma, a(_, _, k), b(_, _, k), c);
    mma.accumulate_ = GMMA::ScaleOut::One;
  }
  warpgroup_commit_batch();
  warpgroup_fence_operand(c);
  if constexpr (kFromRegisters) warpgroup_fence_operand(const_cast<A&>(a));
}

// Waits until at most kPending enqueued products are unfinished; c is the one that is then read.
template <int kPending, class C>
__device__ __forceinline__ void finish(C& c) {
  warpgroup_wait<kPending>();
  warpgroup_fence_operand(c);
}

// Waits until the kernel before this one in the stream has finished and its writes are seen.
__device__ __forceinline__ void wait_for_kernel_before() { asm volatile("griddepcontrol.wait;" ::: "memory"); }

// Lets the next kernel's CTAs start where this one's have ended, once all of this one's have said so.
__device__ __forceinline__ void let_next_kernel_start() {
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
}

// Takes one of the items, which are counted from 0; when all have been taken, the count is 0 again, so that a plan
// serves any number of kernels, one after another.
__device__ __forceinline__ int take(int& taken, int num_items) {
  return static_cast<int>(atomicInc(reinterpret_cast<unsigned*>(&taken), num_items - 1));
}

// Loads a box of rows starting at `token` of `head`; the map's dims are (64, T, D / 64, N).
__device__ __forceinline__ void load_rows(const CUtensorMap& map, Barrier& full, void* to, int token, int head) {
  SM90_TMA_LOAD_4D::copy(&map, reinterpret_cast<uint64_t*>(&full),
                         static_cast<uint64_t>(TMA::CacheHintSm90::EVICT_NORMAL), to, 0, token, 0, head);
}

__device__ __forceinline__ float tanh_approx(float x) {
  float y;
  asm("tanh.approx.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// SiLU(2 h) and twice its derivative. By tanh they cost one special instruction, but far below zero 1 + tanh(h) keeps
// no digits; exact, they cost two.
struct Silu {
  float weight, twice_slope;
};
template <bool kExact>
__device__ __forceinline__ Silu silu(float h) {
  if constexpr (kExact) {
    float const s = __fdividef(1.f, 1.f + __expf(-2.f * h)), weight = 2.f * h * s;
    return {weight, 2.f * fmaf(weight, 1.f - s, s)};
  } else {
    float const t = tanh_approx(h), ht = h * t;
    return {h + ht, 1.f + (t + fmaf(-ht, t, h))};
  }
}

// Halves scores in place to what `silu` takes, and tells whether any needs the exact way: one three-way maximum for two
// of them, since of floats below zero the larger has the larger bits.
template <class Acc>
__device__ __forceinline__ bool halve(Acc& scores, float half_alpha) {
  constexpr unsigned kFarBelow = 0xc0800000;  // -4: from there on the way by tanh is off by more than 2^-10
  unsigned most = 0;
  CUTE_UNROLL
  for (int e = 0; e < size(scores); e += 2) {
    scores(e) *= half_alpha;
    scores(e + 1) *= half_alpha;
    most = __vimax3_u32(most, __float_as_uint(scores(e)), __float_as_uint(scores(e + 1)));
  }
  return most > kFarBelow;
}

template <class T>
__device__ __forceinline__ uint32_t pack(float low, float high) {
  if constexpr (std::is_same_v<T, cutlass::half_t>) {
    __half2 pair = __floats2half2_rn(low, high);
    return reinterpret_cast<uint32_t&>(pair);
  } else {
    __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
    return reinterpret_cast<uint32_t&>(pair);
  }
}

template <class T>
__device__ __forceinline__ float2 unpack(uint32_t pair) {
  if constexpr (std::is_same_v<T, cutlass::half_t>) {
    return __half22float2(reinterpret_cast<__half2 const&>(pair));
  } else {
    return __bfloat1622float2(reinterpret_cast<__nv_bfloat162 const&>(pair));
  }
}

// Rounds an accumulator of 64 x N to the left operand of the next product; both lie in the same order in a thread.
template <class T, class Acc, class A>
__device__ __forceinline__ void to_operand(Acc const& acc, A& a) {
  static_assert(decltype(size(acc))::value == decltype(size(a))::value);
  auto words = recast<uint32_t>(a);
  CUTE_UNROLL
  for (int i = 0; i < size(words); ++i) words(i) = pack<T>(acc(2 * i), acc(2 * i + 1));
}

// A register operand 64 x K for MmaRS.
template <class T, int K>
__device__ __forceinline__ auto make_operand() {
  return make_tensor<T>(Layout<Shape<Shape<_2, _2, _2>, _1, Int<K / 16>>>{});
}

// Position of a warpgroup's thread in a 64 x N accumulator: element i of it is at
// row() + 8 * ((i / 2) % 2), column(i).
__device__ __forceinline__ int fragment_row() { return (threadIdx.x % kWarpgroup) / 32 * 16 + (threadIdx.x % 32) / 4; }
__device__ __forceinline__ int fragment_column(int i) { return i / 4 * 8 + (threadIdx.x % 4) * 2 + i % 2; }

// x times zero, plus sum, in pairs: not zero once an x is not finite.
template <class T>
__device__ __forceinline__ void add_unless_finite(uint32_t& sum, uint32_t x) {
  if constexpr (std::is_same_v<T, cutlass::half_t>) {
    asm("fma.rn.f16x2 %0, %1, %2, %0;" : "+r"(sum) : "r"(x), "r"(0));
  } else {
    asm("fma.rn.bf16x2 %0, %1, %2, %0;" : "+r"(sum) : "r"(x), "r"(0));
  }
}

// Shared memory through which a warpgroup's results go out, 64 columns at a time: 16 rows of 128 bytes a warp.
struct alignas(128) Outbox {
  uint4 line[kWarpgroup / 32][16][8];
};

// Writes four matrices of 8 x 8 numbers of 16 bits, row by row, each lane giving where one row goes.
__device__ __forceinline__ void store_matrices(uint4* row, uint32_t a, uint32_t b, uint32_t c, uint32_t d) {
  asm volatile(
      "stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(cute::cast_smem_ptr_to_uint(row)),
      "r"(a), "r"(b), "r"(c), "r"(d)
      : "memory");
}

// Stores rows [0, rows) of a 64 x D accumulator, scaled. Returns which of the warp's 16 rows hold a number that is not
// finite, a bit each.
template <class T, int kDim, class Acc>
__device__ __forceinline__ unsigned store_rows(Acc const& acc, float scale, T* to, int64_t token_stride, int rows,
                                               Outbox& box) {
  int const lane = threadIdx.x % 32, warp = threadIdx.x % kWarpgroup / 32;
  auto& line = box.line[warp];
  to += warp * 16 * token_stride + lane % 8 * 8;
  rows -= warp * 16;
  uint32_t sum[2] = {};
  CUTE_UNROLL
  for (int c = 0; c < kDim / 64; ++c) {
    CUTE_UNROLL
    for (int b = 0; b < 4; ++b) {  // 16 columns: two blocks of eight, of rows 0 to 7 and 8 to 15
      uint32_t word[4];
      CUTE_UNROLL
      for (int w = 0; w < 4; ++w) {
        int const i = 4 * (8 * c + 2 * b + w / 2) + 2 * (w % 2);
        word[w] = pack<T>(acc(i) * scale, acc(i + 1) * scale);
        add_unless_finite<T>(sum[w % 2], word[w]);
      }
      int const row = lane % 16, chunk = 2 * b + lane / 16;
      store_matrices(&line[row][chunk ^ (row % 8)], word[0], word[1], word[2], word[3]);
    }
    __syncwarp();
    CUTE_UNROLL
    for (int r = 0; r < 16; r += 4) {
      int const row = r + lane / 8;
      uint4 const words = line[row][(lane ^ row) % 8];
      if (row < rows) *reinterpret_cast<uint4*>(to + row * token_stride + 64 * c) = words;
    }
    __syncwarp();
  }
  unsigned spoilt = 0;
  CUTE_UNROLL
  for (int j = 0; j < 2; ++j) {
    bool const bad = lane / 4 + 8 * j < rows && (sum[j] & 0x7fff7fffu) != 0;
    unsigned const threads = __ballot_sync(0xffffffffu, bad);
    CUTE_UNROLL
    for (int r = 0; r < 8; ++r) spoilt |= (threads >> 4 * r & 0xf ? 1u : 0u) << (8 * j + r);
  }
  return spoilt;
}

}  // namespace hstu_sm90
