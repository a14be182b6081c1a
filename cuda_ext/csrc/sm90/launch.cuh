// Host side of the sm90a kernels: tensor maps, launches, and which tile shapes each head dim takes.
#pragma once

#include "backward_kv.cuh"
#include "backward_kv_split.cuh"
#include "backward_kv_trio.cuh"
#include "backward_q.cuh"
#include "backward_q_kept.cuh"
#include "forward.cuh"

namespace hstu_sm90 {

#define HSTU_SM90_CHECK(expression)                               \
  do {                                                            \
    cudaError_t const error_ = (expression);                      \
    if (error_ != cudaSuccess) return cudaGetErrorString(error_); \
  } while (0)

using EncodeTiled = decltype(&cuTensorMapEncodeTiled);

// The driver's function, looked up at run time so that the library loads where there is no driver.
inline EncodeTiled encode_tiled() {
  static EncodeTiled const function = [] {
    void* found = nullptr;
    cudaDriverEntryPointQueryResult result;
    cudaError_t const error =
        cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &found, 12000, cudaEnableDefault, &result);
    return error == cudaSuccess && result == cudaDriverEntryPointSuccess ? reinterpret_cast<EncodeTiled>(found)
                                                                         : nullptr;
  }();
  return function;
}

// Describes a matrix for loads of `rows` tokens of one head: dims (64, T, D / 64, N).
inline char const* encode(CUtensorMap& map, Matrix const& matrix, Problem const& problem, int rows) {
  EncodeTiled const encode = encode_tiled();
  if (encode == nullptr) return "the CUDA driver has no cuTensorMapEncodeTiled: it must be of CUDA 12 or newer";
  uint64_t const slabs = problem.head_dim / 64;
  uint64_t const dims[4] = {64, static_cast<uint64_t>(problem.num_tokens), slabs,
                            static_cast<uint64_t>(problem.num_heads)};
  uint64_t const strides[3] = {static_cast<uint64_t>(matrix.token_stride) * 2, 128,
                               static_cast<uint64_t>(matrix.head_stride) * 2};
  uint32_t const box[4] = {64, static_cast<uint32_t>(rows), static_cast<uint32_t>(slabs), 1};
  uint32_t const steps[4] = {1, 1, 1, 1};
  CUtensorMapDataType const type =
      problem.dtype == DType::kFloat16 ? CU_TENSOR_MAP_DATA_TYPE_FLOAT16 : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16;
  CUresult const result =
      encode(&map, type, 4, matrix.data, dims, strides, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
             CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  return result == CUDA_SUCCESS
             ? nullptr
             : "cuTensorMapEncodeTiled refused a tensor: pointer and strides must be multiples of 16 bytes";
}

template <class Params>
void set_common(Params& params, Problem const& problem) {
  params.header = static_cast<WorkHeader*>(problem.workspace);
  params.tiles = reinterpret_cast<TileInfo const*>(params.header + 1);
  params.visible_end = problem.visible_end;
  params.in = problem.in;
  params.num_heads = problem.num_heads;
  params.half_alpha = problem.alpha * 0.5f;
}

// Starts `blocks` CTAs on each multiprocessor, possibly before the kernel before it in the stream has ended: the
// kernels wait for that one themselves (griddepcontrol).
template <class Shared, class Params>
char const* launch(void (*kernel)(Params), Params const& params, cudaStream_t stream, int blocks,
                   int threads = kThreads) {
  int device, multiprocessors;
  HSTU_SM90_CHECK(cudaGetDevice(&device));
  HSTU_SM90_CHECK(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device));
  HSTU_SM90_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, sizeof(Shared)));
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(blocks * multiprocessors);
  config.blockDim = dim3(threads);
  config.dynamicSmemBytes = sizeof(Shared);
  config.stream = stream;
  config.attrs = &attribute;
  config.numAttrs = 1;
  HSTU_SM90_CHECK(cudaLaunchKernelEx(&config, kernel, params));
  return nullptr;
}

#define HSTU_SM90_TRY(expression)                                   \
  do {                                                              \
    if (char const* const message_ = (expression)) return message_; \
  } while (0)

template <class Traits>
char const* run_forward(Problem const& problem, cudaStream_t stream) {
  ForwardParams params;
  set_common(params, problem);
  params.out = problem.out;
  params.inv_n = problem.inv_n;
  HSTU_SM90_TRY(encode(params.q, problem.in.q, problem, kHalf));
  HSTU_SM90_TRY(encode(params.k, problem.in.k, problem, Traits::kKeys));
  HSTU_SM90_TRY(encode(params.v, problem.in.v, problem, Traits::kKeys));
  void (*kernel)(ForwardParams) = forward_kernel<Traits>;
  return launch<typename Traits::Shared>(kernel, params, stream, Traits::kBlocks);
}

template <class Traits>
char const* run_backward_kv(void (*kernel)(BackwardKVParams), Problem const& problem, cudaStream_t stream,
                            int threads = kThreads) {
  BackwardKVParams params;
  set_common(params, problem);
  params.grad_k = problem.grad_k;
  params.grad_v = problem.grad_v;
  params.grad_scores = problem.grad_scores;
  params.blocks_a_head = hstu_sm90_grad_score_blocks(problem.num_tokens, problem.num_rows, problem.head_dim);
  params.scale_k = problem.alpha * problem.inv_n * 0.5f;
  params.inv_n = problem.inv_n;
  HSTU_SM90_TRY(encode(params.q, problem.in.q, problem, Traits::kQueries));
  HSTU_SM90_TRY(encode(params.grad_out, problem.in.grad_out, problem, Traits::kQueries));
  HSTU_SM90_TRY(encode(params.k, problem.in.k, problem, kHalf));
  HSTU_SM90_TRY(encode(params.v, problem.in.v, problem, kHalf));
  return launch<typename Traits::Shared>(kernel, params, stream, Traits::kBlocks, threads);
}

template <class Traits>
char const* run_backward_q(void (*kernel)(BackwardQParams), Problem const& problem, cudaStream_t stream) {
  BackwardQParams params;
  set_common(params, problem);
  params.grad_q = problem.grad_q;
  params.scale = problem.alpha * problem.inv_n * 0.5f;
  params.grad_scores = problem.grad_scores;
  params.blocks_a_head = hstu_sm90_grad_score_blocks(problem.num_tokens, problem.num_rows, problem.head_dim);
  HSTU_SM90_TRY(encode(params.q, problem.in.q, problem, kHalf));
  HSTU_SM90_TRY(encode(params.grad_out, problem.in.grad_out, problem, kHalf));
  HSTU_SM90_TRY(encode(params.k, problem.in.k, problem, Traits::kKeys));
  HSTU_SM90_TRY(encode(params.v, problem.in.v, problem, Traits::kKeys));
  return launch<typename Traits::Shared>(kernel, params, stream, 1);
}

}  // namespace hstu_sm90
