// The backward pass of group layer norm in 16 bits, for widths that a warp holds: called by norm_binding.cpp.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace hstu_sm90 {

constexpr int kNormWarps = 4;   // of a block
constexpr int kNormBlocks = 2;  // a multiprocessor

struct NormBackward {
  void const* grad_y;  // [T, D]; strides in elements, multiples of 8
  void const* x;
  void const* other;    // the gate, or the gradient that comes to a sum by its other way; null: neither
  int const* group;     // [T]
  float const* weight;  // [G, D]
  float const* mean;    // [T]
  float const* rstd;
  void* grad_x;  // [T, D], contiguous
  void* grad_gate;
  float* partial;  // [warps, 2 G + 1, D], zero: of weight, of bias, and sums over tokens of grad_gate or grad_x
  int64_t grad_y_stride, x_stride, other_stride, grad_gate_stride;
  int num_tokens, num_groups, tokens_a_warp;
  bool is_gated, is_added, is_bfloat16;
};

// Width D is 256, 512, 768 or 1024.
void norm_backward(NormBackward const& p, int dim, int blocks, cudaStream_t stream);

}  // namespace hstu_sm90
