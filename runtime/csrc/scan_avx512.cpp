#define METAH_ISA avx512
#include "simd_avx512.h"
//
#include "bitslice.h"
#include "lanes.h"
#include "mih_probe.h"
#include "rows.h"

namespace metah {

void scan_avx512(const Scan& scan) {
    using namespace avx512;
    if (scan.count >= Simd::kSliceFrom) return slice_scan(scan);
    if (!lane_scan(scan)) row_scan(scan);
}

void probe_avx512(const Probe& probe) { avx512::MihProbe(probe).run(); }

void tally_avx512(const Scan& scan, uint32_t* histogram) { avx512::row_tally(scan, histogram); }

}  // namespace metah
