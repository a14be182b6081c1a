// The dynamic hash table on the CPU. Finding is parallel; what changes keys goes in the order of the ids, and gradients
// of a row are added in the order of their positions, so that results do not depend on the number of threads.
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <cstring>
#include <vector>

#include "layout.h"
#include "operators.h"

#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__) && !defined(__clang__) && __GNUC__ >= 12
#define MULTIVERSION __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define MULTIVERSION
#endif

namespace hstu_tables {
namespace {

constexpr int64_t kGrain = 2048;
constexpr int kAhead = 16;  // ids whose entries are fetched ahead

struct Keys {
  const int64_t* ids;
  c10::IntArrayRef ends, tables;

  size_t slice_of(int64_t i) const { return std::upper_bound(ends.begin(), ends.end(), i) - ends.begin(); }
};

// Calls visit(i, id, table, hash) for i in [begin, end), with the entries of the next ids on their way.
template <typename Visit>
void for_keys(const Memory& memory, const Keys& keys, int64_t begin, int64_t end, const Visit& visit) {
  uint64_t hashes[kAhead];
  uint32_t of_table[kAhead];
  size_t slice = keys.slice_of(begin);
  for (int64_t first = begin; first < end; first += kAhead) {
    const int64_t last = std::min(first + kAhead, end);
    for (int64_t i = first; i < last; ++i) {
      while (i >= keys.ends[slice]) ++slice;
      of_table[i - first] = static_cast<uint32_t>(keys.tables[slice]);
      const uint64_t hash = hash_of(static_cast<uint64_t>(keys.ids[i]), of_table[i - first]);
      hashes[i - first] = hash;
      __builtin_prefetch(memory.segment(memory.segment_of(hash)) + place_of(hash, 0));
    }
    for (int64_t i = first; i < last; ++i)
      visit(i, static_cast<uint64_t>(keys.ids[i]), of_table[i - first], hashes[i - first]);
  }
}

struct Place {
  Entry* entry;   // of the key, or null
  Entry* vacant;  // the first that a new key may take, or null in a segment without one
};

Place probe(const Memory& memory, uint64_t id, uint32_t table, uint64_t hash) {
  Entry* const segment = memory.segment(memory.segment_of(hash));
  Entry* vacant = nullptr;
  for (int step = 0; step < kSegment; ++step) {
    Entry* const entry = segment + place_of(hash, step);
    const uint64_t state = state_of(entry->meta);
    if (state == kTaken) {
      if (entry->id == id && table_of(entry->meta) == table) return {entry, nullptr};
      continue;
    }
    if (vacant == nullptr) vacant = entry;
    if (state == kEmpty) break;
  }
  return {nullptr, vacant};
}

int32_t row_or_none(uint64_t meta) {  // -1 - k of a key that waits, seen k times
  const uint32_t row = row_of(meta);
  return row & kWaiting ? -1 - static_cast<int32_t>(row & ~kWaiting) : static_cast<int32_t>(row);
}

void write_row(const Memory& memory, const Fresh& fresh, uint32_t row, uint64_t id, uint32_t table, uint64_t hash) {
  *memory.column<int64_t>(kIds, row) = static_cast<int64_t>(id);
  *memory.column<int32_t>(kTables, row) = static_cast<int32_t>(table);
  *memory.column<int32_t>(kCounts, row) = 0;
  *memory.column<int32_t>(kSeen, row) = fresh.tick;
  const uint64_t base = initial_base(hash, fresh.seed);
  for (int64_t j = 0; j < fresh.width; ++j) {
    const float value = initial_value(base, j, fresh.scale);
    if (fresh.half) {
      memory.column<uint16_t>(kWeights, row, fresh.width)[j] = to_bfloat16(value);
    } else {
      memory.column<float>(kWeights, row, fresh.width)[j] = value;
    }
  }
  for (int k = 0; k < 2; ++k)
    if (fresh.state_widths[k])
      std::fill_n(memory.column<float>(kState + k, row, fresh.state_widths[k]), fresh.state_widths[k], 0.0f);
}

struct Rows {
  int64_t* counters;  // rows taken since the free ones were listed, entries that are not empty
  const int32_t* free_rows;
  int64_t num_free, next_row;

  uint32_t take() {
    const int64_t ticket = counters[0]++;
    return static_cast<uint32_t>(ticket < num_free ? free_rows[ticket] : next_row + ticket - num_free);
  }
};

// Takes the vacant entry; the row is -1 in `row` when the key only waits.
void claim(const Memory& memory, Rows& rows, Entry* vacant, uint64_t id, uint64_t meta) {
  TORCH_CHECK(vacant != nullptr, "a segment of the table is full: more ids were inserted than space was reserved for");
  if (state_of(vacant->meta) == kEmpty) ++rows.counters[1];
  *vacant = {id, meta};
}

// Counts every key that has no row; those that were not known begin to wait.
void count_waiting(const Memory& memory, Rows& rows, const Keys& keys, int64_t num_ids, uint32_t day) {
  for_keys(memory, keys, 0, num_ids, [&](int64_t, uint64_t id, uint32_t table, uint64_t hash) {
    const Place place = probe(memory, id, table, hash);
    if (place.entry == nullptr) {
      claim(memory, rows, place.vacant, id, meta_of(kWaiting | 1, table, day));
    } else if (row_of(place.entry->meta) & kWaiting) {
      place.entry->meta = meta_of(row_of(place.entry->meta) + 1, table, day);
    }
  });
}

template <typename T>
void gather(const Memory& memory, const Keys& keys, const at::Tensor& rows, const at::Tensor& out, const Fresh& fresh) {
  const int32_t* from = rows.const_data_ptr<int32_t>();
  T* to = static_cast<T*>(out.mutable_data_ptr());
  at::parallel_for(0, rows.numel(), kGrain, [&](int64_t begin, int64_t end) {
    size_t slice = keys.slice_of(begin);
    for (int64_t i = begin; i < end; ++i) {
      T* const target = to + i * fresh.width;
      if (i + kAhead < end && from[i + kAhead] >= 0)
        __builtin_prefetch(memory.column<T>(kWeights, from[i + kAhead], fresh.width));
      if (from[i] >= 0) {
        std::memcpy(target, memory.column<T>(kWeights, from[i], fresh.width), fresh.width * sizeof(T));
        continue;
      }
      while (i >= keys.ends[slice]) ++slice;
      const uint64_t hash = hash_of(static_cast<uint64_t>(keys.ids[i]), static_cast<uint32_t>(keys.tables[slice]));
      const uint64_t base = initial_base(hash, fresh.seed);
      for (int64_t j = 0; j < fresh.width; ++j) {
        const float value = initial_value(base, j, fresh.scale);
        if constexpr (sizeof(T) == 2) {
          target[j] = to_bfloat16(value);
        } else {
          target[j] = value;
        }
      }
    }
  });
}

// Positions sorted by row, those of a row in their order; rows of -1 are left out.
std::vector<uint64_t> sorted_by_row(const at::Tensor& rows, int64_t num_rows) {
  const int32_t* from = rows.const_data_ptr<int32_t>();
  std::vector<uint64_t> items, other;
  items.reserve(rows.numel());
  for (int64_t i = 0; i < rows.numel(); ++i)
    if (from[i] >= 0) items.push_back(static_cast<uint64_t>(from[i]) << 32 | static_cast<uint64_t>(i));
  other.resize(items.size());
  constexpr int kDigit = 11;
  for (int shift = 32; num_rows >> (shift - 32) > 0; shift += kDigit) {
    std::vector<size_t> starts(1 << kDigit, 0);
    for (const uint64_t item : items) ++starts[(item >> shift) & ((1 << kDigit) - 1)];
    size_t sum = 0;
    for (size_t& start : starts) sum += std::exchange(start, sum);
    for (const uint64_t item : items) other[starts[(item >> shift) & ((1 << kDigit) - 1)]++] = item;
    items.swap(other);
  }
  return items;
}

MULTIVERSION void add(float* __restrict sum, const float* __restrict grad, int64_t n) {
  for (int64_t j = 0; j < n; ++j) sum[j] += grad[j];
}

MULTIVERSION void adam(float* __restrict weight, float* __restrict first, float* __restrict second,
                       const float* __restrict grad, const Step& step) {
  const float beta1 = step.beta1, beta2 = step.beta2, eps = step.eps;
  const float rest1 = step.rest1, rest2 = step.rest2;
  // As torch.optim.SparseAdam has it: eps is added to the root before its correction.
  const float rate = step.lr * std::sqrt(step.correction2) / step.correction1;
  for (int64_t j = 0; j < step.width; ++j) {
    first[j] = beta1 * first[j] + rest1 * grad[j];
    second[j] = beta2 * second[j] + rest2 * grad[j] * grad[j];
    weight[j] -= rate * first[j] / (std::sqrt(second[j]) + eps);
  }
}

MULTIVERSION void descend(float* __restrict weight, const float* __restrict grad, int64_t n, float rate) {
  for (int64_t j = 0; j < n; ++j) weight[j] -= rate * grad[j];
}

void apply(const Memory& memory, Optimizer optimizer, const Step& step, uint32_t row, float* weight,
           const float* grad) {
  if (optimizer == kAdam) {
    adam(weight, memory.column<float>(kState, row, step.width), memory.column<float>(kState + 1, row, step.width), grad,
         step);
    return;
  }
  float rate = step.lr;
  if (optimizer == kRowwiseAdagrad) {
    double squares = 0;
    for (int64_t j = 0; j < step.width; ++j) squares += static_cast<double>(grad[j]) * grad[j];
    float* const sum = memory.column<float>(kState, row);
    *sum += static_cast<float>(squares / static_cast<double>(step.width));
    rate = step.lr / (std::sqrt(*sum) + step.eps);
  }
  descend(weight, grad, step.width, rate);
}

void update_row(const Memory& memory, Optimizer optimizer, const Step& step, uint32_t row, const float* grad,
                std::vector<float>& buffer) {
  if (!step.half) return apply(memory, optimizer, step, row, memory.column<float>(kWeights, row, step.width), grad);
  uint16_t* const stored = memory.column<uint16_t>(kWeights, row, step.width);
  for (int64_t j = 0; j < step.width; ++j) buffer[j] = from_bfloat16(stored[j]);
  apply(memory, optimizer, step, row, buffer.data(), grad);
  const uint64_t hash = hash_of(static_cast<uint64_t>(*memory.column<int64_t>(kIds, row)),
                                static_cast<uint32_t>(*memory.column<int32_t>(kTables, row)));
  const uint64_t base = initial_base(hash, step.seed + 1 + static_cast<uint64_t>(step.tick));
  for (int64_t j = 0; j < step.width; ++j) stored[j] = round_stochastic(buffer[j], base, j);
}

}  // namespace

at::Tensor find_cpu(const at::Tensor& addresses, int64_t num_segments, const at::Tensor& ids, c10::IntArrayRef ends,
                    c10::IntArrayRef tables) {
  const Memory memory = memory_of(addresses, num_segments);
  const Keys keys = {ids.const_data_ptr<int64_t>(), ends, tables};
  at::Tensor rows = at::empty({ids.numel()}, ids.options().dtype(at::kInt));
  int32_t* const out = rows.mutable_data_ptr<int32_t>();
  at::parallel_for(0, ids.numel(), kGrain, [&](int64_t begin, int64_t end) {
    for_keys(memory, keys, begin, end, [&](int64_t i, uint64_t id, uint32_t table, uint64_t hash) {
      const Entry* const entry = probe(memory, id, table, hash).entry;
      out[i] = entry == nullptr ? -1 : row_or_none(entry->meta);
    });
  });
  return rows;
}

at::Tensor insert_cpu(const at::Tensor& addresses, int64_t num_segments, const at::Tensor& counters,
                      const at::Tensor& free_rows, int64_t next_row, const at::Tensor& ids, c10::IntArrayRef ends,
                      c10::IntArrayRef tables, int64_t admission, int64_t day, int64_t tick, int64_t seed,
                      int64_t width, c10::IntArrayRef state_widths, bool half) {
  const Memory memory = memory_of(addresses, num_segments);
  const Keys keys = {ids.const_data_ptr<int64_t>(), ends, tables};
  const Fresh fresh = fresh_of(width, state_widths, tick, seed, half);
  Rows rows = {counters.mutable_data_ptr<int64_t>(), free_rows.const_data_ptr<int32_t>(), free_rows.numel(), next_row};
  if (admission > 1) count_waiting(memory, rows, keys, ids.numel(), static_cast<uint32_t>(day));
  at::Tensor found = find_cpu(addresses, num_segments, ids, ends, tables);
  int32_t* const out = found.mutable_data_ptr<int32_t>();
  for_keys(memory, keys, 0, ids.numel(), [&](int64_t i, uint64_t id, uint32_t table, uint64_t hash) {
    if (out[i] >= 0) return;
    const Place place = probe(memory, id, table, hash);
    if (place.entry != nullptr) {
      const uint32_t row = row_of(place.entry->meta);
      if (!(row & kWaiting)) out[i] = static_cast<int32_t>(row);
      if (!(row & kWaiting) || (row & ~kWaiting) < admission) return;
    }
    const uint32_t row = rows.take();
    const uint64_t meta = meta_of(row, table, 0);
    if (place.entry != nullptr) {
      place.entry->meta = meta;
    } else {
      claim(memory, rows, place.vacant, id, meta);
    }
    write_row(memory, fresh, row, id, table, hash);
    out[i] = static_cast<int32_t>(row);
  });
  return found;
}

at::Tensor gather_cpu(const at::Tensor& addresses, const at::Tensor& rows, const at::Tensor& ids, c10::IntArrayRef ends,
                      c10::IntArrayRef tables, int64_t seed, int64_t width, bool half) {
  const Memory memory = memory_of(addresses, 1);
  const Keys keys = {ids.const_data_ptr<int64_t>(), ends, tables};
  const Fresh fresh = fresh_of(width, {}, 0, seed, half);
  at::Tensor out = at::empty({rows.numel(), width}, ids.options().dtype(half ? at::kBFloat16 : at::kFloat));
  if (half) {
    gather<uint16_t>(memory, keys, rows, out, fresh);
  } else {
    gather<float>(memory, keys, rows, out, fresh);
  }
  return out;
}

void update_cpu(const at::Tensor& addresses, const at::Tensor& rows, const at::Tensor& grad, int64_t num_rows,
                int64_t optimizer, double lr, double eps, double beta1, double beta2, int64_t step, int64_t tick,
                int64_t seed, bool half) {
  const Memory memory = memory_of(addresses, 1);
  const Step now = step_of(grad.size(1), lr, eps, beta1, beta2, step, tick, seed, half);
  const std::vector<uint64_t> items = sorted_by_row(rows, num_rows);
  std::vector<size_t> starts;
  for (size_t k = 0; k < items.size(); ++k)
    if (k == 0 || items[k] >> 32 != items[k - 1] >> 32) starts.push_back(k);
  const int64_t num_unique = static_cast<int64_t>(starts.size());
  starts.push_back(items.size());
  const float* const grads = grad.const_data_ptr<float>();
  at::parallel_for(0, num_unique, 256, [&](int64_t begin, int64_t end) {
    std::vector<float> sum(now.width), buffer(now.width);
    for (int64_t k = begin; k < end; ++k) {
      const uint32_t row = static_cast<uint32_t>(items[starts[k]] >> 32);
      const float* total = grads + (items[starts[k]] & 0xFFFFFFFF) * now.width;
      if (starts[k + 1] - starts[k] > 1) {
        std::copy_n(total, now.width, sum.data());
        for (size_t item = starts[k] + 1; item < starts[k + 1]; ++item)
          add(sum.data(), grads + (items[item] & 0xFFFFFFFF) * now.width, now.width);
        total = sum.data();
      }
      update_row(memory, static_cast<Optimizer>(optimizer), now, row, total, buffer);
      *memory.column<int32_t>(kCounts, row) += static_cast<int32_t>(starts[k + 1] - starts[k]);
      *memory.column<int32_t>(kSeen, row) = now.tick;
    }
  });
}

at::Tensor delete_cpu(const at::Tensor& addresses, int64_t num_segments, const at::Tensor& ids, c10::IntArrayRef ends,
                      c10::IntArrayRef tables) {
  const Memory memory = memory_of(addresses, num_segments);
  const Keys keys = {ids.const_data_ptr<int64_t>(), ends, tables};
  at::Tensor rows = at::empty({ids.numel()}, ids.options().dtype(at::kInt));
  int32_t* const out = rows.mutable_data_ptr<int32_t>();
  for_keys(memory, keys, 0, ids.numel(), [&](int64_t i, uint64_t id, uint32_t table, uint64_t hash) {
    Entry* const entry = probe(memory, id, table, hash).entry;
    out[i] = entry == nullptr ? -1 : row_or_none(entry->meta);
    if (entry == nullptr) return;
    entry->meta = kDeleted;
    if (out[i] >= 0) *memory.column<int32_t>(kTables, out[i]) = -1;
  });
  return rows;
}

void split_cpu(const at::Tensor& addresses, const at::Tensor& counters, int64_t first, int64_t last, bool grows,
               int64_t oldest_day) {
  const Memory memory = memory_of(addresses, last);
  int64_t dropped = 0;
  for (int64_t number = first; number < last; ++number) {
    const int64_t bit = grows ? upper_bit(number) : 0;
    Entry* const source = memory.segment(number - bit);
    std::vector<Entry> entries(source, source + kSegment);
    std::fill_n(source, kSegment, Entry{0, 0});
    for (const Entry& entry : entries) {
      if (entry.meta == kEmpty) continue;
      if (!survives(entry.meta, oldest_day)) {
        ++dropped;
        continue;
      }
      const uint64_t hash = hash_of(entry.id, table_of(entry.meta));
      Entry* const target = memory.segment(bit && (hash & bit) ? number : number - bit);
      int step = 0;
      while (target[place_of(hash, step)].meta != kEmpty) ++step;
      target[place_of(hash, step)] = entry;
    }
  }
  counters.mutable_data_ptr<int64_t>()[1] -= dropped;
}

}  // namespace hstu_tables

TORCH_LIBRARY_IMPL(hstu_ops, CPU, m) {
  m.impl("table_find", &hstu_tables::find_cpu);
  m.impl("table_insert", &hstu_tables::insert_cpu);
  m.impl("table_gather", &hstu_tables::gather_cpu);
  m.impl("table_update", &hstu_tables::update_cpu);
  m.impl("table_delete", &hstu_tables::delete_cpu);
  m.impl("table_split", &hstu_tables::split_cpu);
}
