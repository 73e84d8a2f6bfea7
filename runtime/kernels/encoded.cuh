// What an encoder leaves on the GPU: rows of packed bytes, and the logits that they are the signs
// of. Included by hamming.cu.
#pragma once

// ---- packing: rows of bytes -> padded words
// ------------------------------------------------------------------------

// Word w of row i goes to target[i * row_step + (w / 4) * plane_step + w % 4]. Grid: rows / 256.
extern "C" __global__ void __launch_bounds__(THREADS) pack(const PackParams p) {
    uint32_t row = blockIdx.x * THREADS + threadIdx.x;
    if (row >= p.rows) return;
    const uint8_t* __restrict__ bytes = p.source + (uint64_t)row * p.width;
    for (uint32_t w = 0; w < p.words; w++) {
        uint32_t word = 0;
        for (uint32_t b = 0; b < 4 && 4 * w + b < p.width; b++)
            word |= (uint32_t)bytes[4 * w + b] << (8 * b);
        p.target[(uint64_t)row * p.row_step + (w >> 2) * p.plane_step + (w & 3)] = word;
    }
}

// bad[i] = 1 if a value of row i of logits, (rows, bits) as raw bits of float32, is NaN or
// infinite; else 0. Grid: a warp (a block of 32 threads) a row.
extern "C" __global__ void __launch_bounds__(32) not_finite(const NotFiniteParams p) {
    bool own = false;
    for (uint32_t i = threadIdx.x; i < p.bits; i += 32)
        own |= (p.logits[(uint64_t)blockIdx.x * p.bits + i] & 0x7f800000u) == 0x7f800000u;
    uint32_t any = __ballot_sync(FULL, own);
    if (threadIdx.x == 0) p.bad[blockIdx.x] = any != 0;
}
