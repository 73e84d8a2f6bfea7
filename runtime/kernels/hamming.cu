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

// ---- distance
// ------------------------------------------------------------------------------------------------------

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

// ---- one thread's codes
// --------------------------------------------------------------------------------------------

// Codes that one thread of the scan keeps in registers, loaded as uint4: 16 words or more.
template <int W>
struct Tile {
    static constexpr int codes = popc_codes(W);
    static_assert(codes && ROW_STEP % (THREADS * codes) == 0,
                  "a block must not read beyond the padded rows");
    static constexpr int packed = W < 4 ? 4 / W : 1;  // codes in a uint4
    uint32_t words[codes][W];

    __device__ __forceinline__ void load(const uint4* __restrict__ codes_in, uint64_t stride,
                                         uint32_t block) {
        if constexpr (W < 4) {
#pragma unroll
            for (int v = 0; v < codes / packed; v++) {
                uint4 x = __ldcs(codes_in + ((uint64_t)block * (codes / packed) + v) * THREADS +
                                 threadIdx.x);
                uint32_t parts[4] = {x.x, x.y, x.z, x.w};
#pragma unroll
                for (int i = 0; i < 4; i++) words[v * packed + i / W][i % W] = parts[i];
            }
        } else {
#pragma unroll
            for (int c = 0; c < codes; c++) {
#pragma unroll
                for (int p = 0; p < W / 4; p++) {
                    uint4 x = __ldcs(codes_in + p * stride + row(block, c));
                    words[c][4 * p] = x.x, words[c][4 * p + 1] = x.y, words[c][4 * p + 2] = x.z,
                                 words[c][4 * p + 3] = x.w;
                }
            }
        }
    }

    static __device__ __forceinline__ uint32_t row(uint32_t block, int c) {
        return ((block * (codes / packed) + c / packed) * THREADS + threadIdx.x) * packed +
               c % packed;
    }

    __device__ __forceinline__ uint32_t distance(int c, const uint32_t (&query)[W]) const {
        uint32_t x[W];
#pragma unroll
        for (int w = 0; w < W; w++) x[w] = words[c][w] ^ query[w];
        return ones<W>(x);
    }
};

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

// Lanes that hit with a row that is there. Every lane of the warp calls.
__device__ __forceinline__ uint32_t hits_of(bool hit, uint32_t row,
                                            const uint32_t* __restrict__ removed) {
    uint32_t hits = __ballot_sync(FULL, hit);
    if (hits && removed) hits = __ballot_sync(FULL, hit && !is_removed(removed, row));
    return hits;
}

// Append the keys of the lanes in `hits`, one atomic for the warp. Every lane of the warp calls.
__device__ __forceinline__ void append(const ScanParams& p, uint32_t hits, uint64_t key,
                                       uint32_t query) {
    uint32_t lane = threadIdx.x & 31, first = 0;
    if (!hits) return;
    if (lane == 0) first = atomicAdd(p.counts + query, (uint32_t)__popc(hits));
    first = __shfl_sync(FULL, first, 0);
    uint64_t place = p.begin[query] + first + __popc(hits & ((1u << lane) - 1));
    if ((hits >> lane & 1) && place < p.begin[query + 1]) p.keys[place] = key;
}

// ---- the popcount scan: top-k candidates, radius fill (COUNT false), radius count (COUNT true)
// ---------------------

// Grid: x over the codes, y over groups of `group` queries. Each thread keeps its codes and meets
// all queries.
template <int W, bool COUNT>
__device__ __forceinline__ void scan(const ScanParams& p) {
    __shared__ __align__(16) uint32_t words[QUERY_TILE * W];
    __shared__ uint64_t limits[QUERY_TILE];
    __shared__ uint32_t found[QUERY_TILE];
    Tile<W> tile;
    tile.load((const uint4*)p.codes, p.stride, blockIdx.x);
    uint32_t end = min(p.n_queries, (blockIdx.y + 1) * p.group);
    for (uint32_t first = blockIdx.y * p.group; first < end; first += QUERY_TILE) {
        uint32_t n = min((uint32_t)QUERY_TILE, end - first);
        __syncthreads();  // the tile before is no longer read
        for (uint32_t i = threadIdx.x; i < n * W; i += THREADS)
            words[i] = p.queries[(uint64_t)first * W + i];
        if (threadIdx.x < n)
            limits[threadIdx.x] = p.bounds[first + threadIdx.x], found[threadIdx.x] = 0;
        __syncthreads();  // the tile is complete
        for (uint32_t j = 0; j < n; j++) {
            uint32_t query[W], distances[Tile<W>::codes];
            read_words<W>(query, words + j * W);
            uint32_t limit = (uint32_t)(limits[j] >> 32), least = MAX_BINS;
#pragma unroll
            for (int c = 0; c < Tile<W>::codes; c++) {
                distances[c] = tile.distance(c, query);
                least = min(least, distances[c]);
            }
            if (!__any_sync(FULL, least <= limit)) continue;
            uint64_t bound = limits[j];
            uint32_t total = 0;
#pragma unroll
            for (int c = 0; c < Tile<W>::codes; c++) {
                uint32_t row = tile.row(blockIdx.x, c);
                uint64_t key = key_of(distances[c], row);
                uint32_t hits = hits_of(key <= bound && row < p.rows, row, p.removed);
                if constexpr (COUNT) {
                    total += __popc(hits);
                } else {
                    append(p, hits, key, first + j);
                }
            }
            if constexpr (COUNT) {
                if (total && (threadIdx.x & 31) == 0) atomicAdd(found + j, total);
            }
        }
        if constexpr (COUNT) {
            __syncthreads();  // all warps have counted
            if (threadIdx.x < n && found[threadIdx.x])
                atomicAdd(p.counts + first + threadIdx.x, found[threadIdx.x]);
        }
    }
}

// ---- the tensor-core scan, sm_80..sm_90
// ----------------------------------------------------------------------------

#ifndef METAH_SHIM
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 10 * MMA_ARCH_FIRST && \
    __CUDA_ARCH__ < 10 * MMA_ARCH_END
#define METAH_B1 1
#endif
// d += ones(a & b), a: 16 x 128 bits, b: 128 x 8 (PTX ISA, mma.m16n8k128 and mma.m16n8k256, .b1,
// .and.popc).
__device__ __forceinline__ void mma_b1(uint32_t (&d)[4], const uint32_t (&a)[2],
                                       const uint32_t (&b)[1]) {
#ifdef METAH_B1
    asm("mma.sync.aligned.m16n8k128.row.col.s32.b1.b1.s32.and.popc {%0,%1,%2,%3}, {%4,%5}, {%6}, "
        "{%0,%1,%2,%3};"
        : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(b[0]));
#endif
}
__device__ __forceinline__ void mma_b1(uint32_t (&d)[4], const uint32_t (&a)[4],
                                       const uint32_t (&b)[2]) {
#ifdef METAH_B1
    asm("mma.sync.aligned.m16n8k256.row.col.s32.b1.b1.s32.and.popc {%0,%1,%2,%3}, {%4,%5,%6,%7}, "
        "{%8,%9}, {%0,%1,%2,%3};"
        : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
}
#endif

// Distance without XOR: ones(x ^ q) = ones([x, ~x] & [~q, q]). Lane 4 g + t holds, of the rows g
// and g + 8 of a tile of 16 codes, word t: for W = 2 words (x0, x1, ~x0, ~x1)[t], else x[4 p + t]
// and its complement for each plane p.
template <int W>
struct Fragments {
    static constexpr int tiles = mma_tiles(W);  // of 16 codes, a warp
    static_assert(tiles && ROW_STEP % (WARPS * MMA_TILE_CODES * tiles) == 0,
                  "a block must not read beyond the padded rows");
    static constexpr int planes = W == 2 ? 1 : W / 4;
    static constexpr int half = W == 2 ? 1 : 2;  // registers a row and plane
    uint32_t a[tiles][planes][2 * half];

    static __device__ __forceinline__ uint32_t row(uint32_t tile, int half_tile) {
        return (tile * 2 + half_tile) * 8 + ((threadIdx.x & 31) >> 2);
    }

    __device__ __forceinline__ void load(const uint32_t* __restrict__ codes, uint64_t stride,
                                         uint32_t warp) {
        uint32_t t = threadIdx.x & 3;
#pragma unroll
        for (int r = 0; r < tiles; r++) {
#pragma unroll
            for (int h = 0; h < 2; h++) {
                uint64_t at = row(warp * tiles + r, h);
                if constexpr (W == 2) {
                    uint32_t x = codes[at * 2 + (t & 1)];
                    a[r][0][h] = t < 2 ? x : ~x;
                } else {
#pragma unroll
                    for (int p = 0; p < planes; p++) {
                        uint32_t x = codes[(p * stride + at) * 4 + t];
                        a[r][p][h] = x, a[r][p][2 + h] = ~x;
                    }
                }
            }
        }
    }

    // Distances of rows g, g, g + 8, g + 8 of tile r to queries 2 t, 2 t + 1, 2 t, 2 t + 1 of the
    // group.
    __device__ __forceinline__ void distances(int r, const uint32_t (&b)[planes][half],
                                              uint32_t (&d)[4]) const {
        d[0] = d[1] = d[2] = d[3] = 0;
#pragma unroll
        for (int p = 0; p < planes; p++) mma_b1(d, a[r][p], b[p]);
    }
};

// Grid as for scan; x over warps of 16 * tiles codes, 8 warps a block; `group` is a multiple of 8.
template <int W>
__device__ __forceinline__ void scan_mma(const ScanParams& p) {
    using F = Fragments<W>;
    __shared__ uint32_t words[MMA_GROUPS][F::planes][32];
    __shared__ uint64_t limits[MMA_QUERY_TILE];
    __shared__ int
        distances[MMA_QUERY_TILE];  // of the limits; -1, which no distance is, past the last query
    uint32_t lane = threadIdx.x & 31, t = lane & 3, warp = blockIdx.x * WARPS + (threadIdx.x >> 5);
    F fragments;
    fragments.load(p.codes, p.stride, warp);
    uint32_t end = min(p.n_queries, (blockIdx.y + 1) * p.group);
    for (uint32_t first = blockIdx.y * p.group; first < end; first += MMA_QUERY_TILE) {
        uint32_t n = min((uint32_t)MMA_QUERY_TILE, end - first);
        __syncthreads();  // the tile before is no longer read
        for (uint32_t i = threadIdx.x; i < MMA_GROUPS * F::planes * 32; i += THREADS) {
            uint32_t l = i & 31, plane = (i >> 5) % F::planes, j = (i >> 5) / F::planes,
                     query = j * 8 + (l >> 2);
            uint32_t w = W == 2 ? l & 1 : 4 * plane + (l & 3);
            uint32_t x = query < n ? p.queries[(uint64_t)(first + query) * W + w] : 0;
            words[j][plane][l] = W == 2 && (l & 3) >= 2 ? x : ~x;
        }
        if (threadIdx.x < MMA_QUERY_TILE) {
            uint64_t bound = threadIdx.x < n ? p.bounds[first + threadIdx.x] : 0;
            limits[threadIdx.x] = bound;
            distances[threadIdx.x] =
                threadIdx.x < n ? (int)min((uint32_t)(bound >> 32), (uint32_t)MAX_BINS) : -1;
        }
        __syncthreads();  // the tile is complete
        for (uint32_t j = 0; j * 8 < n; j++) {
            uint32_t b[F::planes][F::half];
#pragma unroll
            for (int plane = 0; plane < F::planes; plane++) {
                b[plane][0] = words[j][plane][lane];
                if constexpr (W != 2) b[plane][1] = ~b[plane][0];
            }
            int even = MAX_BINS, odd = MAX_BINS, limit_even = distances[j * 8 + 2 * t],
                limit_odd = distances[j * 8 + 2 * t + 1];
#pragma unroll
            for (int r = 0; r < F::tiles; r++) {
                uint32_t d[4];
                fragments.distances(r, b, d);
                even = min(even, min((int)d[0], (int)d[2]));
                odd = min(odd, min((int)d[1], (int)d[3]));
            }
            if (!__any_sync(FULL, even <= limit_even || odd <= limit_odd)) continue;
#pragma unroll
            for (int r = 0; r < F::tiles; r++) {  // rare: tile by tile, now with the whole key
                uint32_t d[4];
                fragments.distances(r, b, d);
                bool near = min((int)d[0], (int)d[2]) <= limit_even ||
                            min((int)d[1], (int)d[3]) <= limit_odd;
                if (!__any_sync(FULL, near)) continue;
                if (near) {
#pragma unroll
                    for (int i = 0; i < 4; i++) {
                        uint32_t query = j * 8 + 2 * t + (i & 1),
                                 row = F::row(warp * F::tiles + r, i >> 1);
                        uint64_t key = key_of(d[i], row);
                        if (query >= n || key > limits[query] || row >= p.rows ||
                            is_removed(p.removed, row))
                            continue;
                        uint64_t place =
                            p.begin[first + query] + atomicAdd(p.counts + first + query, 1u);
                        if (place < p.begin[first + query + 1]) p.keys[place] = key;
                    }
                }
                __syncwarp();
            }
        }
    }
}

// ---- the first bound: distances of a sample
// ------------------------------------------------------------------------

// Histogram of the distances between each query and `runs` runs of 32 neighbouring codes, `step`
// codes apart. Grid: x over parts of the sample, y over queries. histogram: (queries, bins), zero
// before.
template <int W>
__device__ __forceinline__ void sample(const SampleParams& p) {
    const uint32_t* __restrict__ codes = p.codes;
    constexpr uint32_t bins = 32 * W + 1;
    __shared__ uint32_t local[bins];
    for (uint32_t i = threadIdx.x; i < bins; i += THREADS) local[i] = 0;
    uint32_t query[W], x[W];
#pragma unroll
    for (int w = 0; w < W; w++) query[w] = p.queries[(uint64_t)blockIdx.y * W + w];
    __syncthreads();  // the bins are zero
    for (uint32_t run = blockIdx.x * WARPS + threadIdx.x / RUN; run < p.runs;
         run += gridDim.x * WARPS) {
        uint64_t row = (uint64_t)run * p.step + threadIdx.x % RUN;
        if (row >= p.rows || is_removed(p.removed, (uint32_t)row)) continue;
#pragma unroll
        for (int w = 0; w < W; w++)
            x[w] = query[w] ^ codes[W < 4 ? row * W + w : ((w / 4) * p.stride + row) * 4 + w % 4];
        atomicAdd(local + ones<W>(x), 1u);
    }
    __syncthreads();  // all warps have counted
    for (uint32_t i = threadIdx.x; i < bins; i += THREADS)
        if (local[i]) atomicAdd(p.histogram + (uint64_t)blockIdx.y * bins + i, local[i]);
}

// ---- one entry a width
// ---------------------------------------------------------------------------------------------

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

#define MMA_KERNELS(W, TILES)                                                               \
    extern "C" __global__ void __launch_bounds__(THREADS, 2) mma_w##W(const ScanParams p) { \
        scan_mma<W>(p);                                                                     \
    }
#if defined(METAH_SHIM) || !defined(__CUDA_ARCH__) || defined(METAH_B1)
MMA_WIDTHS(MMA_KERNELS)
#endif

#include "encoded.cuh"
#include "select.cuh"
