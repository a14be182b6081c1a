// See vector_math.h. Every loop is plain C++ that GCC and Clang vectorise; the exponential is a polynomial, so that no
// vector library is needed.
#include "vector_math.h"

#include <cmath>
#include <cstring>

#if defined(__GNUC__) && !defined(__clang__)
// Lets the clamps below become minimum and maximum instructions. NaN still spreads: each result has its input as a
// factor.
#pragma GCC optimize("finite-math-only", "no-signed-zeros")
#endif

#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__) && !defined(__clang__) && __GNUC__ >= 12
#define MULTIVERSION __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#elif defined(__x86_64__) && defined(__linux__) && defined(__GNUC__)
#define MULTIVERSION __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define MULTIVERSION
#endif
#define INLINE static inline __attribute__((always_inline))

namespace hstu_ops {
namespace {

// exp(x) to about 1 ulp: 2^n * exp(r), r in [-ln 2 / 2, ln 2 / 2], by a degree 6 polynomial. Clamped so that the result
// stays a normal number; what SiLU makes of exp(-88) is 0 in float either way.
INLINE float exponential(float x) {
  x = x < -87.0f ? -87.0f : x;
  x = x > 88.0f ? 88.0f : x;
  const float shift = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer kept in the low bits
  const float shifted = x * 1.44269504088896341f + shift;
  const float n = shifted - shift;
  float r = x - n * 0.693359375f;
  r = r + n * 2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.0f;
  const int32_t power = __builtin_bit_cast(int32_t, shifted);
  const int32_t bits = __builtin_bit_cast(int32_t, p) + (power << 23);
  return __builtin_bit_cast(float, bits);
}

INLINE double exponential(double x) { return std::exp(x); }

template <typename T>
INLINE void silu_forward_loop(T* __restrict s, int64_t n, T alpha, T inv_n) {
#pragma omp simd
  for (int64_t j = 0; j < n; ++j) {
    const T x = alpha * s[j];
    s[j] = x * inv_n / (T(1) + exponential(-x));
  }
}

template <typename T>
INLINE void silu_backward_loop(T* __restrict s, T* __restrict grad, int64_t n, T alpha, T inv_n) {
  const T scale = alpha * inv_n;
#pragma omp simd
  for (int64_t j = 0; j < n; ++j) {
    const T x = alpha * s[j];
    const T sigmoid = T(1) / (T(1) + exponential(-x));
    const T silu = x * sigmoid;
    s[j] = silu * inv_n;
    grad[j] *= scale * (sigmoid + silu * (T(1) - sigmoid));
  }
}

template <typename T>
INLINE T dot_loop(const T* __restrict x, const T* __restrict y, int64_t n) {
  T sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t j = 0; j < n; ++j) sum += x[j] * y[j];
  return sum;
}

template <typename T>
INLINE void add_scaled_loop(T* __restrict y, const T* __restrict x, T a, int64_t n) {
#pragma omp simd
  for (int64_t j = 0; j < n; ++j) y[j] += a * x[j];
}

template <typename T>
INLINE void multiply_loop(T* __restrict z, const T* __restrict gate, int64_t n) {
#pragma omp simd
  for (int64_t j = 0; j < n; ++j) z[j] *= gate[j];
}

template <typename T>
INLINE void norm_forward_loop(const T* __restrict z, const T* __restrict weight, const T* __restrict bias,
                              T* __restrict y, int64_t n, T eps, T* mean, T* rstd) {
  T sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t j = 0; j < n; ++j) sum += z[j];
  const T m = sum / static_cast<T>(n);
  T squares = 0;
#pragma omp simd reduction(+ : squares)
  for (int64_t j = 0; j < n; ++j) squares += (z[j] - m) * (z[j] - m);
  const T r = T(1) / std::sqrt(squares / static_cast<T>(n) + eps);
#pragma omp simd
  for (int64_t j = 0; j < n; ++j) y[j] = (z[j] - m) * r * weight[j] + bias[j];
  *mean = m;
  *rstd = r;
}

template <typename T>
INLINE void norm_backward_loop(const T* __restrict grad_y, const T* __restrict z, const T* __restrict weight, T mean,
                               T rstd, T* __restrict grad_z, T* __restrict grad_weight, T* __restrict grad_bias,
                               int64_t n) {
  T sum = 0, sum_normed = 0;
#pragma omp simd reduction(+ : sum, sum_normed)
  for (int64_t j = 0; j < n; ++j) {
    const T normed = (z[j] - mean) * rstd;
    const T scaled = grad_y[j] * weight[j];
    sum += scaled;
    sum_normed += scaled * normed;
    grad_weight[j] += grad_y[j] * normed;
    grad_bias[j] += grad_y[j];
  }
  const T average = sum / static_cast<T>(n);
  const T average_normed = sum_normed / static_cast<T>(n);
#pragma omp simd
  for (int64_t j = 0; j < n; ++j) {
    const T normed = (z[j] - mean) * rstd;
    grad_z[j] = rstd * (grad_y[j] * weight[j] - average - normed * average_normed);
  }
}

}  // namespace

MULTIVERSION void silu_forward(float* s, int64_t n, float alpha, float inv_n) { silu_forward_loop(s, n, alpha, inv_n); }
void silu_forward(double* s, int64_t n, double alpha, double inv_n) { silu_forward_loop(s, n, alpha, inv_n); }

MULTIVERSION void silu_backward(float* s, float* grad, int64_t n, float alpha, float inv_n) {
  silu_backward_loop(s, grad, n, alpha, inv_n);
}
void silu_backward(double* s, double* grad, int64_t n, double alpha, double inv_n) {
  silu_backward_loop(s, grad, n, alpha, inv_n);
}

MULTIVERSION float dot(const float* x, const float* y, int64_t n) { return dot_loop(x, y, n); }
double dot(const double* x, const double* y, int64_t n) { return dot_loop(x, y, n); }

MULTIVERSION void add_scaled(float* y, const float* x, float a, int64_t n) { add_scaled_loop(y, x, a, n); }
void add_scaled(double* y, const double* x, double a, int64_t n) { add_scaled_loop(y, x, a, n); }

MULTIVERSION void multiply(float* z, const float* gate, int64_t n) { multiply_loop(z, gate, n); }
void multiply(double* z, const double* gate, int64_t n) { multiply_loop(z, gate, n); }

MULTIVERSION void norm_forward(const float* z, const float* weight, const float* bias, float* y, int64_t n, float eps,
                               float* mean, float* rstd) {
  norm_forward_loop(z, weight, bias, y, n, eps, mean, rstd);
}
void norm_forward(const double* z, const double* weight, const double* bias, double* y, int64_t n, double eps,
                  double* mean, double* rstd) {
  norm_forward_loop(z, weight, bias, y, n, eps, mean, rstd);
}

MULTIVERSION void norm_backward(const float* grad_y, const float* z, const float* weight, float mean, float rstd,
                                float* grad_z, float* grad_weight, float* grad_bias, int64_t n) {
  norm_backward_loop(grad_y, z, weight, mean, rstd, grad_z, grad_weight, grad_bias, n);
}
void norm_backward(const double* grad_y, const double* z, const double* weight, double mean, double rstd,
                   double* grad_z, double* grad_weight, double* grad_bias, int64_t n) {
  norm_backward_loop(grad_y, z, weight, mean, rstd, grad_z, grad_weight, grad_bias, n);
}

}  // namespace hstu_ops
