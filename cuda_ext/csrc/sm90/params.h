// What the host hands to the sm90a kernels, and the C functions it calls; no PyTorch here.
//
// T tokens of all rows laid end to end, N heads, D head dim, B rows. A tile is 128 consecutive tokens of a row,
// a half tile 64 of them.
#pragma once

#include <cuda.h>
#include <cuda_runtime.h>

#include <cstdint>

namespace hstu_sm90 {

constexpr int kTile = 128;
constexpr int kHalf = 64;
constexpr int kBlock = kHalf * kHalf;  // score gradients of half a tile's queries and as many keys

// A tile of a row; all tiles of a row stand together, rows sorted by length, longest first.
struct alignas(16) TileInfo {
  int row_start;  // token where the row starts
  int first;      // position in the row of the tile's first token
  int length;     // tokens of the row
  int row_tile;   // index of the row's first tile in the list
  int most[2];    // largest visible_end of each half, 0 for an empty half
  int least[2];   // smallest visible_end of each half, INT_MAX for an empty half
  int block;      // the row's first block of score gradients, -1 if they are not kept
};

// The head of the workspace; TileInfo[] follows.
struct alignas(16) WorkHeader {
  int num_tiles;
  int next[4];  // items taken of the forward, the dK/dV and the two dQ kernels; 0 between them
};

// One of q, k, v, grad_out or a result: strides in elements, last stride 1.
struct Matrix {
  void* data;
  int64_t token_stride;
  int64_t head_stride;
};

// What a pass reads.
struct Inputs {
  Matrix q, k, v;
  Matrix grad_out;  // of the backward pass
};

enum class DType : int { kBFloat16 = 0, kFloat16 = 1 };

struct Problem {
  Inputs in;
  Matrix out;                     // of the forward pass
  Matrix grad_q, grad_k, grad_v;  // of the backward pass
  const int* offsets;             // [B + 1]
  const int* visible_end;         // [T]
  bool planned;                   // the workspace holds the plan of these offsets and visible_end
  void* workspace;                // workspace_bytes(T, B), contents need not be kept
  void* grad_scores;              // of the backward pass: grad_score_blocks() blocks a head, and one more
  int64_t num_tokens;
  int num_rows;
  int num_heads;
  int head_dim;
  DType dtype;
  float alpha;
  float inv_n;
};

}  // namespace hstu_sm90

extern "C" {

// Bytes of workspace a call needs.
int64_t hstu_sm90_workspace_bytes(int64_t num_tokens, int64_t num_rows);

// Blocks of 64 x 64 score gradients a head that a backward pass keeps between its kernels: all those of rows up to
// 1024 tokens, if all are of one length; 0 at the head dims that compute them again.
int64_t hstu_sm90_grad_score_blocks(int64_t num_tokens, int64_t num_rows, int head_dim);

// Enqueue the making of a plan: of offsets, visible_end, workspace, num_tokens and num_rows alone. Passes on one stream
// may share it.
const char* hstu_sm90_plan(const hstu_sm90::Problem* problem, cudaStream_t stream);

// Enqueue the forward or the backward pass on `stream`; null on success, else a message to show.
const char* hstu_sm90_forward(const hstu_sm90::Problem* problem, cudaStream_t stream);
const char* hstu_sm90_backward(const hstu_sm90::Problem* problem, cudaStream_t stream);
}
