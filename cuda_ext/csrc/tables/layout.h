// Memory of a dynamic hash table, shared by the CPU and the CUDA kernels (hstu_ops/schemas.py says what they do).
//
// Keys lie apart from vectors. An entry is (id, meta); entries stand in segments of 2048, probed in groups of eight.
// The number of segments grows one by one (linear hashing: W. Litwin, VLDB 1980): segment N takes over half of segment
// N - 2^b, so growth touches keys alone, a few at a time, and nothing that is large is ever copied. Everything a key
// owns is a row: its id, table, count, time, vector and optimizer state, each a column in chunks of 65536 rows.
#pragma once

#include <cmath>
#include <cstdint>

#ifdef __CUDACC__
#define TABLE_FN __host__ __device__ __forceinline__
#else
#define TABLE_FN inline
#endif

namespace hstu_tables {

constexpr int kSegmentBits = 11;  // entries of a segment
constexpr int kGroupBits = 3;     // entries of a group: 128 bytes
constexpr int kBlockBits = 6;     // segments of a block of memory
constexpr int kChunkBits = 16;    // rows of a chunk
constexpr int kSegment = 1 << kSegmentBits;
constexpr int kMaxSlices = 128;  // slices of ids that one launch takes

// Columns of the addresses.
enum Column { kSegments, kIds, kTables, kCounts, kSeen, kWeights, kState, kNumColumns = kState + 2 };

// Meta: bits 0-1 the state, 2-15 the day of a key that waits for admission, 16-31 the table, 32-63 the row, or
// kWaiting and how often the key was seen. All zero bytes are an empty entry, and every id is legal.
constexpr uint64_t kEmpty = 0, kLocked = 1, kDeleted = 2, kTaken = 3;
constexpr uint32_t kWaiting = 0x80000000u;
constexpr uint32_t kDayMask = 0x3FFF;

struct alignas(16) Entry {
  uint64_t id;
  uint64_t meta;
};

TABLE_FN uint64_t state_of(uint64_t meta) { return meta & 3; }
TABLE_FN uint32_t table_of(uint64_t meta) { return static_cast<uint32_t>(meta >> 16) & 0xFFFF; }
TABLE_FN uint32_t row_of(uint64_t meta) { return static_cast<uint32_t>(meta >> 32); }
TABLE_FN uint32_t day_of(uint64_t meta) { return static_cast<uint32_t>(meta >> 2) & kDayMask; }
TABLE_FN uint64_t meta_of(uint32_t row, uint32_t table, uint32_t day) {
  return static_cast<uint64_t>(row) << 32 | static_cast<uint64_t>(table) << 16 | (day & kDayMask) << 2 | kTaken;
}

// The finaliser of SplitMix64 (Steele et al., OOPSLA 2014), as model/data/encoder.py has it.
TABLE_FN uint64_t mix64(uint64_t x) {
  x += 0x9E3779B97F4A7C15ull;
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ull;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBull;
  return x ^ (x >> 31);
}

TABLE_FN uint64_t hash_of(uint64_t id, uint32_t table) {
  return mix64(id ^ static_cast<uint64_t>(table + 1) * 0xD1B54A32D192ED03ull);
}

// The first value of a vector's element: uniform in [-scale, scale), a function of key and seed alone, so that a row
// does not depend on when, where or among which others its key came in. The same bits on every device.
TABLE_FN float initial_value(uint64_t base, int64_t element, float scale) {
  const float unit = static_cast<float>(mix64(base + element) >> 40);
  return (unit * 1.1920928955078125e-7f - 1.0f) * scale;  // 2^-23: both steps are exact
}
TABLE_FN uint64_t initial_base(uint64_t hash, uint64_t seed) { return mix64(hash + seed * 0x9FB21C651E98DF25ull); }
TABLE_FN float initial_scale(int64_t width) { return static_cast<float>(sqrt(3.0 / static_cast<double>(width))); }

// Rounds to bfloat16 up or down with the odds of the bits cut off, drawn by a hash.
TABLE_FN uint16_t round_stochastic(float value, uint64_t base, int64_t element) {
  union {
    float f;
    uint32_t u;
  } bits{value};
  if ((bits.u & 0x7F800000u) == 0x7F800000u) return static_cast<uint16_t>(bits.u >> 16);
  return static_cast<uint16_t>((bits.u + static_cast<uint32_t>(mix64(base + element) & 0xFFFF)) >> 16);
}
TABLE_FN float from_bfloat16(uint16_t value) {
  union {
    uint32_t u;
    float f;
  } bits{static_cast<uint32_t>(value) << 16};
  return bits.f;
}
// To nearest, ties to even; for values that are no NaN, as initial ones are.
TABLE_FN uint16_t to_bfloat16(float value) {
  union {
    float f;
    uint32_t u;
  } bits{value};
  return static_cast<uint16_t>((bits.u + 0x7FFF + ((bits.u >> 16) & 1)) >> 16);
}

// Where everything is.
struct Memory {
  const int64_t* addresses;  // [kNumColumns, capacity]: of blocks of segments, and of chunks
  int64_t capacity;
  uint64_t num_segments;
  uint64_t mask;  // 2^(b + 1) - 1, 2^b <= num_segments < 2^(b + 1)

  TABLE_FN uint64_t segment_of(uint64_t hash) const {
    const uint64_t segment = hash & mask;
    return segment < num_segments ? segment : segment & (mask >> 1);
  }
  TABLE_FN Entry* segment(uint64_t number) const {
    const auto block = reinterpret_cast<Entry*>(addresses[kSegments * capacity + (number >> kBlockBits)]);
    return block + ((number & ((1 << kBlockBits) - 1)) << kSegmentBits);
  }
  template <typename T>
  TABLE_FN T* column(int column, uint32_t row, int64_t width = 1) const {
    const auto chunk = reinterpret_cast<T*>(addresses[column * capacity + (row >> kChunkBits)]);
    return chunk + static_cast<int64_t>(row & ((1 << kChunkBits) - 1)) * width;
  }
};

// The place of a segment where a hash's probe stands after `step` entries.
TABLE_FN int place_of(uint64_t hash, int step) {
  const int group = (static_cast<int>(hash >> 40) + (step >> kGroupBits)) & ((kSegment >> kGroupBits) - 1);
  return group << kGroupBits | ((static_cast<int>(hash >> 48) + step) & ((1 << kGroupBits) - 1));
}

// Whether an entry outlasts a rebuild: a key that waits since before `oldest_day` does not, nor a deleted one.
TABLE_FN bool survives(uint64_t meta, int64_t oldest_day) {
  if (state_of(meta) != kTaken) return false;
  const bool waits = row_of(meta) & kWaiting;
  const uint32_t late = (day_of(meta) - static_cast<uint32_t>(oldest_day)) & kDayMask;
  return !waits || late <= kDayMask / 2;
}

// What a new row gets.
struct Fresh {
  int64_t width;
  int64_t state_widths[2];
  int32_t tick;
  uint64_t seed;
  float scale;
  bool half;  // rows are bfloat16
};

enum Optimizer { kSgd, kRowwiseAdagrad, kAdam };

struct Step {
  int64_t width;
  float lr, eps, beta1, beta2, rest1, rest2, correction1, correction2;  // rest: 1 - beta, correction: 1 - beta^t
  int32_t tick;
  uint64_t seed;
  bool half;
};

}  // namespace hstu_tables
