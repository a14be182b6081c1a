// The dynamic hash table's kernels for NVIDIA GPUs: keys. A thread takes one id. A new key locks its entry by a compare
// and swap of the entry's meta, writes the id, and publishes the meta after it; who meets a locked entry tries again in
// the warp's next round, so that no lane waits for another of its own warp.
#include "launch.h"

namespace hstu_tables {
namespace {

constexpr int kThreads = 256;

__device__ __forceinline__ int table_at(const Slices& slices, int64_t i) {
  int low = 0, high = slices.count - 1;
  while (low < high) {
    const int middle = (low + high) / 2;
    if (i < slices.ends[middle]) {
      high = middle;
    } else {
      low = middle + 1;
    }
  }
  return slices.tables[low];
}

// One read of all 16 bytes, so that a meta is never seen with the id before it.
__device__ __forceinline__ Entry load(const Entry* entry) {
  unsigned __int128 bits;
  asm volatile("ld.relaxed.gpu.global.b128 %0, [%1];" : "=q"(bits) : "l"(entry) : "memory");
  return {static_cast<uint64_t>(bits), static_cast<uint64_t>(bits >> 64)};
}

__device__ __forceinline__ uint64_t swap(uint64_t* at, uint64_t expected, uint64_t wanted) {
  return atomicCAS(reinterpret_cast<unsigned long long*>(at), expected, wanted);
}

struct Sight {
  Entry* entry;   // of the key
  uint64_t meta;  // of the key, or of the vacant entry
  Entry* vacant;
  bool locked;  // met an entry that is being written: look again
};

__device__ __forceinline__ Sight probe(const Memory& memory, uint64_t id, uint32_t table, uint64_t hash) {
  Entry* const segment = memory.segment(memory.segment_of(hash));
  Sight sight = {nullptr, kEmpty, nullptr, false};
  for (int step = 0; step < kSegment; ++step) {
    Entry* const at = segment + place_of(hash, step);
    const Entry entry = load(at);
    const uint64_t state = state_of(entry.meta);
    if (state == kTaken) {
      if (entry.id == id && table_of(entry.meta) == table) return {at, entry.meta, nullptr, false};
      continue;
    }
    if (state == kLocked) {
      sight.locked = true;
      return sight;
    }
    if (sight.vacant == nullptr) {
      sight.vacant = at;
      sight.meta = entry.meta;
    }
    if (state == kEmpty) break;
  }
  return sight;
}

__device__ __forceinline__ int32_t row_or_none(uint64_t meta) {  // -1 - k of a key that waits, seen k times
  const uint32_t row = row_of(meta);
  return row & kWaiting ? -1 - static_cast<int32_t>(row & ~kWaiting) : static_cast<int32_t>(row);
}

__global__ void find_kernel(Memory memory, const int64_t* __restrict__ ids, const __grid_constant__ Slices slices,
                            int64_t first, int64_t last, int32_t* __restrict__ rows) {
  const int64_t i = first + static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= last) return;
  const auto id = static_cast<uint64_t>(ids[i]);
  const uint32_t table = table_at(slices, i);
  const Sight sight = probe(memory, id, table, hash_of(id, table));
  rows[i] = sight.entry == nullptr ? -1 : row_or_none(sight.meta);
}

__global__ void count_kernel(Memory memory, Rows space, const int64_t* __restrict__ ids,
                             const __grid_constant__ Slices slices, int64_t first, int64_t last, uint32_t day) {
  const int64_t i = first + static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= last) return;
  const auto id = static_cast<uint64_t>(ids[i]);
  const uint32_t table = table_at(slices, i);
  const uint64_t hash = hash_of(id, table);
  for (;;) {  // a key that only waits is written in two steps: the id before the count
    const Sight sight = probe(memory, id, table, hash);
    if (sight.locked) continue;
    if (sight.entry != nullptr) {
      if (!(row_of(sight.meta) & kWaiting)) return;
      const uint64_t next = meta_of(row_of(sight.meta) + 1, table, day);
      if (swap(&sight.entry->meta, sight.meta, next) == sight.meta) return;
    } else {
      if (sight.vacant == nullptr) __trap();
      if (swap(&sight.vacant->meta, sight.meta, kLocked) != sight.meta) continue;
      sight.vacant->id = id;
      __threadfence();
      atomicExch(reinterpret_cast<unsigned long long*>(&sight.vacant->meta), meta_of(kWaiting | 1, table, day));
      if (sight.meta == kEmpty) atomicAdd(reinterpret_cast<unsigned long long*>(space.counters + 1), 1ull);
      return;
    }
  }
}

// Rows for the lanes that need one, by one addition for the warp.
__device__ __forceinline__ uint32_t take_row(const Rows& space, bool needs) {
  const unsigned wanting = __ballot_sync(0xFFFFFFFFu, needs);
  if (wanting == 0) return 0;
  const int leader = __ffs(wanting) - 1, lane = threadIdx.x & 31;
  unsigned long long ticket = 0;
  if (lane == leader)
    ticket = atomicAdd(reinterpret_cast<unsigned long long*>(space.counters),
                       static_cast<unsigned long long>(__popc(wanting)));
  ticket = __shfl_sync(0xFFFFFFFFu, ticket, leader) + __popc(wanting & ((1u << lane) - 1));
  if (!needs) return 0;
  return static_cast<uint32_t>(static_cast<int64_t>(ticket) < space.num_free
                                   ? space.free_rows[ticket]
                                   : space.next_row + static_cast<int64_t>(ticket) - space.num_free);
}

// The vector of a new row, written by the whole warp.
__device__ void write_vector(const Memory& memory, const Fresh& fresh, uint32_t row, uint64_t base) {
  const int lane = threadIdx.x & 31;
  for (int64_t j = lane; j < fresh.width; j += 32) {
    const float value = initial_value(base, j, fresh.scale);
    if (fresh.half) {
      memory.column<uint16_t>(kWeights, row, fresh.width)[j] = to_bfloat16(value);
    } else {
      memory.column<float>(kWeights, row, fresh.width)[j] = value;
    }
  }
  for (int k = 0; k < 2; ++k)
    for (int64_t j = lane; j < fresh.state_widths[k]; j += 32)
      memory.column<float>(kState + k, row, fresh.state_widths[k])[j] = 0.0f;
}

__global__ void insert_kernel(Memory memory, Rows space, const int64_t* __restrict__ ids,
                              const __grid_constant__ Slices slices, int64_t first, int64_t last, int64_t admission,
                              Fresh fresh, int32_t* __restrict__ rows) {
  const int64_t i = first + static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  const uint64_t id = i < last ? static_cast<uint64_t>(ids[i]) : 0;
  const uint32_t table = i < last ? table_at(slices, i) : 0;
  const uint64_t hash = hash_of(id, table);
  bool open = i < last;
  int32_t row = -1;
  while (__any_sync(0xFFFFFFFFu, open)) {
    Entry* claimed = nullptr;
    bool was_empty = false;
    if (open) {
      const Sight sight = probe(memory, id, table, hash);
      if (sight.entry != nullptr) {
        row = row_or_none(sight.meta);
        open = row < 0 && (row_of(sight.meta) & ~kWaiting) >= admission;
        if (open && swap(&sight.entry->meta, sight.meta, kLocked) == sight.meta) claimed = sight.entry;
      } else if (!sight.locked && admission > 1) {
        open = false;  // cannot be: it was counted before
      } else if (!sight.locked) {
        if (sight.vacant == nullptr) __trap();
        if (swap(&sight.vacant->meta, sight.meta, kLocked) == sight.meta) {
          claimed = sight.vacant;
          was_empty = sight.meta == kEmpty;
        }
      }
    }
    __syncwarp();
    const uint32_t taken = take_row(space, claimed != nullptr);
    if (claimed != nullptr) {
      row = static_cast<int32_t>(taken);
      claimed->id = id;
      __threadfence();
      atomicExch(reinterpret_cast<unsigned long long*>(&claimed->meta), meta_of(taken, table, 0));
      open = false;
      *memory.column<int64_t>(kIds, taken) = static_cast<int64_t>(id);
      *memory.column<int32_t>(kTables, taken) = static_cast<int32_t>(table);
      *memory.column<int32_t>(kCounts, taken) = 0;
      *memory.column<int32_t>(kSeen, taken) = fresh.tick;
    }
    const unsigned emptied = __ballot_sync(0xFFFFFFFFu, was_empty);
    if (emptied != 0 && (threadIdx.x & 31) == 0)
      atomicAdd(reinterpret_cast<unsigned long long*>(space.counters + 1),
                static_cast<unsigned long long>(__popc(emptied)));
    unsigned fresh_lanes = __ballot_sync(0xFFFFFFFFu, claimed != nullptr);
    while (fresh_lanes != 0) {
      const int lane = __ffs(fresh_lanes) - 1;
      fresh_lanes &= fresh_lanes - 1;
      write_vector(memory, fresh, __shfl_sync(0xFFFFFFFFu, taken, lane),
                   __shfl_sync(0xFFFFFFFFu, initial_base(hash, fresh.seed), lane));
    }
  }
  if (i < last) rows[i] = row;
}

__global__ void delete_kernel(Memory memory, const int64_t* __restrict__ ids, const __grid_constant__ Slices slices,
                              int64_t first, int64_t last, int32_t* __restrict__ rows) {
  const int64_t i = first + static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= last) return;
  const auto id = static_cast<uint64_t>(ids[i]);
  const uint32_t table = table_at(slices, i);
  const Sight sight = probe(memory, id, table, hash_of(id, table));
  int32_t row = -1;
  if (sight.entry != nullptr && swap(&sight.entry->meta, sight.meta, kDeleted) == sight.meta) {  // once a key
    row = row_or_none(sight.meta);
    if (row >= 0) *memory.column<int32_t>(kTables, row) = -1;
  }
  rows[i] = row;
}

// A block takes the entries of a segment into registers, clears it, and lays them into it and, where it grows, into its
// new half. It owns both and all keys differ, so that an entry is taken by one compare and swap.
__global__ void split_kernel(Memory memory, int64_t* counters, int64_t first, int64_t bit, int64_t oldest_day) {
  constexpr int kEach = kSegment / kThreads;
  const int64_t number = first + blockIdx.x;
  Entry* const source = memory.segment(number - bit);
  Entry* const half = memory.segment(number);
  Entry entries[kEach];
#pragma unroll
  for (int k = 0; k < kEach; ++k) {
    entries[k] = source[k * kThreads + threadIdx.x];
    source[k * kThreads + threadIdx.x] = {0, 0};
  }
  __syncthreads();
  int dropped = 0;
#pragma unroll
  for (int k = 0; k < kEach; ++k) {
    const Entry entry = entries[k];
    if (entry.meta == kEmpty) continue;
    if (!survives(entry.meta, oldest_day)) {
      ++dropped;
      continue;
    }
    const uint64_t hash = hash_of(entry.id, table_of(entry.meta));
    Entry* const target = bit != 0 && (hash & bit) != 0 ? half : source;
    for (int step = 0;; ++step) {
      Entry* const at = target + place_of(hash, step);
      if (swap(&at->meta, kEmpty, entry.meta) == kEmpty) {
        at->id = entry.id;
        break;
      }
    }
  }
  if (dropped != 0)
    atomicAdd(reinterpret_cast<unsigned long long*>(counters + 1), -static_cast<unsigned long long>(dropped));
}

unsigned blocks_for(int64_t count) { return static_cast<unsigned>((count + kThreads - 1) / kThreads); }

}  // namespace

void launch_find(const Memory& memory, const int64_t* ids, const Slices& slices, int64_t first, int64_t last,
                 int32_t* rows, cudaStream_t stream) {
  find_kernel<<<blocks_for(last - first), kThreads, 0, stream>>>(memory, ids, slices, first, last, rows);
}

void launch_insert(const Memory& memory, const Rows& space, const int64_t* ids, const Slices& slices, int64_t first,
                   int64_t last, int64_t admission, uint32_t day, const Fresh& fresh, int32_t* rows,
                   cudaStream_t stream) {
  const unsigned blocks = blocks_for(last - first);
  if (admission > 1) count_kernel<<<blocks, kThreads, 0, stream>>>(memory, space, ids, slices, first, last, day);
  insert_kernel<<<blocks, kThreads, 0, stream>>>(memory, space, ids, slices, first, last, admission, fresh, rows);
}

void launch_delete(const Memory& memory, const int64_t* ids, const Slices& slices, int64_t first, int64_t last,
                   int32_t* rows, cudaStream_t stream) {
  delete_kernel<<<blocks_for(last - first), kThreads, 0, stream>>>(memory, ids, slices, first, last, rows);
}

void launch_split(const Memory& memory, int64_t* counters, int64_t first, int64_t last, int64_t bit, int64_t oldest_day,
                  cudaStream_t stream) {
  split_kernel<<<static_cast<unsigned>(last - first), kThreads, 0, stream>>>(memory, counters, first, bit, oldest_day);
}

}  // namespace hstu_tables
