// The popcount scan: a thread keeps codes in registers and meets every query. Included by
// hamming.cu.
#pragma once

// Codes that one thread of the scan keeps in registers, loaded as uint4: 16 words or more.
template <int W>
struct Tile {
    static constexpr int codes = popc_codes(W);
    static_assert(codes && ROW_STEP % (THREADS * codes) == 0,
                  "a block must not read beyond the padded rows");
    static constexpr int packed = W < 4 ? 4 / W : 1;  // codes in a uint4
    uint32_t words[codes][W];

    __device__ __forceinline__ void load(const uint4* __restrict__ codes_in, uint64_t stride,
                                         uint32_t block, uint64_t policy) {
        if constexpr (W < 4) {
#pragma unroll
            for (int v = 0; v < codes / packed; v++) {
                uint4 x = load_hinted(
                    codes_in + ((uint64_t)block * (codes / packed) + v) * THREADS + threadIdx.x,
                    policy);
                uint32_t parts[4] = {x.x, x.y, x.z, x.w};
#pragma unroll
                for (int i = 0; i < 4; i++) words[v * packed + i / W][i % W] = parts[i];
            }
        } else {
#pragma unroll
            for (int c = 0; c < codes; c++) {
#pragma unroll
                for (int p = 0; p < W / 4; p++) {
                    uint4 x = load_hinted(codes_in + p * stride + row(block, c), policy);
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

// Grid: x over the codes, y over groups of `group` queries. Each thread keeps its codes and meets
// all queries. COUNT: only count.
template <int W, bool COUNT>
__device__ __forceinline__ void scan(const ScanParams& p) {
    __shared__ __align__(16) uint32_t words[QUERY_TILE * W];
    __shared__ uint64_t limits[QUERY_TILE];
    __shared__ int farthest[QUERY_TILE];
    __shared__ uint32_t found[QUERY_TILE];
    uint32_t block = block_of(p);
    Tile<W> tile;
    tile.load((const uint4*)p.codes, p.stride, block, policy_of(p.keep));
    uint32_t end = min(p.n_queries, (blockIdx.y + 1) * p.group);
    for (uint32_t first = blockIdx.y * p.group; first < end; first += QUERY_TILE) {
        uint32_t n = min((uint32_t)QUERY_TILE, end - first);
        __syncthreads();  // the tile before is no longer read
        for (uint32_t i = threadIdx.x; i < n * W; i += THREADS)
            words[i] = p.queries[(uint64_t)first * W + i];
        if (threadIdx.x < n) {
            uint64_t bound = p.bounds[first + threadIdx.x];
            limits[threadIdx.x] = bound, found[threadIdx.x] = 0;
            farthest[threadIdx.x] = farthest_of(bound, block * (THREADS * Tile<W>::codes));
        }
        __syncthreads();  // the tile is complete
        for (uint32_t j = 0; j < n; j++) {
            uint32_t query[W], distances[Tile<W>::codes];
            read_words<W>(query, words + j * W);
            int limit = farthest[j], least = MAX_BINS;
#pragma unroll
            for (int c = 0; c < Tile<W>::codes; c++) {
                distances[c] = tile.distance(c, query);
                least = min(least, (int)distances[c]);
            }
            if (!__any_sync(FULL, least <= limit)) continue;
            uint64_t bound = limits[j];
            uint32_t total = 0;
#pragma unroll
            for (int c = 0; c < Tile<W>::codes; c++) {
                uint32_t row = tile.row(block, c);
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
