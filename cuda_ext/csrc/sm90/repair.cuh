// What becomes of results that are not finite: they are computed once more, from what their tokens see and nothing
// else.
//
// The products of a tile also multiply what a mask hides, by a weight of zero; zero times NaN or infinity is NaN, so a
// token that is not finite would spoil the tokens beside it, of its own row and of the next. A sum once spoilt stays
// so: it is enough to look at the results, and only those of poisoned tiles are taken again, slowly, by one warp each.
#pragma once

#include "device.cuh"

namespace hstu_sm90 {

// A lane's columns of a token.
template <class T, int kDim>
struct Columns {
  static constexpr int kCount = kDim / 32;
  float at[kCount];

  __device__ Columns(Matrix const& from, int64_t token, int head) {
    T const* const line = place(from, token, head);
    for (int c = 0; c < kCount; ++c) at[c] = static_cast<float>(line[c]);
  }
  __device__ static T* place(Matrix const& of, int64_t token, int head) {
    return static_cast<T*>(of.data) + token * of.token_stride + head * of.head_stride + threadIdx.x % 32 * kCount;
  }
  __device__ float dot(Columns const& other) const {
    float sum = 0;
    for (int c = 0; c < kCount; ++c) sum = fmaf(at[c], other.at[c], sum);
    for (int lane = 16; lane > 0; lane /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, lane);
    return sum;
  }
};

// The row that `spoilt` rows of a warp are in, and where their half tile begins.
struct Spoilt {
  TileInfo const& tile;
  int head, begin;
  unsigned rows;  // as store_rows returns them
  float half_alpha, scale;
};

// For each spoilt token i: to_i = scale * sum of factor * z_j over the tokens j for which sees(i, j), factor being
// SiLU(alpha x_i . y_j), or with kSlope twice SiLU'(alpha x_i . y_j) times a_i . b_j.
template <class T, int kDim, bool kSlope, class Sees>
__device__ __forceinline__ void repair(Spoilt const& spoilt, Matrix const& x, Matrix const& y, Matrix const& a,
                                       Matrix const& b, Matrix const& z, Matrix const& to, Sees const& sees) {
  int const start = spoilt.tile.row_start, head = spoilt.head;
  __syncwarp();  // what is written here has been written by other lanes
#pragma unroll 1
  for (unsigned todo = spoilt.rows; todo; todo &= todo - 1) {
    int const i = spoilt.begin + threadIdx.x % kWarpgroup / 32 * 16 + __ffs(todo) - 1;
    Columns<T, kDim> const x_i(x, start + i, head), a_i(a, start + i, head);
    float sum[kDim / 32] = {};
#pragma unroll 1
    for (int j = 0; j < spoilt.tile.length; ++j) {
      if (!sees(i, j)) continue;
      float const h = spoilt.half_alpha * x_i.dot(Columns<T, kDim>(y, start + j, head));
      Silu const exact = silu<true>(h);
      float factor = exact.weight;
      if constexpr (kSlope) factor = exact.twice_slope * a_i.dot(Columns<T, kDim>(b, start + j, head));
      Columns<T, kDim> const z_j(z, start + j, head);
      for (int c = 0; c < kDim / 32; ++c) sum[c] = fmaf(factor, z_j.at[c], sum[c]);
    }
    T* const line = Columns<T, kDim>::place(to, start + i, head);
    for (int c = 0; c < kDim / 32; ++c) line[c] = static_cast<T>(sum[c] * spoilt.scale);
  }
}

// Whether query i of a row sees key j.
struct Visible {
  int const* visible_end;  // of the row
  __device__ bool operator()(int i, int j) const { return j < __ldg(visible_end + i) || j == i; }
};

}  // namespace hstu_sm90
