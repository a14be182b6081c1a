// Row-major matrix products over the BLAS that PyTorch itself carries (MKL in its x86 wheels). Inside a parallel region
// BLAS runs on the calling thread.
#pragma once

#include <cstdint>

extern "C" {
void sgemm_(const char* transa, const char* transb, const int* m, const int* n, const int* k, const float* alpha,
            const float* a, const int* lda, const float* b, const int* ldb, const float* beta, float* c,
            const int* ldc);
void dgemm_(const char* transa, const char* transb, const int* m, const int* n, const int* k, const double* alpha,
            const double* a, const int* lda, const double* b, const int* ldb, const double* beta, double* c,
            const int* ldc);
}

namespace hstu_ops {

inline void blas_gemm(char ta, char tb, int m, int n, int k, const float* a, int lda, const float* b, int ldb,
                      float beta, float* c, int ldc) {
  const float one = 1;
  sgemm_(&ta, &tb, &m, &n, &k, &one, a, &lda, b, &ldb, &beta, c, &ldc);
}

inline void blas_gemm(char ta, char tb, int m, int n, int k, const double* a, int lda, const double* b, int ldb,
                      double beta, double* c, int ldc) {
  const double one = 1;
  dgemm_(&ta, &tb, &m, &n, &k, &one, a, &lda, b, &ldb, &beta, c, &ldc);
}

// A row-major matrix, or a view of one: element (i, j) is data[i * stride + j].
template <typename T>
struct Matrix {
  T* data;
  int64_t stride;

  T* row(int64_t i) const { return data + i * stride; }
  Matrix rows_from(int64_t i) const { return {row(i), stride}; }
};

enum class Transpose { kNo, kYes };

// C[m, n] = op(A)[m, k] op(B)[k, n] + beta * C. BLAS is column-major, so it is asked for C^T = op(B)^T op(A)^T.
template <typename T>
void multiply_matrices(Matrix<T> a, Transpose transpose_a, Matrix<T> b, Transpose transpose_b, Matrix<T> c, int64_t m,
                       int64_t n, int64_t k, T beta) {
  if (m == 0 || n == 0 || k == 0) return;
  blas_gemm(transpose_b == Transpose::kYes ? 'T' : 'N', transpose_a == Transpose::kYes ? 'T' : 'N', static_cast<int>(n),
            static_cast<int>(m), static_cast<int>(k), b.data, static_cast<int>(b.stride), a.data,
            static_cast<int>(a.stride), beta, c.data, static_cast<int>(c.stride));
}

}  // namespace hstu_ops
