// hstu_ops::normed_product_sm90 and gated_parts_sm90: checks, and the calls into serve.h.
#include <ATen/ATen.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include <initializer_list>
#include <optional>

#include "serve.h"

namespace {

constexpr int64_t kHeadDim = 256, kPage = 64, kColumns = 64;

bool is_half(at::Tensor const& x) { return x.scalar_type() == at::kBFloat16 || x.scalar_type() == at::kHalf; }

void check(char const* name, at::Tensor const& x, at::Tensor const& like, at::ScalarType type,
           std::initializer_list<int64_t> sizes) {
  TORCH_CHECK_VALUE(x.device() == like.device() && x.is_cuda() && x.scalar_type() == type && x.is_contiguous() &&
                        x.sizes() == at::IntArrayRef(sizes) && reinterpret_cast<uintptr_t>(x.data_ptr()) % 16 == 0,
                    name, " must be contiguous ", type, " ", at::IntArrayRef(sizes), " on ", like.device(), ", got ",
                    x.scalar_type(), " ", x.sizes(), " on ", x.device());
}

hstu_sm90::DType dtype_of(at::Tensor const& x) {
  return x.scalar_type() == at::kHalf ? hstu_sm90::DType::kFloat16 : hstu_sm90::DType::kBFloat16;
}

hstu_sm90::Sums* sums_of(at::Tensor const& x) { return reinterpret_cast<hstu_sm90::Sums*>(x.data_ptr<float>()); }

void normed_product(at::Tensor const& x, at::Tensor const& sums, at::Tensor const& group, at::Tensor const& weight,
                    at::Tensor const& affine, double eps, at::Tensor out, std::optional<at::Tensor> const& scale,
                    std::optional<at::Tensor> const& scaled, std::optional<at::Tensor> const& out_sums) {
  TORCH_CHECK_VALUE(x.dim() == 2 && is_half(x), "x must be [T, K] in bfloat16 or float16, got ", x.sizes(), " ",
                    x.scalar_type());
  TORCH_CHECK_VALUE(weight.dim() == 2 && affine.dim() == 3 && sums.dim() == 3, "weight must be [N, K], affine ",
                    "[G, N, 2], sums [T, S, 2], got ", weight.sizes(), ", ", affine.sizes(), ", ", sums.sizes());
  int64_t const tokens = x.size(0), depth = x.size(1), columns = weight.size(0), groups = affine.size(0);
  TORCH_CHECK_VALUE(depth % 64 == 0 && depth > 0 && columns % kHeadDim == 0 && columns > 0,
                    "K must be a multiple of 64, N of 256, got ", depth, " and ", columns);
  TORCH_CHECK_VALUE(groups <= hstu_sm90::kGroups, "there may be ", hstu_sm90::kGroups, " groups, got ", groups);
  TORCH_CHECK_VALUE(scale.has_value() == scaled.has_value() && scale.has_value() == out_sums.has_value(),
                    "scale, scaled and out_sums go together");
  check("x", x, x, x.scalar_type(), {tokens, depth});
  check("sums", sums, x, at::kFloat, {tokens, sums.size(1), 2});
  check("group", group, x, at::kInt, {tokens});
  check("weight", weight, x, x.scalar_type(), {columns, depth});
  check("affine", affine, x, at::kFloat, {groups, columns, 2});
  check("out", out, x, x.scalar_type(), {tokens, columns});
  if (scale) {
    check("scale", *scale, x, at::kFloat, {groups, columns});
    check("scaled", *scaled, x, x.scalar_type(), {tokens, columns});
    check("out_sums", *out_sums, x, at::kFloat, {tokens, columns / kColumns, 2});
  }
  if (tokens == 0) return;
  c10::cuda::CUDAGuard const guard(x.device());
  hstu_sm90::Product p{};
  p.x = x.const_data_ptr();
  p.weight = weight.const_data_ptr();
  p.sums = sums_of(sums);
  p.group = group.const_data_ptr<int>();
  p.affine = affine.const_data_ptr<float>();
  p.out = out.mutable_data_ptr();
  p.scaled = scaled ? scaled->mutable_data_ptr() : nullptr;
  p.scale = scale ? scale->const_data_ptr<float>() : nullptr;
  p.out_sums = out_sums ? sums_of(*out_sums) : nullptr;
  p.num_tokens = static_cast<int>(tokens);
  p.depth = static_cast<int>(depth);
  p.num_columns = static_cast<int>(columns);
  p.num_sums = static_cast<int>(sums.size(1));
  p.num_groups = static_cast<int>(groups);
  p.eps = static_cast<float>(eps);
  p.dtype = dtype_of(x);
  char const* const message = hstu_sm90::serve_product(p, c10::cuda::getCurrentCUDAStream(x.get_device()));
  TORCH_CHECK(message == nullptr, "normed_product_sm90: ", message);
}

void gated_parts(at::Tensor const& uvqk, at::Tensor const& tiles, at::Tensor const& visible_end,
                 at::Tensor const& group, at::Tensor const& scale, std::optional<at::Tensor> const& cache,
                 std::optional<at::Tensor> const& pages, double alpha, double inv_n, int64_t parts, at::Tensor out,
                 at::Tensor sums) {
  TORCH_CHECK_VALUE(uvqk.dim() == 4 && uvqk.size(1) == 4 && uvqk.size(3) == kHeadDim && is_half(uvqk),
                    "uvqk must be [T, 4, N, 256] in bfloat16 or float16, got ", uvqk.sizes(), " ", uvqk.scalar_type());
  TORCH_CHECK_VALUE(parts == 1 || parts == 2 || parts == 4 || parts == 8, "parts must be 1, 2, 4 or 8, got ", parts);
  TORCH_CHECK_VALUE(tiles.dim() == 2 && scale.dim() == 2, "tiles must be [tiles, 12] and scale [G, N * 256], got ",
                    tiles.sizes(), " and ", scale.sizes());
  TORCH_CHECK_VALUE(cache.has_value() == pages.has_value(), "cache and pages go together");
  int64_t const tokens = uvqk.size(0), heads = uvqk.size(2), dim = heads * kHeadDim;
  check("uvqk", uvqk, uvqk, uvqk.scalar_type(), {tokens, 4, heads, kHeadDim});
  check("tiles", tiles, uvqk, at::kInt, {tiles.size(0), sizeof(hstu_sm90::QueryTile) / sizeof(int)});
  check("visible_end", visible_end, uvqk, at::kInt, {tokens});
  check("group", group, uvqk, at::kInt, {tokens});
  check("scale", scale, uvqk, at::kFloat, {scale.size(0), dim});
  check("out", out, uvqk, uvqk.scalar_type(), {tokens, dim});
  check("sums", sums, uvqk, at::kFloat, {tokens, heads * parts, 2});
  hstu_sm90::Gated p{};
  if (cache) {
    TORCH_CHECK_VALUE(cache->dim() == 4 && cache->size(1) == 2 && cache->size(2) == kPage && cache->size(3) == dim &&
                          cache->stride(3) == 1 && cache->stride(2) == dim && cache->stride(1) == kPage * dim &&
                          cache->scalar_type() == uvqk.scalar_type() && cache->device() == uvqk.device(),
                      "cache must be [pages, 2, 64, ", dim, "] as uvqk, dense but for its first dimension, got ",
                      cache->sizes(), " of strides ", cache->strides());
    TORCH_CHECK_VALUE(pages->dim() == 2, "pages must be [rows, pages], got ", pages->sizes());
    check("pages", *pages, uvqk, at::kInt, {pages->size(0), pages->size(1)});
    p.cache = cache->const_data_ptr();
    p.pages = pages->const_data_ptr<int>();
    p.page_stride = cache->stride(0);
    p.cache_pages = static_cast<int>(cache->size(0));
    p.num_pages = static_cast<int>(pages->size(1));
  }
  if (tokens == 0) return;
  c10::cuda::CUDAGuard const guard(uvqk.device());
  p.uvqk = uvqk.const_data_ptr();
  p.tiles = reinterpret_cast<hstu_sm90::QueryTile const*>(tiles.const_data_ptr<int>());
  p.visible_end = visible_end.const_data_ptr<int>();
  p.group = group.const_data_ptr<int>();
  p.scale = scale.const_data_ptr<float>();
  p.out = out.mutable_data_ptr();
  p.sums = sums_of(sums);
  p.num_tiles = static_cast<int>(tiles.size(0));
  p.num_tokens = static_cast<int>(tokens);
  p.num_heads = static_cast<int>(heads);
  p.parts = static_cast<int>(parts);
  p.alpha = static_cast<float>(alpha);
  p.inv_n = static_cast<float>(inv_n);
  p.dtype = dtype_of(uvqk);
  char const* const message = hstu_sm90::serve_gated(p, c10::cuda::getCurrentCUDAStream(uvqk.get_device()));
  TORCH_CHECK(message == nullptr, "gated_parts_sm90: ", message);
}

}  // namespace

TORCH_LIBRARY_IMPL(hstu_ops, CUDA, m) {
  m.impl("normed_product_sm90", normed_product);
  m.impl("gated_parts_sm90", gated_parts);
}
