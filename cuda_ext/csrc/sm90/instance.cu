// One pass of one head dim and dtype: compiled with HSTU_PASS (forward or backward), HSTU_HEAD_DIM and HSTU_DTYPE
// (kBFloat16 or kFloat16) defined, so that the passes build side by side.
#include "kernels.h"
#include "launch.cuh"

namespace hstu_sm90 {

template <DType kDType>
using Element = std::conditional_t<kDType == DType::kFloat16, cutlass::half_t, cutlass::bfloat16_t>;

// Tile shapes found best by measurement; docs/log.md has the others.
template <int kDim, class E>
using Forward = ForwardTraits<E, kDim, kDim == 128 ? 128 : 64, kDim == 64 ? 3 : 2, kDim == 64 ? 2 : 1>;
template <int kDim, class E>
using BackwardKVSplit = BackwardKVSplitTraits<E, kDim, 64, 3, 2>;
template <int kDim, class E>
using BackwardKV = BackwardKVTraits<E, kDim, 64, 4>;
template <int kDim, class E>
using BackwardQ = BackwardQTraits<E, kDim, 64, kDim == 256 ? 2 : 3, kDim == 256 ? 1 : 3>;

template <int kDim, DType kDType>
char const* forward(Problem const& problem, cudaStream_t stream) {
  return run_forward<Forward<kDim, Element<kDType>>>(problem, stream);
}

template <int kDim, class E>
using BackwardQKept = BackwardQKeptTraits<E, kDim, 4>;

template <int kDim, DType kDType>
char const* backward(Problem const& problem, cudaStream_t stream) {
  using QTraits = BackwardQ<kDim, Element<kDType>>;
  HSTU_SM90_TRY(run_backward_q<QTraits>(backward_q_kernel<QTraits>, problem, stream));
  if constexpr (kDim == 128) {
    using Traits = BackwardKV<kDim, Element<kDType>>;
    HSTU_SM90_TRY(run_backward_kv<Traits>(backward_kv_kernel<Traits>, problem, stream));
  } else if constexpr (kDim == 256) {
    using Traits = BackwardKVTrioTraits<Element<kDType>, kDim>;
    HSTU_SM90_TRY(run_backward_kv<Traits>(backward_kv_trio_kernel<Traits>, problem, stream, Traits::kThreads));
  } else {
    using Traits = BackwardKVSplit<kDim, Element<kDType>>;
    HSTU_SM90_TRY(run_backward_kv<Traits>(backward_kv_split_kernel<Traits>, problem, stream));
  }
  if constexpr (kDim == 256) {
    using KeptTraits = BackwardQKept<kDim, Element<kDType>>;
    if (problem.grad_scores) return run_backward_q<KeptTraits>(backward_q_kept_kernel<KeptTraits>, problem, stream);
  }
  return nullptr;
}

template char const* HSTU_PASS<HSTU_HEAD_DIM, DType::HSTU_DTYPE>(Problem const&, cudaStream_t);

}  // namespace hstu_sm90
