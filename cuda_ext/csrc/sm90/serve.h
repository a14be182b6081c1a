// The kernels of a block for the scoring engine, forward only: called by serve_binding.cpp.
//
// A norm is not computed where it stands: y = GLN(x) W^T + b with GLN(x) = (x - mean) rstd w_g + b_g is
//   rstd ((x w_g) W^T - mean c_g) + d_g,   c_g = W w_g,   d_g = W b_g + b.
// Who makes x also writes x w_g, rounded, and sums of x and of its square over some columns; the product's end does the
// rest. T tokens, K columns of x, N of y, G groups, S sums a token.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "params.h"

namespace hstu_sm90 {

constexpr int kGroups = 4;  // at most

struct Sums {
  float sum, squares;
};

struct Product {
  void const* x;        // [T, K], contiguous: x w_g
  void const* weight;   // [N, K], contiguous
  Sums const* sums;     // [T, S]
  int const* group;     // [T]
  float const* affine;  // [G, N, 2]: c_g, d_g
  void* out;            // [T, N]; with `scaled`, y is added to what it holds
  void* scaled;         // [T, N]: out w_g for the next norm; null: none follows
  float const* scale;   // [G, N]: w_g of the next norm
  Sums* out_sums;       // [T, N / 64]
  int num_tokens, depth, num_columns, num_sums, num_groups;
  float eps;
  DType dtype;
};

// A tile of 64 or 128 queries of a row and what is seen from it. Keys are counted in the row, those in the cache first.
struct alignas(16) QueryTile {
  int start;      // token of the first query
  int rows;       // queries, 0: the tile is empty
  int first;      // place of the first query in its row, without the keys in the cache
  int length;     // tokens of the row, without the keys in the cache
  int key_start;  // token where the row starts
  int cached;     // keys in the cache
  int most;       // largest visible_end
  int least[2];   // smallest of each half, large for an empty one
  int row;        // of `pages`
  int unused[2];
};

struct Gated {
  void const* uvqk;        // [T, 4, N, 256], contiguous
  QueryTile const* tiles;  // [num_tiles]
  int const* visible_end;  // [T]
  int const* group;        // [T]
  float const* scale;      // [G, N 256]: w_g of the norm behind
  void const* cache;       // [cache_pages, 2, 64, N 256] with page_stride elements from page to page; null: none
  int const* pages;        // [rows, num_pages]
  void* out;               // [T, N 256]: attention times u, times w_g
  Sums* sums;              // [T, N parts]
  int64_t page_stride;
  int cache_pages, num_pages, num_tiles, num_tokens, num_heads, parts;
  float alpha, inv_n;
  DType dtype;
};

// Null on success, else a message to show.
char const* serve_product(Product const& problem, cudaStream_t stream);
char const* serve_gated(Gated const& problem, cudaStream_t stream);

}  // namespace hstu_sm90
