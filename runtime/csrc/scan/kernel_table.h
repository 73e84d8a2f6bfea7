// The table of kernels of one instruction set. Each kernels_*.cpp includes this last, after its
// vectors and after `small_scan`, its scan for few queries.
#pragma once
#include "accel/mih_probe.h"
#include "scan/bit_sliced.h"

namespace metah {
namespace METAH_ISA {

inline void scan_rows(const Scan& scan) {
    if (scan.count >= Simd::kSliceFrom) return slice_scan(scan);
    small_scan(scan);
}

inline uint32_t distance(const uint8_t* a, const uint8_t* b, size_t width) {
    uint32_t sum = 0;
    for (size_t w = 0; 8 * w < width; ++w)
        sum +=
            Simd::popcount(load_word(a, width, w, a + width) ^ load_word(b, width, w, b + width));
    return sum;
}

inline void probe_tables(const Probe& probe) { MihProbe(probe).run(); }

#define METAH_QUOTE(name) #name
#define METAH_NAME(name) METAH_QUOTE(name)

const Kernels kernels = {METAH_NAME(METAH_ISA), scan_rows,       row_scan, probe_tables, distance,
                         distance_histograms,   extract_set_bits};

}  // namespace METAH_ISA
}  // namespace metah
