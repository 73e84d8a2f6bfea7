// Bounds of the k-th distance: from a sample of the codes, and from the keys that a first part of
// them left. Included by hamming.cu.
#pragma once

// Smallest bin whose running count reaches `rank`, by one warp; `bins` if none does.
// below: the count before that bin; all 32 lanes of the warp call, and all get the answer.
__device__ __forceinline__ uint32_t find_bin(const uint32_t* histogram, uint32_t bins,
                                             uint32_t rank, uint32_t& below) {
    uint32_t lane = threadIdx.x & 31, carry = 0;
    for (uint32_t base = 0; base < bins; base += 32) {
        uint32_t own = base + lane < bins ? histogram[base + lane] : 0, sum = own;
        for (uint32_t step = 1; step < 32; step *= 2) {
            uint32_t other = __shfl_up_sync(FULL, sum, step);
            if (lane >= step) sum += other;
        }
        uint32_t reached = __ballot_sync(FULL, carry + sum >= rank);
        if (reached) {
            uint32_t at = __ffs(reached) - 1;
            below = carry + __shfl_sync(FULL, sum - own, at);
            return base + at;
        }
        carry += __shfl_sync(FULL, sum, 31);
    }
    below = carry;
    return bins;
}

// A key that about `rank` of the counted codes reach, at most `ceiling`; the ceiling if fewer were
// counted. The last distance is cut by row, in proportion: codes of one distance are taken to lie
// evenly among the rows. All 32 lanes of the warp call, and all get the answer.
__device__ __forceinline__ uint64_t bound_of(const uint32_t* histogram, uint32_t bins,
                                             uint32_t rank, uint32_t rows, uint64_t ceiling) {
    uint32_t below, bin = find_bin(histogram, bins, rank, below);
    if (bin >= bins) return ceiling;
    uint64_t bound = key_of(bin, (uint32_t)((uint64_t)rows * (rank - below) / histogram[bin]));
    return bound < ceiling ? bound : ceiling;
}

// Word w of a code, 0 <= w < W, in the layout of hamming.cu: those that one load brings.
template <int W>
__device__ __forceinline__ void read_code(uint32_t (&out)[W], const uint32_t* __restrict__ codes,
                                          uint64_t stride, uint64_t row) {
    if constexpr (W < 4) {
        read_words<W>(out, codes + row * W);
    } else {
#pragma unroll
        for (int p = 0; p < W / 4; p++) {
            uint4 x = ((const uint4*)codes)[p * stride + row];
            out[4 * p] = x.x, out[4 * p + 1] = x.y, out[4 * p + 2] = x.z, out[4 * p + 3] = x.w;
        }
    }
}

// Histograms of the distances between SAMPLE_QUERIES queries and `runs` runs of RUN neighbouring
// codes, `step` codes apart; the last block of these queries makes their bounds. Grid: x over parts
// of the sample, y over groups of queries. histogram (queries, bins) and tickets (groups): zero
// before.
template <int W>
__device__ __forceinline__ void sample(const SampleParams& p) {
    constexpr uint32_t bins = 32 * W + 1;
    constexpr int flight = W <= 4 ? 4 : W <= 8 ? 2 : 1;  // codes that a thread loads at a time
    static_assert(SAMPLE_QUERIES <= WARPS, "a warp makes the bound of a query");
    __shared__ uint32_t local[SAMPLE_QUERIES * bins], is_last;
    __shared__ __align__(16) uint32_t words[SAMPLE_QUERIES * W];
    uint32_t first = blockIdx.y * SAMPLE_QUERIES,
             n = min((uint32_t)SAMPLE_QUERIES, p.n_queries - first), warp = threadIdx.x / 32;
    for (uint32_t i = threadIdx.x; i < n * bins; i += THREADS) local[i] = 0;
    for (uint32_t i = threadIdx.x; i < n * W; i += THREADS)
        words[i] = p.queries[(uint64_t)first * W + i];
    __syncthreads();  // the bins are zero and the queries complete
    uint32_t step = gridDim.x * (THREADS / RUN);
    for (uint32_t run = blockIdx.x * (THREADS / RUN) + threadIdx.x / RUN; run < p.runs;
         run += flight * step) {
        uint32_t codes[flight][W];
        bool there[flight];
#pragma unroll
        for (int f = 0; f < flight; f++) {
            bool last = run + f * step >= p.runs;
            uint64_t row = (uint64_t)(last ? run : run + f * step) * p.step + threadIdx.x % RUN;
            there[f] = !last && row < p.rows && !is_removed(p.removed, (uint32_t)row);
            read_code<W>(codes[f], p.codes, p.stride, row < p.rows ? row : 0);
        }
        for (uint32_t j = 0; j < n; j++) {
            uint32_t query[W], x[W];
            read_words<W>(query, words + j * W);
#pragma unroll
            for (int f = 0; f < flight; f++) {
#pragma unroll
                for (int w = 0; w < W; w++) x[w] = query[w] ^ codes[f][w];
                if (there[f]) atomicAdd(local + j * bins + ones<W>(x), 1u);
            }
        }
    }
    __syncthreads();  // all warps have counted
    for (uint32_t i = threadIdx.x; i < n * bins; i += THREADS)
        if (local[i]) atomicAdd(p.histogram + (uint64_t)first * bins + i, local[i]);
    __threadfence();  // the counts come before the ticket
    __syncthreads();  // all threads have added
    if (threadIdx.x == 0) is_last = atomicAdd(p.tickets + blockIdx.y, 1u) == gridDim.x - 1;
    __syncthreads();  // the ticket is known
    if (!is_last || warp >= n) return;
    __threadfence();
    uint32_t query = first + warp;
    uint64_t bound =
        bound_of(p.histogram + (uint64_t)query * bins, bins, p.rank, p.rows, p.ceilings[query]);
    if (threadIdx.x % 32 == 0) p.bounds[query] = bound;
}

// bounds[q] = a key that about `rank` of the keys in the segment of query q reach, if it is below
// bounds[q]. Grid: a block a query.
extern "C" __global__ void __launch_bounds__(THREADS) second_bound(const SecondBoundParams p) {
    __shared__ uint32_t histogram[MAX_BINS];
    uint64_t start = p.begin[blockIdx.x], room = p.begin[blockIdx.x + 1] - start;
    uint32_t n = p.counts[blockIdx.x] < room ? p.counts[blockIdx.x] : (uint32_t)room;
    for (uint32_t i = threadIdx.x; i < p.bins; i += THREADS) histogram[i] = 0;
    __syncthreads();  // the bins are zero
    for (uint32_t i = threadIdx.x; i < n; i += THREADS)
        atomicAdd(histogram + (uint32_t)(p.keys[start + i] >> 32), 1u);
    __syncthreads();  // the distances are counted
    if (threadIdx.x >= 32) return;
    uint64_t bound = bound_of(histogram, p.bins, p.rank, p.rows, p.bounds[blockIdx.x]);
    if (threadIdx.x == 0) p.bounds[blockIdx.x] = bound;
}
