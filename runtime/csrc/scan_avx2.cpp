#define METAH_ISA avx2
#include "simd_avx2.h"
//
#include "bitslice.h"
#include "mih_probe.h"
#include "nibble.h"
#include "rows.h"

namespace metah {

void scan_avx2(const Scan& scan) {
    using namespace avx2;
    if (scan.count >= Simd::kSliceFrom) return slice_scan(scan);
    if (scan.count > 1) return NibbleScan(scan).run();
    row_scan(scan);
}

void probe_avx2(const Probe& probe) { avx2::MihProbe(probe).run(); }

void tally_avx2(const Scan& scan, uint32_t* histogram) { avx2::row_tally(scan, histogram); }

int64_t* drain_avx2(uint64_t* words, size_t count, int64_t* out, int64_t*) {
    return avx2::drain_bits(words, 0, count, out);
}

}  // namespace metah
