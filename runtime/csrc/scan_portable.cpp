#define METAH_ISA portable
#include "simd_portable.h"
//
#include "bitslice.h"
#include "mih_probe.h"
#include "rows.h"

namespace metah {

void scan_portable(const Scan& scan) {
    using namespace portable;
    if (scan.count >= Simd::kSliceFrom) return slice_scan(scan);
    row_scan(scan);
}

void probe_portable(const Probe& probe) { portable::MihProbe(probe).run(); }

void tally_portable(const Scan& scan, uint32_t* histogram) { portable::row_tally(scan, histogram); }

int64_t* drain_portable(uint64_t* words, size_t count, int64_t* out, int64_t*) {
    return portable::drain_bits(words, 0, count, out);
}

}  // namespace metah
