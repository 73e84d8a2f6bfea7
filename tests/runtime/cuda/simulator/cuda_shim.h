// Runs CUDA C kernels on the CPU, to test them where there is no GPU: one fiber a CUDA thread, one OS thread a block at
// a time. Barriers and warp collectives are meeting points of fibers. A seed shuffles the order of blocks, of warps and
// of the lanes in a warp, and breaks warps off at collectives, so that a missing barrier shows as a wrong answer.
// Divergent barriers, lanes that have exited, different masks and deadlocks are reported by name.
// What it cannot show: races finer than a barrier or collective, and time.
#pragma once
#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <mutex>
#include <source_location>
#include <string>
#include <thread>
#include <type_traits>
#include <utility>
#include <vector>
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif
#if !defined(__x86_64__) || defined(METAH_SHIM_UCONTEXT)
#define METAH_SHIM_UCONTEXT 1
#include <ucontext.h>
#endif

#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))
#define __shared__ static thread_local

struct uint2 { uint32_t x, y; };
struct alignas(16) uint4 { uint32_t x, y, z, w; };

namespace shim {

enum class State { ready, barrier, warp, done };
struct Index { unsigned x = 0, y = 0, z = 0; };
struct Payload { uint32_t words[6]; };

// ---- fibers --------------------------------------------------------------------------------------------------------

#ifdef METAH_SHIM_UCONTEXT
struct Context { ucontext_t saved; };
inline void switch_to(Context& from, Context& to) { swapcontext(&from.saved, &to.saved); }
inline void prepare(Context& context, char* stack, size_t size, void (*entry)()) {
  getcontext(&context.saved);
  context.saved.uc_stack.ss_sp = stack;
  context.saved.uc_stack.ss_size = size;
  context.saved.uc_link = nullptr;
  makecontext(&context.saved, entry, 0);
}
#else
struct Context { void* top = nullptr; };
extern "C" void metah_shim_switch(void** save, void* load);
asm(R"(
.text
.weak metah_shim_switch
.type metah_shim_switch, @function
metah_shim_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size metah_shim_switch, . - metah_shim_switch
)");
inline void switch_to(Context& from, Context& to) { metah_shim_switch(&from.top, to.top); }
inline void prepare(Context& context, char* stack, size_t size, void (*entry)()) {
  void** top = (void**)((uintptr_t)(stack + size) & ~(uintptr_t)15);
  *--top = nullptr;  // so that the entry finds the stack as after a call
  *--top = (void*)entry;
  for (int i = 0; i < 6; i++) *--top = nullptr;  // the saved registers
  context.top = top;
}
#endif

struct Fiber {
  Context context;
  State state = State::ready;
  Index thread;
  unsigned number = 0, collectives = 0;
  uint32_t mask = 0;
  std::source_location place;
  Payload published[2];  // by parity of `collectives`: one meeting a collective is then enough
};

struct Block {
  Index grid, dim, index;
  std::vector<Fiber> fibers;
  Context scheduler;
  void (*body)(const void*) = nullptr;
  const void* argument = nullptr;
  std::string error;
};

inline thread_local Block* block = nullptr;
inline thread_local Fiber* fiber = nullptr;
constexpr size_t STACK = 64 << 10;

inline void wait(State state) {
  fiber->state = state;
  switch_to(fiber->context, block->scheduler);
}

inline void enter() {
  block->body(block->argument);
  for (;;) wait(State::done);
}

struct Random {
  uint64_t state;
  uint32_t next(uint32_t n) {  // in 0..n-1
    state = state * 6364136223846793005ull + 1442695040888963407ull;
    return (uint32_t)((state >> 33) % n);
  }
};

template <class T>
void shuffle(std::vector<T>& items, Random& random) {
  for (size_t i = items.size(); i > 1; i--) std::swap(items[i - 1], items[random.next((uint32_t)i)]);
}

inline std::string where(const Block& b, const char* what) {
  return std::string(what) + " (block " + std::to_string(b.index.x) + ", " + std::to_string(b.index.y) + ")";
}

// Free the lanes of one warp that wait for each other and are all there. Returns whether any was freed.
inline bool release_warp(Block& b, unsigned first, unsigned last) {
  bool freed = false;
  for (unsigned i = first; i < last; i++) {
    Fiber& f = b.fibers[i];
    if (f.state != State::warp) continue;
    bool complete = true;
    for (unsigned j = first; j < first + 32 && complete; j++) {
      if (!(f.mask >> (j - first) & 1)) continue;
      if (j >= last || b.fibers[j].state == State::done) {
        b.error = where(b, "a lane named in the mask of a warp collective has exited");
        return false;
      }
      const Fiber& g = b.fibers[j];
      if (g.state != State::warp) {
        complete = false;
      } else if (g.mask != f.mask || g.place.line() != f.place.line() || g.collectives != f.collectives) {
        b.error = where(b, "lanes of one warp meet in different collectives");
        return false;
      }
    }
    if (!complete) continue;
    for (unsigned j = first; j < last; j++)
      if (f.mask >> (j - first) & 1) b.fibers[j].state = State::ready;
    freed = true;
  }
  return freed;
}

inline void release_barrier(Block& b) {
  const Fiber* seen = nullptr;
  for (const Fiber& f : b.fibers) {
    if (f.state != State::barrier) continue;
    if (seen && seen->place.line() != f.place.line()) {
      b.error = where(b, "divergent __syncthreads: threads of one block wait at different barriers");
      return;
    }
    seen = &f;
  }
  for (Fiber& f : b.fibers)
    if (f.state == State::barrier) f.state = State::ready;
}

inline void run_block(Block& b, uint64_t seed, char* stacks) {
  block = &b;
  unsigned n = (unsigned)b.fibers.size(), warps = (n + 31) / 32;
#if defined(__SANITIZE_ADDRESS__)
  __asan_unpoison_memory_region(stacks, n * STACK);
#endif
  std::vector<unsigned> order(warps), lanes(32);
  for (unsigned i = 0; i < warps; i++) order[i] = i;
  for (unsigned i = 0; i < 32; i++) lanes[i] = i;
  for (unsigned i = 0; i < n; i++) {
    Fiber& f = b.fibers[i];
    f.state = State::ready, f.number = i, f.collectives = 0, f.thread = {i, 0, 0};
    prepare(f.context, stacks + i * STACK, STACK, enter);
  }
  Random random{seed};
  for (;;) {
    bool progress = false;
    if (seed) shuffle(order, random);
    for (unsigned w : order) {
      unsigned first = w * 32, last = std::min(n, first + 32);
      if (seed) shuffle(lanes, random);
      do {
        for (unsigned lane : lanes) {
          if (first + lane >= last) continue;
          Fiber& f = b.fibers[first + lane];
          if (f.state != State::ready) continue;
          progress = true;
          fiber = &f;
          switch_to(b.scheduler, f.context);
          if (!b.error.empty()) return;
        }
        if (!release_warp(b, first, last)) break;
        progress = true;
      } while (!(seed && random.next(64) == 0));
      if (!b.error.empty()) return;
    }
    unsigned done = 0, barrier = 0;
    for (const Fiber& f : b.fibers) done += f.state == State::done, barrier += f.state == State::barrier;
    if (done == n) return;
    if (barrier && barrier + done == n) {
      release_barrier(b);
    } else if (!progress) {
      b.error = where(b, "deadlock: some threads wait at a barrier, others in a warp collective");
    }
    if (!b.error.empty()) return;
  }
}

struct Stacks {
  std::unique_ptr<char[]> memory;
  size_t size = 0;
  char* get(size_t wanted) {
    if (size < wanted) memory.reset(new char[wanted]), size = wanted;  // not zeroed
    return memory.get();
  }
};

// Run one kernel; the error of the first failing block, or an empty string.
template <class Body>
std::string launch(Index grid, unsigned threads_of_block, uint64_t seed, unsigned os_threads, const Body& body) {
  std::vector<unsigned> order(grid.x * grid.y);
  for (unsigned i = 0; i < order.size(); i++) order[i] = i;
  Random random{seed};
  if (seed) shuffle(order, random);
  std::atomic<size_t> next{0};
  std::mutex lock;
  std::string error;
  auto work = [&] {
    static thread_local Stacks stacks;
    Block b;
    b.grid = grid, b.dim = {threads_of_block, 1, 1};
    b.fibers.resize(threads_of_block);
    b.body = [](const void* p) { (*(const Body*)p)(); };
    b.argument = &body;
    for (size_t i; (i = next++) < order.size();) {
      b.index = {order[i] % grid.x, order[i] / grid.x, 0};
      run_block(b, seed ? seed + i + 1 : 0, stacks.get(threads_of_block * STACK));
      if (b.error.empty()) continue;
      std::lock_guard guard(lock);
      if (error.empty()) error = b.error;
      next = order.size();
    }
  };
  std::vector<std::thread> others;
  for (unsigned i = 1; i < os_threads; i++) others.emplace_back(work);
  work();
  for (std::thread& t : others) t.join();
  return error;
}

// Call a kernel with its one parameter, as a driver's launch does.
template <class P>
std::string launch_kernel(void (*kernel)(P), unsigned x, unsigned y, unsigned threads, uint64_t seed,
                          unsigned os_threads, const void* params) {
  std::remove_const_t<P> own;
  std::memcpy(&own, params, sizeof own);
  return launch({x, y, 1}, threads, seed, os_threads, [&] { kernel(own); });
}

// ---- collectives ---------------------------------------------------------------------------------------------------

inline unsigned lane() { return fiber->number & 31; }
inline void fail(const char* what) {
  block->error = where(*block, what);
  wait(State::barrier);
}

// Publish, meet, then read what the others published: read(i) gives lane i's payload.
template <class Read>
auto collective(uint32_t mask, const Payload& own, std::source_location place, Read read) {
  if (!(mask >> lane() & 1)) fail("a lane calls a warp collective whose mask leaves it out");
  unsigned slot = ++fiber->collectives & 1, first = fiber->number & ~31u;
  fiber->published[slot] = own, fiber->mask = mask, fiber->place = place;
  wait(State::warp);
  return read([=](unsigned i) -> const Payload& { return block->fibers[first + i].published[slot]; });
}

template <class T>
Payload encode(T value) {
  Payload p{};
  static_assert(sizeof(T) <= sizeof(Payload));
  std::memcpy(&p, &value, sizeof value);
  return p;
}
template <class T>
T decode(const Payload& p) {
  T value;
  std::memcpy(&value, &p, sizeof value);
  return value;
}

}  // namespace shim

#define threadIdx (::shim::fiber->thread)
#define blockIdx (::shim::block->index)
#define blockDim (::shim::block->dim)
#define gridDim (::shim::block->grid)
#define METAH_HERE std::source_location place = std::source_location::current()

inline void __syncthreads(METAH_HERE) {
  shim::fiber->place = place;
  shim::wait(shim::State::barrier);
}
inline void __syncwarp(uint32_t mask = ~0u, METAH_HERE) {
  shim::collective(mask, {}, place, [](auto) { return 0; });
}
template <class T>
T __shfl_sync(uint32_t mask, T value, unsigned source, METAH_HERE) {
  return shim::collective(mask, shim::encode(value), place,
                          [=](auto read) { return shim::decode<T>(read(source & 31)); });
}
template <class T>
T __shfl_up_sync(uint32_t mask, T value, unsigned step, METAH_HERE) {
  return shim::collective(mask, shim::encode(value), place, [=](auto read) {
    return shim::lane() < step ? value : shim::decode<T>(read(shim::lane() - step));
  });
}
inline uint32_t __ballot_sync(uint32_t mask, int predicate, METAH_HERE) {
  return shim::collective(mask, shim::encode(uint32_t(predicate != 0)), place, [=](auto read) {
    uint32_t bits = 0;
    for (unsigned i = 0; i < 32; i++)
      if (mask >> i & 1) bits |= read(i).words[0] << i;
    return bits;
  });
}
inline int __any_sync(uint32_t mask, int predicate, METAH_HERE) { return __ballot_sync(mask, predicate, place) != 0; }
template <class T>
uint32_t __match_any_sync(uint32_t mask, T value, METAH_HERE) {
  return shim::collective(mask, shim::encode(value), place, [=](auto read) {
    uint32_t bits = 0;
    for (unsigned i = 0; i < 32; i++)
      if ((mask >> i & 1) && shim::decode<T>(read(i)) == value) bits |= 1u << i;
    return bits;
  });
}

// d = c + ones(a & b) with the fragments of mma.m16n8k128 (PARTS 1) and mma.m16n8k256 (PARTS 2), .b1, by the tables of the
// PTX ISA: lane 4 g + t holds, for each part of 128 columns, word t of rows g and g + 8 of a and of column g of b, and
// of d the rows g, g, g + 8, g + 8 at columns 2 t, 2 t + 1, 2 t, 2 t + 1.
template <size_t PARTS>
void mma_b1(uint32_t (&d)[4], const uint32_t (&a)[2 * PARTS], const uint32_t (&b)[PARTS], const uint32_t (&c)[4],
            METAH_HERE) {
  shim::Payload own{};
  std::copy(a, a + 2 * PARTS, own.words);
  std::copy(b, b + PARTS, own.words + 2 * PARTS);
  shim::collective(~0u, own, place, [&](auto read) {
    unsigned g = shim::lane() >> 2, t = shim::lane() & 3;
    std::copy(c, c + 4, d);
    for (unsigned part = 0; part < PARTS; part++)
      for (unsigned word = 0; word < 4; word++)
        for (unsigned i = 0; i < 4; i++) {
          uint32_t left = read(4 * g + word).words[2 * part + (i >> 1)];
          uint32_t right = read(4 * (2 * t + (i & 1)) + word).words[2 * PARTS + part];
          d[i] += __builtin_popcount(left & right);
        }
    return 0;
  });
}

// ---- the rest of the language --------------------------------------------------------------------------------------

inline int __popc(uint32_t x) { return __builtin_popcount(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline uint32_t min(uint32_t a, uint32_t b) { return a < b ? a : b; }
inline int min(int a, int b) { return a < b ? a : b; }
inline uint32_t atomicAdd(uint32_t* at, uint32_t value) { return __atomic_fetch_add(at, value, __ATOMIC_RELAXED); }
inline int max(int a, int b) { return a > b ? a : b; }
inline void __threadfence() { std::atomic_thread_fence(std::memory_order_seq_cst); }
inline uint64_t policy_of(uint32_t) { return 0; }
template <class T>
T load_hinted(const T* at, uint64_t) { return *at; }
