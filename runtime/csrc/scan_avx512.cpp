#define METAH_ISA avx512
#include "simd_avx512.h"
//
#include "bitslice.h"
#include "rows.h"

namespace metah {

void scan_avx512(const Scan& scan) {
    using namespace avx512;
    if (scan.count >= Simd::kSliceFrom) return slice_scan(scan);
    row_scan(scan);
}

}  // namespace metah
