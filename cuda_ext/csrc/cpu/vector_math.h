// The elementwise and short-vector loops of the CPU kernels, for float and double.
//
// They hold no PyTorch type: `vector_math.cpp` compiles each loop for several x86 instruction sets and the loader picks
// one at run time, so that one build runs on any machine of its architecture and still uses AVX-512 where there is one.
#pragma once

#include <cstdint>

namespace hstu_ops {

// s[j] <- SiLU(alpha * s[j]) * inv_n.
void silu_forward(float* s, int64_t n, float alpha, float inv_n);
void silu_forward(double* s, int64_t n, double alpha, double inv_n);

// From scores s and the gradient of the weights grad: s[j] <- SiLU(alpha * s[j]) * inv_n, and
// grad[j] <- grad[j] * d(SiLU(alpha * s[j]) * inv_n) / d(s[j]).
void silu_backward(float* s, float* grad, int64_t n, float alpha, float inv_n);
void silu_backward(double* s, double* grad, int64_t n, double alpha, double inv_n);

// sum_j x[j] * y[j].
float dot(const float* x, const float* y, int64_t n);
double dot(const double* x, const double* y, int64_t n);

// y[j] += a * x[j].
void add_scaled(float* y, const float* x, float a, int64_t n);
void add_scaled(double* y, const double* x, double a, int64_t n);

// z[j] *= gate[j].
void multiply(float* z, const float* gate, int64_t n);
void multiply(double* z, const double* gate, int64_t n);

// y = (z - mean) * rstd * weight + bias over n elements; writes the mean and the reciprocal standard deviation.
void norm_forward(const float* z, const float* weight, const float* bias, float* y, int64_t n, float eps, float* mean,
                  float* rstd);
void norm_forward(const double* z, const double* weight, const double* bias, double* y, int64_t n, double eps,
                  double* mean, double* rstd);

// Gradient of the norm of one token: grad_z is written, grad_weight and grad_bias are added to.
void norm_backward(const float* grad_y, const float* z, const float* weight, float mean, float rstd, float* grad_z,
                   float* grad_weight, float* grad_bias, int64_t n);
void norm_backward(const double* grad_y, const double* z, const double* weight, double mean, double rstd,
                   double* grad_z, double* grad_weight, double* grad_bias, int64_t n);

}  // namespace hstu_ops
