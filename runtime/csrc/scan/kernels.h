// What every instruction set implements: one scan over rows for a block of queries.
#pragma once
#include <cstddef>
#include <cstdint>

namespace metah {

struct Hit {
    uint32_t row;
    uint32_t distance;
    bool operator<(Hit other) const {
        return distance != other.distance ? distance < other.distance : row < other.row;
    }
};

// Compares rows first..last-1 with every query and reports each row whose distance is <= the
// query's bound. `bounds` is read anew as the scan goes on, so a consumer may lower it; a hit above
// a bound that fell since may still be reported.
struct Scan {
    const uint8_t* codes;  // row 0; `end` is one past the last readable byte
    const uint8_t* end;
    size_t width;  // bytes of a code
    size_t first, last;
    const uint8_t* queries;  // (count, width)
    uint32_t count;          // 1..kMaxQueries
    const int32_t* bounds;   // (count,) >= 0
    // Called with 1..n hits of one query, rows ascending, also from call to call.
    void (*consume)(void* context, uint32_t query, const Hit* hits, uint32_t n);
    void* context;
};

constexpr uint32_t kMaxQueries = 1024;

struct Probe;  // mih.h

struct Kernels {
    const char* name;
    void (*scan)(const Scan&);
    void (*short_scan)(const Scan&);  // the same, faster for a few hundred rows
    void (*probe)(const Probe&);
    uint32_t (*distance)(const uint8_t* a, const uint8_t* b, size_t width);
    // Adds the distances of rows first..last-1 to histograms: (count, bits + 1). No bounds, no
    // hits.
    void (*distance_histograms)(const Scan&, uint32_t* histograms);
    // Writes the places of the bits that are set in words 0..count-1, ascending, and clears them;
    // returns the end of what it wrote. Between that and `end` it may write anything.
    int64_t* (*extract_set_bits)(uint64_t* words, size_t count, int64_t* out, int64_t* end);
};

// One table for each instruction set, compiled with its flags (kernel_table.h).
namespace portable {
extern const Kernels kernels;
}
namespace avx2 {
extern const Kernels kernels;
}
namespace avx512 {
extern const Kernels kernels;
}

// A buffer of this thread, 64-byte aligned, valid until its next call.
unsigned char* scratch(size_t bytes);

// The kernels of METAH_SIMD (portable, avx2, avx512), without it the fastest that this CPU runs.
// Throws std::runtime_error for an unknown name and for one that the CPU lacks.
const Kernels& pick_kernels();

}  // namespace metah
