// What the operators of both devices make of their arguments.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/ArrayRef.h>
#include <c10/util/Exception.h>

#include <cmath>

#include "layout.h"

namespace hstu_tables {

// The highest bit of a number of segments: what segment `number` was split from is `number - upper_bit(number)`.
inline int64_t upper_bit(int64_t number) { return int64_t{1} << (63 - __builtin_clzll(number)); }

inline Memory memory_of(const at::Tensor& addresses, int64_t num_segments) {
  return {addresses.const_data_ptr<int64_t>(), addresses.size(1), static_cast<uint64_t>(num_segments),
          static_cast<uint64_t>(2 * upper_bit(num_segments) - 1)};
}

inline Fresh fresh_of(int64_t width, c10::IntArrayRef state_widths, int64_t tick, int64_t seed, bool half) {
  return {width,
          {state_widths.size() > 0 ? state_widths[0] : 0, state_widths.size() > 1 ? state_widths[1] : 0},
          static_cast<int32_t>(tick),
          static_cast<uint64_t>(seed),
          initial_scale(width),
          half};
}

inline Step step_of(int64_t width, double lr, double eps, double beta1, double beta2, int64_t step, int64_t tick,
                    int64_t seed, bool half) {
  return {width,
          static_cast<float>(lr),
          static_cast<float>(eps),
          static_cast<float>(beta1),
          static_cast<float>(beta2),
          static_cast<float>(1 - beta1),  // in double: 1 - 0.999f is off by 5e-5
          static_cast<float>(1 - beta2),
          static_cast<float>(1 - std::pow(beta1, static_cast<double>(step))),
          static_cast<float>(1 - std::pow(beta2, static_cast<double>(step))),
          static_cast<int32_t>(tick),
          static_cast<uint64_t>(seed),
          half};
}

}  // namespace hstu_tables
