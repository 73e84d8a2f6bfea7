// Everything that the host must know about the kernels: widths, tile sizes, architectures and
// parameters.
//
// metah_runtime/cuda/interface.py reads this text, so that each value stands in one place. It
// understands one
// `#define NAME number` a line, the lists POPC_WIDTHS and MMA_WIDTHS, and structs with one field a
// line, each uint32_t, uint64_t or a pointer.
#pragma once
#ifndef METAH_SHIM
#include <cstdint>
#endif

// clang-format off: the host reads these lines, one value or list a line
#define THREADS 256        // of a block, in every kernel but those of one warp
#define QUERY_TILE 64      // queries in shared memory at a time, popcount scan
#define MMA_QUERY_TILE 128 // the same for the tensor-core scan
#define MMA_TILE_CODES 16  // codes in a tile of the tensor-core scan
#define RUN 32             // neighbouring codes that the sample takes together
#define SAMPLE_QUERIES 8   // queries that one load of the sample meets
#define ROW_STEP 4096      // codes are stored in multiples of this many, so that no load of a scan needs a guard
#define MMA_ARCH_FIRST 80  // tensor cores have a native binary AND-popcount product from this architecture ...
#define MMA_ARCH_END 100   // ... to the ones before this

// X(words a code, codes that a thread of the popcount scan keeps in registers)
#define POPC_WIDTHS(X) X(1, 16) X(2, 8) X(4, 8) X(8, 4) X(12, 2) X(16, 2) X(20, 2) X(24, 2) X(28, 2) X(32, 2)
// X(words a code, tiles that a warp of the tensor-core scan keeps in registers)
#define MMA_WIDTHS(X) X(2, 8) X(4, 4) X(8, 4) X(12, 2) X(16, 2) X(20, 2) X(24, 2) X(28, 2) X(32, 2)
// clang-format on

struct ScanParams {           // scan, count, mma, mma_count
    const uint32_t* codes;    // in the layout of hamming.cu
    uint64_t stride;          // codes in a plane, a multiple of ROW_STEP
    const uint32_t* queries;  // (n_queries, words)
    const uint64_t* bounds;   // (n_queries), largest key of an answer
    const uint64_t* begin;    // (n_queries + 1), segments of keys; not for count
    uint32_t* counts;         // (n_queries), zero before
    uint64_t* keys;           // not for count
    const uint32_t* removed;  // a bit a row, or null
    uint32_t rows;
    uint32_t n_queries;
    uint32_t group;  // queries of a block, a multiple of the query tile
    uint32_t part;   // 0: all blocks of codes, 1: every `every`-th, 2: the others
    uint32_t every;
    uint32_t keep;  // 1: the codes fit the L2 cache
};

struct SampleParams {
    const uint32_t* codes;
    uint64_t stride;
    const uint32_t* queries;
    uint32_t* histogram;  // (queries, bins), zero before
    uint32_t* tickets;    // (groups of SAMPLE_QUERIES), zero before
    const uint32_t* removed;
    const uint64_t* ceilings;  // (queries)
    uint64_t* bounds;          // (queries), written
    uint32_t n_queries;
    uint32_t rows;
    uint32_t runs;  // runs of RUN codes in the sample
    uint32_t step;  // codes from one run to the next
    uint32_t rank;  // of the sampled distance that becomes the bound
};

struct SecondBoundParams {
    const uint64_t* keys;
    const uint64_t* begin;   // (queries + 1), segments of keys
    const uint32_t* counts;  // (queries), keys found
    uint64_t* bounds;        // (queries), lowered
    uint32_t bins;
    uint32_t rank;  // of the key that becomes the bound
    uint32_t rows;
};

struct FirstKeysParams {
    uint64_t* keys;             // overwritten
    uint64_t* scratch;          // as large as keys
    const uint64_t* begin;      // (queries + 1), segments of keys
    const uint32_t* counts;     // (queries), keys found
    const uint64_t* out_begin;  // (queries), where each query's answer starts
    uint64_t* out;              // written
    uint32_t k;
    uint32_t bins;
    uint32_t row_bytes;  // bytes of the largest row number
};

struct PackParams {
    const uint8_t* source;  // (rows, width)
    uint32_t* target;       // word w of row i goes to i * row_step + (w / 4) * plane_step + w % 4
    uint64_t plane_step;
    uint32_t row_step;
    uint32_t width;  // bytes a code
    uint32_t rows;
    uint32_t words;  // words a code, padded
};

struct NotFiniteParams {
    const uint32_t* logits;  // (rows, bits), the bits of float32
    uint32_t* bad;           // (rows), written
    uint32_t bits;
};
