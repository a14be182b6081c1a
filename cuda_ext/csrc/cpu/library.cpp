// Adds the CPU kernels to the operators that hstu_ops/schemas.py defines.
#include <torch/library.h>

#include "ops.h"

TORCH_LIBRARY_IMPL(hstu_ops, CPU, m) {
  m.impl("mtgr_attention", &hstu_ops::mtgr_attention_cpu);
  m.impl("mtgr_attention_backward", &hstu_ops::mtgr_attention_backward_cpu);
  m.impl("group_layer_norm", &hstu_ops::group_layer_norm_cpu);
  m.impl("group_layer_norm_backward", &hstu_ops::group_layer_norm_backward_cpu);
}
