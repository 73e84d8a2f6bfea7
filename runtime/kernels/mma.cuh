// The tensor-core scan, sm_80 to sm_90: a warp keeps tiles of 16 codes in registers and meets
// queries in groups of 8. Included by hamming.cu.
#pragma once

#ifndef METAH_SHIM
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 10 * MMA_ARCH_FIRST && \
    __CUDA_ARCH__ < 10 * MMA_ARCH_END
#define METAH_B1 1
#endif
// d = c + ones(a & b), a: 16 x 128 bits, b: 128 x 8 (PTX ISA, mma.m16n8k128 and mma.m16n8k256, .b1,
// .and.popc).
__device__ __forceinline__ void mma_b1(uint32_t (&d)[4], const uint32_t (&a)[2],
                                       const uint32_t (&b)[1], const uint32_t (&c)[4]) {
#ifdef METAH_B1
    asm("mma.sync.aligned.m16n8k128.row.col.s32.b1.b1.s32.and.popc {%0,%1,%2,%3}, {%4,%5}, {%6}, "
        "{%7,%8,%9,%10};"
        : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(b[0]), "r"(c[0]), "r"(c[1]), "r"(c[2]), "r"(c[3]));
#endif
}
__device__ __forceinline__ void mma_b1(uint32_t (&d)[4], const uint32_t (&a)[4],
                                       const uint32_t (&b)[2], const uint32_t (&c)[4]) {
#ifdef METAH_B1
    asm("mma.sync.aligned.m16n8k256.row.col.s32.b1.b1.s32.and.popc {%0,%1,%2,%3}, {%4,%5,%6,%7}, "
        "{%8,%9}, {%10,%11,%12,%13};"
        : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "r"(c[0]), "r"(c[1]),
          "r"(c[2]), "r"(c[3]));
#endif
}
#endif

// W = 2: ones(x ^ q) = ones([x, ~x] & [~q, q]), one product of 128 bits.
// W >= 4: ones(x ^ q) = |x| + |q| - 2 ones(x & q), half the products: the accumulator starts at
// -(|x| / 2), and a query asks for the largest value of its column.
// Lane 4 g + t holds, of the rows g and g + 8 of a tile of 16 codes, word t: for W = 2
// (x0, x1, ~x0, ~x1)[t], else x[4 p + t] for each plane p.
template <int W>
struct Fragments {
    static constexpr int tiles = mma_tiles(W);  // of 16 codes, a warp
    static constexpr uint32_t block_rows = WARPS * MMA_TILE_CODES * tiles;
    static_assert(tiles && ROW_STEP % block_rows == 0,
                  "a block must not read beyond the padded rows");
    static constexpr int planes = W == 2 ? 1 : W / 4;
    uint32_t a[tiles][planes][2];
    uint32_t start[W == 2 ? 1 : tiles][4];  // W >= 4: -(|x| / 2) of the rows g, g, g + 8, g + 8

    static __device__ __forceinline__ uint32_t row(uint32_t tile, int half_tile) {
        return (tile * 2 + half_tile) * 8 + ((threadIdx.x & 31) >> 2);
    }

    __device__ __forceinline__ void load(const uint32_t* __restrict__ codes, uint64_t stride,
                                         uint32_t warp, uint64_t policy) {
        uint32_t t = threadIdx.x & 3;
#pragma unroll
        for (int r = 0; r < tiles; r++) {
#pragma unroll
            for (int h = 0; h < 2; h++) {
                uint64_t at = row(warp * tiles + r, h);
                if constexpr (W == 2) {
                    uint32_t x = load_hinted(codes + at * 2 + (t & 1), policy);
                    a[r][0][h] = t < 2 ? x : ~x;
                } else {
#pragma unroll
                    for (int p = 0; p < planes; p++)
                        a[r][p][h] = load_hinted(codes + (p * stride + at) * 4 + t, policy);
                }
            }
        }
        if constexpr (W != 2) {
            const uint32_t zero[4] = {0, 0, 0, 0};
            uint32_t all[planes];
#pragma unroll
            for (int p = 0; p < planes; p++) all[p] = FULL;
#pragma unroll
            for (int r = 0; r < tiles; r++) {
                uint32_t d[4];
                product(r, all, d, zero);
#pragma unroll
                for (int i = 0; i < 4; i++)  // by a shuffle, or it is negated for each query
                    start[r][i] = __shfl_sync(FULL, -(d[i] >> 1), threadIdx.x & 31);
            }
        }
    }

    // d = c + ones(a & b): rows g, g, g + 8, g + 8 of tile r, columns 2 t, 2 t + 1, 2 t, 2 t + 1 of
    // the group.
    __device__ __forceinline__ void product(int r, const uint32_t (&b)[planes], uint32_t (&d)[4],
                                            const uint32_t (&c)[4]) const {
        if constexpr (planes == 1) {
            mma_b1(d, a[r][0], b, c);
        } else {
#pragma unroll
            for (int p = 0; p + 1 < planes; p += 2) {
                const uint32_t two[4] = {a[r][p][0], a[r][p][1], a[r][p + 1][0], a[r][p + 1][1]},
                               both[2] = {b[p], b[p + 1]};
                if (p == 0) {
                    mma_b1(d, two, both, c);
                } else {
                    mma_b1(d, two, both, d);
                }
            }
            if constexpr (planes % 2) {
                const uint32_t one[1] = {b[planes - 1]};
                mma_b1(d, a[r][planes - 1], one, d);
            }
        }
    }

    // The distances of tile r themselves, placed as those of product().
    __device__ __forceinline__ void distances(int r, const uint32_t (&b)[planes],
                                              uint32_t (&d)[4]) const {
        d[0] = d[1] = d[2] = d[3] = 0;
        if constexpr (W == 2) {
            product(r, b, d, d);
        } else {
#pragma unroll
            for (int p = 0; p < planes; p++) {
                const uint32_t x[4] = {a[r][p][0], a[r][p][1], ~a[r][p][0], ~a[r][p][1]},
                               q[2] = {~b[p], b[p]};
                mma_b1(d, x, q, d);
            }
        }
    }
};

// Queries of a tile in shared memory. tests: what a column is compared with. W = 2: where the
// accumulator starts, -(limit + 1), twice, so that a distance within the limit is negative. Else
// the least ones(x & q) - |x| / 2 of a distance within, or of one more, since |x| may be odd.
template <int W>
struct QueryTile {
    uint32_t words[MMA_GROUPS][Fragments<W>::planes][32];
    uint64_t limits[MMA_QUERY_TILE];
    __align__(16) int tests[MMA_GROUPS][4][4];
    uint32_t found[MMA_QUERY_TILE];
};

// Bring n queries from number `first` on to shared memory. All threads of the block call.
template <int W>
__device__ __forceinline__ void load_queries(QueryTile<W>& tile, const ScanParams& p,
                                             uint32_t first, uint32_t n, uint32_t first_row) {
    constexpr int planes = Fragments<W>::planes;
    for (uint32_t i = threadIdx.x; i < MMA_GROUPS * planes * 32; i += THREADS) {
        uint32_t l = i & 31, plane = (i >> 5) % planes, j = (i >> 5) / planes,
                 query = j * 8 + (l >> 2);
        uint32_t w = W == 2 ? l & 1 : 4 * plane + (l & 3);
        uint32_t x = query < n ? p.queries[(uint64_t)(first + query) * W + w] : 0;
        tile.words[j][plane][l] = W == 2 && (l & 3) < 2 ? ~x : x;
    }
    uint32_t i = threadIdx.x;
    if (i >= MMA_QUERY_TILE) return;
    uint64_t bound = i < n ? p.bounds[first + i] : 0;
    int limit = i < n ? farthest_of(bound, first_row) : -1;
    tile.limits[i] = bound, tile.found[i] = 0;
    int* test = tile.tests[i >> 3][i >> 1 & 3] + (i & 1);
    if constexpr (W == 2) {
        test[0] = test[2] = -(limit + 1);
    } else {
        int of_query = 0;
        for (int w = 0; w < W; w++)
            of_query += i < n ? __popc(p.queries[(uint64_t)(first + i) * W + w]) : 0;
        test[0] = limit < 0 ? MAX_BINS : (of_query - limit + 1) >> 1;
    }
}

// Grid as for scan; x over blocks of 8 warps; `group` is a multiple of 8. COUNT: only count.
template <int W, bool COUNT>
__device__ __forceinline__ void scan_mma(const ScanParams& p) {
    using F = Fragments<W>;
    __shared__ QueryTile<W> tile;
    uint32_t lane = threadIdx.x & 31, t = lane & 3, block = block_of(p),
             warp = block * WARPS + (threadIdx.x >> 5);
    F fragments;
    fragments.load(p.codes, p.stride, warp, policy_of(p.keep));
    uint32_t end = min(p.n_queries, (blockIdx.y + 1) * p.group);
    for (uint32_t first = blockIdx.y * p.group; first < end; first += MMA_QUERY_TILE) {
        uint32_t n = min((uint32_t)MMA_QUERY_TILE, end - first);
        __syncthreads();  // the tile before is no longer read
        load_queries(tile, p, first, n, block * F::block_rows);
        __syncthreads();  // the tile is complete
        for (uint32_t j = 0; j * 8 < n; j++) {
            uint32_t b[F::planes];
#pragma unroll
            for (int plane = 0; plane < F::planes; plane++) b[plane] = tile.words[j][plane][lane];
            const int* test = tile.tests[j][t];
            bool hit;
            if constexpr (W == 2) {
                uint4 from = *(const uint4*)test;
                uint32_t within = 0, c[4] = {from.x, from.y, from.z, from.w};
#pragma unroll
                for (int r = 0; r < F::tiles; r++) {
                    uint32_t d[4];
                    fragments.product(r, b, d, c);
                    within |= (d[0] | d[1]) | (d[2] | d[3]);
                }
                hit = (int)within < 0;
            } else {
                int even = -MAX_BINS, odd = -MAX_BINS;
#pragma unroll
                for (int r = 0; r < F::tiles; r++) {
                    uint32_t d[4];
                    fragments.product(r, b, d, fragments.start[r]);
                    even = max(even, max((int)d[0], (int)d[2]));
                    odd = max(odd, max((int)d[1], (int)d[3]));
                }
                hit = even >= test[0] || odd >= test[1];
            }
            if (!__any_sync(FULL, hit)) continue;
            const uint64_t even = tile.limits[j * 8 + 2 * t], odd = tile.limits[j * 8 + 2 * t + 1];
            uint32_t total[2] = {0, 0};
#pragma unroll
            for (int r = 0; r < F::tiles; r++) {  // rare: tile by tile, now with the whole key
                uint32_t d[4];
                fragments.distances(r, b, d);
                bool near = min(d[0], d[2]) <= even >> 32 || min(d[1], d[3]) <= odd >> 32;
                if (!__any_sync(FULL, near)) continue;
                if (near) {
#pragma unroll
                    for (int i = 0; i < 4; i++) {
                        uint32_t query = j * 8 + 2 * t + (i & 1),
                                 row = F::row(warp * F::tiles + r, i >> 1);
                        uint64_t key = key_of(d[i], row);
                        if (query >= n || key > (i & 1 ? odd : even) || row >= p.rows ||
                            is_removed(p.removed, row))
                            continue;
                        if constexpr (COUNT) {
                            total[i & 1]++;
                        } else {
                            uint64_t place =
                                p.begin[first + query] + atomicAdd(p.counts + first + query, 1u);
                            if (place < p.begin[first + query + 1]) p.keys[place] = key;
                        }
                    }
                }
                __syncwarp();
            }
            if constexpr (COUNT) {
#pragma unroll
                for (int i = 0; i < 2; i++) {  // the lanes of one t have the same queries
                    for (uint32_t step = 4; step < 32; step *= 2)
                        total[i] += __shfl_sync(FULL, total[i], lane ^ step);
                    if (lane < 4 && total[i]) atomicAdd(tile.found + j * 8 + 2 * t + i, total[i]);
                }
            }
        }
        if constexpr (COUNT) {
            __syncthreads();  // all warps have counted
            if (threadIdx.x < n && tile.found[threadIdx.x])
                atomicAdd(p.counts + first + threadIdx.x, tile.found[threadIdx.x]);
        }
    }
}
