#define METAH_ISA portable
#include "simd_portable.h"
//
#include "bitslice.h"
#include "rows.h"

namespace metah {

void scan_portable(const Scan& scan) {
    using namespace portable;
    if (scan.count >= Simd::kSliceFrom) return slice_scan(scan);
    row_scan(scan);
}

}  // namespace metah
