// Exact Hamming search on the GPU: popcount and binary tensor-core scans, selection, radius search.
//
// A code is W words of 32 bits, W = 1, 2 or a multiple of 4; shorter codes are padded with zeros on
// both sides, which changes no distance. Layout of the database: W = 1, 2: codes one after the
// other; else W/4 planes of uint4, plane p holding words 4p..4p+3 of every code, `stride` codes
// apart. stride is a multiple of 4096, so loads need no guard. A key is distance << 32 | row: keys
// are unique, and their order is the order (distance, row). A scan appends every key <= bound to
// its query's segment keys[begin[q] .. begin[q + 1]). It counts the keys that found no room as
// well, so a count above the room reports an overflow. removed: a bit a row, word row / 32, bit row
// % 32; no search finds a row whose bit is set. Null: no row is removed. The parameters of each
// kernel are one struct: interface.h.
//
// With -DMETAH_SHIM this file compiles as C++ and runs on the CPU: tests/runtime/cuda/simulator.
#ifdef METAH_SHIM
#include "cuda_shim.h"
#endif
#include "interface.h"

#define WARPS (THREADS / 32)
#define MMA_GROUPS (MMA_QUERY_TILE / 8)  // groups of 8 queries in shared memory at a time
#define MAX_BINS 1025                    // distances 0..1024
#define SORT_SIZE 2048                   // keys that a block sorts in shared memory
#define FULL 0xffffffffu

// The second column of POPC_WIDTHS and MMA_WIDTHS for W words; 0 if there is no such kernel.
#define METAH_CASE(WORDS, COUNT) \
    if (words == WORDS) return COUNT;
constexpr int popc_codes(int words) {
    POPC_WIDTHS(METAH_CASE)
    return 0;
}
constexpr int mma_tiles(int words) {
    MMA_WIDTHS(METAH_CASE)
    return 0;
}
#undef METAH_CASE

// A full adder on 32 columns: a + b + c = sum + 2 carry. Two LOP3 that save one POPC, which is four
// times slower.
__device__ __forceinline__ void add3(uint32_t a, uint32_t b, uint32_t c, uint32_t& sum,
                                     uint32_t& carry) {
    sum = a ^ b ^ c;
    carry = (a & b) | (a & c) | (b & c);
}

// Ones in W words: W POPC for W < 4, 3 a group of four, 4 a group of eight.
template <int W>
__device__ __forceinline__ uint32_t ones(const uint32_t (&x)[W]) {
    uint32_t total = 0;
    if constexpr (W < 4) {
#pragma unroll
        for (int i = 0; i < W; i++) total += __popc(x[i]);
    }
#pragma unroll
    for (int i = 0; i + 8 <= W; i += 8) {
        uint32_t s, t, u, c0, c1, c2, pairs, fours;
        add3(x[i], x[i + 1], x[i + 2], s, c0);
        add3(s, x[i + 3], x[i + 4], t, c1);
        add3(t, x[i + 5], x[i + 6], u, c2);
        add3(c0, c1, c2, pairs, fours);
        total += __popc(u) + __popc(x[i + 7]) + 2 * __popc(pairs) + 4 * __popc(fours);
    }
    if constexpr (W % 8 == 4) {
        uint32_t s, c;
        add3(x[W - 4], x[W - 3], x[W - 2], s, c);
        total += __popc(s) + __popc(x[W - 1]) + 2 * __popc(c);
    }
    return total;
}

__device__ __forceinline__ uint64_t key_of(uint32_t distance, uint32_t row) {
    return (uint64_t)distance << 32 | row;
}

__device__ __forceinline__ bool is_removed(const uint32_t* __restrict__ removed, uint32_t row) {
    return removed && removed[row >> 5] >> (row & 31) & 1;
}

// W words that lie one after the other.
template <int W>
__device__ __forceinline__ void read_words(uint32_t (&out)[W], const uint32_t* shared) {
    if constexpr (W == 1) {
        out[0] = shared[0];
    } else if constexpr (W == 2) {
        uint2 x = *(const uint2*)shared;
        out[0] = x.x, out[1] = x.y;
    } else {
#pragma unroll
        for (int p = 0; p < W / 4; p++) {
            uint4 x = ((const uint4*)shared)[p];
            out[4 * p] = x.x, out[4 * p + 1] = x.y, out[4 * p + 2] = x.z, out[4 * p + 3] = x.w;
        }
    }
}

// The farthest distance that a bound lets through at rows >= `row`: the last one is cut by row.
// -1: none.
__device__ __forceinline__ int farthest_of(uint64_t bound, uint32_t row) {
    int distance = (int)min((uint32_t)(bound >> 32), (uint32_t)MAX_BINS);
    return (uint32_t)bound < row ? distance - 1 : distance;
}

// The block of codes that this one scans: every `every`-th of all in part 1, the others in part 2.
__device__ __forceinline__ uint32_t block_of(const ScanParams& p) {
    if (p.part == 0) return blockIdx.x;
    return p.part == 1 ? blockIdx.x * p.every : blockIdx.x + blockIdx.x / (p.every - 1) + 1;
}

#ifndef METAH_SHIM
// What the L2 cache does with codes that were read: keep them if they fit, else drop them first.
__device__ __forceinline__ uint64_t policy_of(uint32_t keep) {
    uint64_t last, first;
    asm("createpolicy.fractional.L2::evict_last.b64 %0, 1.0;" : "=l"(last));
    asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(first));
    return keep ? last : first;
}
__device__ __forceinline__ uint4 load_hinted(const uint4* at, uint64_t policy) {
    uint4 x;
    asm("ld.global.nc.L2::cache_hint.v4.u32 {%0,%1,%2,%3}, [%4], %5;"
        : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w)
        : "l"(at), "l"(policy));
    return x;
}
__device__ __forceinline__ uint32_t load_hinted(const uint32_t* at, uint64_t policy) {
    uint32_t x;
    asm("ld.global.nc.L2::cache_hint.u32 %0, [%1], %2;" : "=r"(x) : "l"(at), "l"(policy));
    return x;
}
#endif

#include "bound.cuh"
#include "mma.cuh"
#include "popc.cuh"

// One entry a width.
#define POPC_KERNELS(W, CODES)                                                                \
    extern "C" __global__ void __launch_bounds__(THREADS, 2) scan_w##W(const ScanParams p) {  \
        scan<W, false>(p);                                                                    \
    }                                                                                         \
    extern "C" __global__ void __launch_bounds__(THREADS, 2) count_w##W(const ScanParams p) { \
        scan<W, true>(p);                                                                     \
    }                                                                                         \
    extern "C" __global__ void __launch_bounds__(THREADS) sample_w##W(const SampleParams p) { \
        sample<W>(p);                                                                         \
    }
POPC_WIDTHS(POPC_KERNELS)

#define MMA_KERNELS(W, TILES)                                             \
    extern "C" __global__ void __launch_bounds__(THREADS, W == 2 ? 3 : 2) \
        mma_w##W(const ScanParams p) {                                    \
        scan_mma<W, false>(p);                                            \
    }                                                                     \
    extern "C" __global__ void __launch_bounds__(THREADS, W == 2 ? 3 : 2) \
        mma_count_w##W(const ScanParams p) {                              \
        scan_mma<W, true>(p);                                             \
    }
#if defined(METAH_SHIM) || !defined(__CUDA_ARCH__) || defined(METAH_B1)
MMA_WIDTHS(MMA_KERNELS)
#endif

#include "encoded.cuh"
#include "select.cuh"
