// Selection: the first k keys of each query in order. Included by hamming.cu.
#pragma once

// Sort `size` keys, a power of two, in shared memory (bitonic network). All threads of the block
// call.
__device__ __forceinline__ void sort_shared(uint64_t* keys, uint32_t size) {
    for (uint32_t run = 2; run <= size; run *= 2) {
        for (uint32_t gap = run / 2; gap > 0; gap /= 2) {
            __syncthreads();  // the step before is complete
            for (uint32_t i = threadIdx.x; i < size / 2; i += THREADS) {
                uint32_t low = 2 * i - (i & (gap - 1)), high = low + gap;
                uint64_t x = keys[low], y = keys[high];
                if ((x > y) == ((low & run) == 0)) keys[low] = y, keys[high] = x;
            }
        }
    }
    __syncthreads();  // the last step is complete
}

// One stable pass of a radix sort by 8 bits from `shift`, n > 0, ends with a barrier. All threads
// of the block call; tallies: (WARPS, 256), base: 256.
__device__ __forceinline__ void sort_pass(const uint64_t* source, uint64_t* target, uint32_t n,
                                          uint32_t shift, uint32_t (*tallies)[256],
                                          uint32_t* base) {
    uint32_t lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    __syncthreads();  // the pass before is complete
    base[threadIdx.x] = 0;
    __syncthreads();  // the counts are zero
    for (uint32_t i = threadIdx.x; i < n; i += THREADS)
        atomicAdd(base + (uint32_t)(source[i] >> shift & 255), 1u);
    __syncthreads();  // the digits are counted
    if (warp == 0) {
        uint32_t carry = 0;
        for (uint32_t first = 0; first < 256; first += 32) {
            uint32_t own = base[first + lane], sum = own;
            for (uint32_t step = 1; step < 32; step *= 2) {
                uint32_t other = __shfl_up_sync(FULL, sum, step);
                if (lane >= step) sum += other;
            }
            base[first + lane] = carry + sum - own;
            carry += __shfl_sync(FULL, sum, 31);
        }
    }
    for (uint32_t first = 0; first < n; first += THREADS) {
        for (uint32_t i = lane; i < 256; i += 32) tallies[warp][i] = 0;
        __syncwarp();
        uint32_t i = first + threadIdx.x;
        uint64_t key = i < n ? source[i] : 0;
        uint32_t digit = i < n ? (uint32_t)(key >> shift & 255) : 256 + lane;
        uint32_t equal = __match_any_sync(FULL, digit), rank = __popc(equal & ((1u << lane) - 1));
        if (i < n && rank == 0) tallies[warp][digit] = __popc(equal);
        __syncthreads();  // the tallies and the bases are complete
        if (i < n) {
            uint32_t place = base[digit] + rank;
            for (uint32_t w = 0; w < warp; w++) place += tallies[w][digit];
            target[place] = key;
        }
        __syncthreads();  // the bases have been read
        for (uint32_t w = 0; w < WARPS; w++) base[threadIdx.x] += tallies[w][threadIdx.x];
        __syncthreads();  // the tallies have been read
    }
}

// The min(k, n) smallest of the n keys in each query's segment, in order, to out[out_begin[q] ..].
// scratch is as large as keys; row_bytes: bytes of the largest row. Grid: a block a query.
extern "C" __global__ void __launch_bounds__(THREADS) first_keys(const FirstKeysParams p) {
    __shared__ uint32_t histogram[MAX_BINS], base[256], tallies[WARPS][256], farthest, kept;
    __shared__ uint64_t sorted[SORT_SIZE];
    uint32_t query = blockIdx.x;
    uint64_t start = p.begin[query], room = p.begin[query + 1] - start;
    uint32_t n = p.counts[query] < room ? p.counts[query] : (uint32_t)room;
    uint64_t *source = p.keys + start, *other = p.scratch + start;
    if (n == 0) return;
    for (uint32_t i = threadIdx.x; i < p.bins; i += THREADS) histogram[i] = 0;
    if (threadIdx.x == 0) kept = 0;
    __syncthreads();  // the bins are zero
    for (uint32_t i = threadIdx.x; i < n; i += THREADS)
        atomicAdd(histogram + (uint32_t)(source[i] >> 32), 1u);
    __syncthreads();  // the distances are counted
    if (threadIdx.x < 32) {
        uint32_t below, bin = find_bin(histogram, p.bins, min(p.k, n), below);
        if (threadIdx.x == 0) farthest = bin, base[0] = below + histogram[bin];
    }
    __syncthreads();  // the farthest distance is known
    uint32_t near = base[0], wanted = min(p.k, near), last = farthest;
    bool small = near <= SORT_SIZE;
    for (uint32_t i = threadIdx.x; i < n; i += THREADS) {
        uint64_t key = source[i];
        if ((uint32_t)(key >> 32) <= last) (small ? sorted : other)[atomicAdd(&kept, 1u)] = key;
    }
    const uint64_t* result = sorted;
    if (small) {
        uint32_t size = 2;
        while (size < near) size *= 2;
        for (uint32_t i = near + threadIdx.x; i < size; i += THREADS) sorted[i] = ~0ull;
        sort_shared(sorted, size);
    } else {
        uint32_t distance_bytes = last > 255 ? 2 : 1;
        uint64_t *from = other, *to = source;
        for (uint32_t pass = 0; pass < p.row_bytes + distance_bytes; pass++) {
            uint32_t shift = pass < p.row_bytes ? 8 * pass : 32 + 8 * (pass - p.row_bytes);
            sort_pass(from, to, near, shift, tallies, base);
            uint64_t* swap = from;
            from = to, to = swap;
        }
        result = from;
    }
    for (uint32_t i = threadIdx.x; i < wanted; i += THREADS)
        p.out[p.out_begin[query] + i] = result[i];
}
