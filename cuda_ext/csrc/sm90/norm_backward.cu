// One warp a token, all of whose values it holds: no sum leaves the warp, and the next token's values are on
// their way while this one's are computed. Sums over tokens stay in registers while the group does not change;
// each warp adds to partial sums of its own, which are added in a fixed order afterwards, so equal inputs give
// equal bits.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "norm_backward.h"

namespace hstu_sm90 {
namespace {

template <bool kBFloat16>
__device__ __forceinline__ float2 unpack(uint32_t pair) {
  if constexpr (kBFloat16) {
    return {__uint_as_float(pair << 16), __uint_as_float(pair & 0xffff0000u)};
  } else {
    return __half22float2(*reinterpret_cast<__half2*>(&pair));
  }
}

template <bool kBFloat16>
__device__ __forceinline__ uint32_t pack(float low, float high) {
  if constexpr (kBFloat16) {
    __nv_bfloat162 const pair = __floats2bfloat162_rn(low, high);
    return *reinterpret_cast<uint32_t const*>(&pair);
  } else {
    __half2 const pair = __floats2half2_rn(low, high);
    return *reinterpret_cast<uint32_t const*>(&pair);
  }
}

__device__ __forceinline__ float warp_sum(float value) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) value += __shfl_xor_sync(0xffffffffu, value, offset);
  return value;
}

// A token's values: of vector v, the lane's eight are columns (32 v + lane) * 8 and on.
template <int kVectors>
struct Token {
  uint4 x[kVectors], grad_y[kVectors], other[kVectors];
  float mean, rstd;
  int group;
};

template <int kVectors, bool kOther>
__device__ __forceinline__ void load(NormBackward const& p, int i, int lane, Token<kVectors>& token) {
  auto const row = [&](void const* at, int64_t stride) {
    return reinterpret_cast<uint4 const*>(reinterpret_cast<uint16_t const*>(at) + i * stride) + lane;
  };
#pragma unroll
  for (int v = 0; v < kVectors; ++v) {
    token.x[v] = __ldcs(row(p.x, p.x_stride) + 32 * v);
    token.grad_y[v] = __ldcs(row(p.grad_y, p.grad_y_stride) + 32 * v);
    if constexpr (kOther) token.other[v] = __ldcs(row(p.other, p.other_stride) + 32 * v);
  }
  token.mean = __ldg(p.mean + i);
  token.rstd = __ldg(p.rstd + i);
  token.group = __ldg(p.group + i);
}

// Adds a warp's sums to its own in memory.
template <int kVectors>
__device__ __forceinline__ void flush(float* sums, int lane, float (&values)[8 * kVectors]) {
#pragma unroll
  for (int v = 0; v < kVectors; ++v) {
    float4* const at = reinterpret_cast<float4*>(sums + (32 * v + lane) * 8);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float* const own = values + 8 * v + 4 * half;
      float4 const before = at[half];
      at[half] = {before.x + own[0], before.y + own[1], before.z + own[2], before.w + own[3]};
      own[0] = own[1] = own[2] = own[3] = 0.f;
    }
  }
}

template <int kVectors, bool kBFloat16, bool kGated, bool kAdded>
__global__ void __launch_bounds__(32 * kNormWarps, kNormBlocks) norm_backward_kernel(NormBackward const p) {
  constexpr int kDim = 256 * kVectors;
  constexpr bool kHoldsWeight = kVectors < 4;  // else they are read from the first cache
  int const lane = threadIdx.x % 32;
  int const warp = blockIdx.x * kNormWarps + threadIdx.x / 32;
  int const first = warp * p.tokens_a_warp;
  int const end = min(first + p.tokens_a_warp, p.num_tokens);
  if (first >= end) return;
  float* const of_weight = p.partial + int64_t(warp) * (2 * p.num_groups + 1) * kDim;
  float* const of_bias = of_weight + p.num_groups * kDim;
  float grad_weight[8 * kVectors] = {}, grad_bias[8 * kVectors] = {}, sums[8 * kVectors] = {};
  float held[kHoldsWeight ? 8 * kVectors : 1];
  int group = -1;

  Token<kVectors> next;
  load<kVectors, kGated || kAdded>(p, first, lane, next);
  for (int i = first; i < end; ++i) {
    Token<kVectors> const token = next;
    if (i + 1 < end) load<kVectors, kGated || kAdded>(p, i + 1, lane, next);
    float const* const weight = p.weight + token.group * kDim;
    if (token.group != group) {
      if (group >= 0) {
        flush<kVectors>(of_weight + group * kDim, lane, grad_weight);
        flush<kVectors>(of_bias + group * kDim, lane, grad_bias);
      }
      group = token.group;
      if constexpr (kHoldsWeight) {
#pragma unroll
        for (int j = 0; j < 8 * kVectors; ++j) held[j] = __ldg(weight + (32 * (j / 8) + lane) * 8 + j % 8);
      }
    }
    float scaled_sum = 0.f, normed_sum = 0.f;
    // Twice over the values: what the second pass needs is cheaper to compute again than to hold.
    auto const each = [&](auto const& use) {
#pragma unroll
      for (int v = 0; v < kVectors; ++v) {
        uint32_t const* const xs = reinterpret_cast<uint32_t const*>(&token.x[v]);
        uint32_t const* const ys = reinterpret_cast<uint32_t const*>(&token.grad_y[v]);
        uint32_t const* const others = reinterpret_cast<uint32_t const*>(&token.other[v]);
        float4 read[2];
        if constexpr (!kHoldsWeight) {
          float4 const* const at = reinterpret_cast<float4 const*>(weight + (32 * v + lane) * 8);
          read[0] = __ldg(at);
          read[1] = __ldg(at + 1);
        }
#pragma unroll
        for (int pair = 0; pair < 4; ++pair) {
          float2 const x = unpack<kBFloat16>(xs[pair]), y = unpack<kBFloat16>(ys[pair]);
          float2 other = {};
          if constexpr (kGated || kAdded) other = unpack<kBFloat16>(others[pair]);
          float w[2];
          if constexpr (kHoldsWeight) {
            w[0] = held[8 * v + 2 * pair];
            w[1] = held[8 * v + 2 * pair + 1];
          } else {
            w[0] = reinterpret_cast<float const*>(read)[2 * pair];
            w[1] = reinterpret_cast<float const*>(read)[2 * pair + 1];
          }
          float const z0 = kGated ? x.x * other.x : x.x, z1 = kGated ? x.y * other.y : x.y;
          use(v, pair, x, y, other, (z0 - token.mean) * token.rstd, (z1 - token.mean) * token.rstd, y.x * w[0],
              y.y * w[1]);
        }
      }
    };
    each([&](int v, int pair, float2, float2 y, float2, float normed0, float normed1, float scaled0, float scaled1) {
      int const j = 8 * v + 2 * pair;
      scaled_sum += scaled0 + scaled1;
      normed_sum += scaled0 * normed0 + scaled1 * normed1;
      grad_weight[j] += y.x * normed0;
      grad_weight[j + 1] += y.y * normed1;
      grad_bias[j] += y.x;
      grad_bias[j + 1] += y.y;
    });
    float const average = warp_sum(scaled_sum) / kDim, average_normed = warp_sum(normed_sum) / kDim;
    uint4 out[kVectors], out_gate[kVectors];
    each([&](int v, int pair, float2 x, float2, float2 other, float normed0, float normed1, float scaled0,
             float scaled1) {
      int const j = 8 * v + 2 * pair;
      float grad0 = token.rstd * (scaled0 - average - normed0 * average_normed);
      float grad1 = token.rstd * (scaled1 - average - normed1 * average_normed);
      if constexpr (kGated) {
        float const gate0 = grad0 * x.x, gate1 = grad1 * x.y;
        sums[j] += gate0;
        sums[j + 1] += gate1;
        reinterpret_cast<uint32_t*>(&out_gate[v])[pair] = pack<kBFloat16>(gate0, gate1);
        grad0 *= other.x;
        grad1 *= other.y;
      }
      if constexpr (kAdded) {
        grad0 += other.x;
        grad1 += other.y;
        sums[j] += grad0;
        sums[j + 1] += grad1;
      }
      reinterpret_cast<uint32_t*>(&out[v])[pair] = pack<kBFloat16>(grad0, grad1);
    });
    uint4* const to = reinterpret_cast<uint4*>(reinterpret_cast<uint16_t*>(p.grad_x) + int64_t(i) * kDim) + lane;
    uint4* const to_gate =
        reinterpret_cast<uint4*>(reinterpret_cast<uint16_t*>(p.grad_gate) + i * p.grad_gate_stride) + lane;
#pragma unroll
    for (int v = 0; v < kVectors; ++v) {
      to[32 * v] = out[v];
      if constexpr (kGated) to_gate[32 * v] = out_gate[v];
    }
  }
  flush<kVectors>(of_weight + group * kDim, lane, grad_weight);
  flush<kVectors>(of_bias + group * kDim, lane, grad_bias);
  flush<kVectors>(of_bias + p.num_groups * kDim, lane, sums);
}

template <int kVectors, bool kBFloat16>
void launch(NormBackward const& p, int blocks, cudaStream_t stream) {
  int const threads = 32 * kNormWarps;
  if (p.is_gated) {
    norm_backward_kernel<kVectors, kBFloat16, true, false><<<blocks, threads, 0, stream>>>(p);
  } else if (p.is_added) {
    norm_backward_kernel<kVectors, kBFloat16, false, true><<<blocks, threads, 0, stream>>>(p);
  } else {
    norm_backward_kernel<kVectors, kBFloat16, false, false><<<blocks, threads, 0, stream>>>(p);
  }
}

template <int kVectors>
void launch_of(NormBackward const& p, int blocks, cudaStream_t stream) {
  p.is_bfloat16 ? launch<kVectors, true>(p, blocks, stream) : launch<kVectors, false>(p, blocks, stream);
}

}  // namespace

void norm_backward(NormBackward const& p, int dim, int blocks, cudaStream_t stream) {
  switch (dim) {
    case 256:
      return launch_of<1>(p, blocks, stream);
    case 512:
      return launch_of<2>(p, blocks, stream);
    case 768:
      return launch_of<3>(p, blocks, stream);
    default:
      return launch_of<4>(p, blocks, stream);
  }
}

}  // namespace hstu_sm90
