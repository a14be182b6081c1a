// The C functions of params.h: make the plan, then run the pass of the problem's head dim and dtype.
#include "kernels.h"
#include "plan.cuh"

namespace hstu_sm90 {
namespace {

using Pass = char const* (*)(Problem const&, cudaStream_t);

char const* plan(Problem const& problem, cudaStream_t stream) {
  auto* const header = static_cast<WorkHeader*>(problem.workspace);
  int64_t const blocks = hstu_sm90_grad_score_blocks(problem.num_tokens, problem.num_rows, 256);
  plan_kernel<<<problem.num_rows, kPlanThreads, 0, stream>>>(problem.offsets, problem.visible_end, problem.num_rows,
                                                             blocks, header, reinterpret_cast<TileInfo*>(header + 1));
  cudaError_t const error = cudaGetLastError();
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

char const* run(Pass const (&passes)[3][2], Problem const& problem, cudaStream_t stream) {
  int const dim = problem.head_dim == 64 ? 0 : problem.head_dim == 128 ? 1 : problem.head_dim == 256 ? 2 : -1;
  if (dim < 0) return "head dim must be 64, 128 or 256";
  if (!problem.planned) {
    if (char const* const message = plan(problem, stream)) return message;
  }
  return passes[dim][static_cast<int>(problem.dtype)](problem, stream);
}

constexpr DType kBF = DType::kBFloat16, kHF = DType::kFloat16;
constexpr Pass kForward[3][2] = {{forward<64, kBF>, forward<64, kHF>},
                                 {forward<128, kBF>, forward<128, kHF>},
                                 {forward<256, kBF>, forward<256, kHF>}};
constexpr Pass kBackward[3][2] = {{backward<64, kBF>, backward<64, kHF>},
                                  {backward<128, kBF>, backward<128, kHF>},
                                  {backward<256, kBF>, backward<256, kHF>}};

}  // namespace
}  // namespace hstu_sm90

int64_t hstu_sm90_workspace_bytes(int64_t num_tokens, int64_t num_rows) {
  int64_t const most_tiles = num_tokens / hstu_sm90::kTile + num_rows;
  return sizeof(hstu_sm90::WorkHeader) + most_tiles * sizeof(hstu_sm90::TileInfo);
}

int64_t hstu_sm90_grad_score_blocks(int64_t num_tokens, int64_t num_rows, int head_dim) {
  return head_dim == 256 ? (num_tokens / hstu_sm90::kHalf + num_rows) * (1024 / hstu_sm90::kHalf) : 0;
}

char const* hstu_sm90_plan(hstu_sm90::Problem const* problem, cudaStream_t stream) {
  return hstu_sm90::plan(*problem, stream);
}

char const* hstu_sm90_forward(hstu_sm90::Problem const* problem, cudaStream_t stream) {
  return hstu_sm90::run(hstu_sm90::kForward, *problem, stream);
}

char const* hstu_sm90_backward(hstu_sm90::Problem const* problem, cudaStream_t stream) {
  return hstu_sm90::run(hstu_sm90::kBackward, *problem, stream);
}
