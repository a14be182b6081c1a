// The passes that api.cu chooses from, one pair a head dim and dtype, each compiled on its own by instance.cu.
#pragma once

#include "params.h"

namespace hstu_sm90 {

// Enqueue a pass over tiles already planned in the workspace; null on success, else a message to show.
template <int kHeadDim, DType kDType>
char const* forward(Problem const& problem, cudaStream_t stream);
template <int kHeadDim, DType kDType>
char const* backward(Problem const& problem, cudaStream_t stream);

}  // namespace hstu_sm90
