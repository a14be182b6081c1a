// The host side of serve.h: tensor maps, tile shapes and launches.
#include "launch.cuh"
#include "serve_gated.cuh"
#include "serve_product.cuh"

namespace hstu_sm90 {
namespace {

// Starts `grid` CTAs in clusters, possibly before the kernel before it in the stream has ended.
template <class Params>
char const* start(void (*kernel)(Params), Params const& params, dim3 grid, dim3 cluster, int threads, int bytes,
                  cudaStream_t stream) {
  HSTU_SM90_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
  cudaLaunchAttribute attributes[2]{};
  attributes[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[0].val.programmaticStreamSerializationAllowed = 1;
  attributes[1].id = cudaLaunchAttributeClusterDimension;
  attributes[1].val.clusterDim = {cluster.x, cluster.y, cluster.z};
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = dim3(threads);
  config.dynamicSmemBytes = bytes;
  config.stream = stream;
  config.attrs = attributes;
  config.numAttrs = 2;
  HSTU_SM90_CHECK(cudaLaunchKernelEx(&config, kernel, params));
  return nullptr;
}

char const* encode_map(CUtensorMap& map, DType dtype, void const* data, int rank, uint64_t const* dims,
                       uint64_t const* strides, uint32_t const* box) {
  EncodeTiled const encode = encode_tiled();
  if (encode == nullptr) return "the CUDA driver has no cuTensorMapEncodeTiled: it must be of CUDA 12 or newer";
  uint32_t const steps[5] = {1, 1, 1, 1, 1};
  CUtensorMapDataType const type =
      dtype == DType::kFloat16 ? CU_TENSOR_MAP_DATA_TYPE_FLOAT16 : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16;
  CUresult const result =
      encode(&map, type, rank, const_cast<void*>(data), dims, strides, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
             CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  return result == CUDA_SUCCESS ? nullptr : "cuTensorMapEncodeTiled refused a tensor of the scoring engine";
}

// Loads of 64 columns of `box_rows` rows.
char const* encode_rows(CUtensorMap& map, DType dtype, void const* data, int rows, int columns, int box_rows) {
  uint64_t const dims[2] = {static_cast<uint64_t>(columns), static_cast<uint64_t>(rows)};
  uint64_t const strides[1] = {static_cast<uint64_t>(columns) * 2};
  uint32_t const box[2] = {64, static_cast<uint32_t>(box_rows)};
  return encode_map(map, dtype, data, 2, dims, strides, box);
}

template <class Traits>
char const* run_product(Product const& p, cudaStream_t stream) {
  ProductParams params;
  params.p = p;
  HSTU_SM90_TRY(encode_rows(params.x, p.dtype, p.x, p.num_tokens, p.depth, Traits::kRows / Traits::kAlong));
  HSTU_SM90_TRY(
      encode_rows(params.weight, p.dtype, p.weight, p.num_columns, p.depth, Traits::kColumns / Traits::kAcross));
  int const rows = (p.num_tokens + Traits::kRows - 1) / Traits::kRows;
  dim3 const grid((rows + Traits::kAcross - 1) / Traits::kAcross * Traits::kAcross, p.num_columns / Traits::kColumns);
  dim3 const cluster(Traits::kAcross, Traits::kAlong, 1);
  return start(product_kernel<Traits>, params, grid, cluster, Traits::kThreads, sizeof(typename Traits::Shared),
               stream);
}

constexpr int kFew = 640;  // tokens, below which tiles are small so that there are enough of them

template <class Element>
char const* product(Product const& p, cudaStream_t stream) {
  bool const is_few = p.num_tokens < kFew;
  if (p.scaled == nullptr) {
    return is_few ? run_product<ProductTraits<Element, 2, 64, 8, 2, 2, false>>(p, stream)
                  : run_product<ProductTraits<Element, 2, 256, 4, 2, 1, false>>(p, stream);
  }
  return is_few ? run_product<ProductTraits<Element, 1, 64, 12, 2, 2, true>>(p, stream)
                : run_product<ProductTraits<Element, 2, 64, 8, 2, 2, true>>(p, stream);
}

template <class Traits>
char const* run_gated(Gated const& p, cudaStream_t stream) {
  using Element = typename Traits::Element;
  GatedParams params;
  params.p = p;
  int const dim = p.num_heads * Traits::kDim;
  Problem problem{};
  problem.num_tokens = p.num_tokens;
  problem.num_heads = p.num_heads;
  problem.head_dim = Traits::kDim;
  problem.dtype = p.dtype;
  auto const part = [&](int which) {
    auto* const data = const_cast<Element*>(static_cast<Element const*>(p.uvqk)) + which * dim;
    return Matrix{data, 4 * dim, Traits::kDim};
  };
  HSTU_SM90_TRY(encode(params.v, part(1), problem, Traits::kKeys));
  HSTU_SM90_TRY(encode(params.q, part(2), problem, kHalf));
  HSTU_SM90_TRY(encode(params.k, part(3), problem, Traits::kKeys));
  params.cached_k = params.k;
  params.cached_v = params.v;
  if (p.cache != nullptr) {
    uint64_t const d = static_cast<uint64_t>(dim);
    uint64_t const dims[5] = {64, Traits::kKeys, Traits::kDim / 64, static_cast<uint64_t>(p.num_heads),
                              static_cast<uint64_t>(p.cache_pages)};
    uint64_t const strides[4] = {2 * d, 128, 2 * Traits::kDim, 2 * static_cast<uint64_t>(p.page_stride)};
    uint32_t const box[5] = {64, Traits::kKeys, Traits::kDim / 64, 1, 1};
    auto const* const keys = static_cast<Element const*>(p.cache);
    HSTU_SM90_TRY(encode_map(params.cached_k, p.dtype, keys, 5, dims, strides, box));
    HSTU_SM90_TRY(encode_map(params.cached_v, p.dtype, keys + Traits::kKeys * d, 5, dims, strides, box));
  }
  dim3 const grid(Traits::kParts, p.num_tiles, p.num_heads);
  return start(gated_kernel<Traits>, params, grid, dim3(Traits::kParts, 1, 1), kThreads,
               sizeof(typename Traits::Shared), stream);
}

template <class Element>
char const* gated(Gated const& p, cudaStream_t stream) {
  switch (p.parts) {
    case 1:
      return run_gated<GatedTraits<Element, 1>>(p, stream);
    case 2:
      return run_gated<GatedTraits<Element, 2>>(p, stream);
    case 4:
      return run_gated<GatedTraits<Element, 4>>(p, stream);
    default:
      return run_gated<GatedTraits<Element, 8>>(p, stream);
  }
}

}  // namespace

char const* serve_product(Product const& p, cudaStream_t stream) {
  return p.dtype == DType::kFloat16 ? product<cutlass::half_t>(p, stream) : product<cutlass::bfloat16_t>(p, stream);
}

char const* serve_gated(Gated const& p, cudaStream_t stream) {
  return p.dtype == DType::kFloat16 ? gated<cutlass::half_t>(p, stream) : gated<cutlass::bfloat16_t>(p, stream);
}

}  // namespace hstu_sm90
