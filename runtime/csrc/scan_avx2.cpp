#define METAH_ISA avx2
#include "simd_avx2.h"
//
#include "bitslice.h"
#include "rows.h"

namespace metah {

void scan_avx2(const Scan& scan) {
    if (scan.count < 48)
        avx2::row_scan(scan);
    else
        avx2::slice_scan(scan);
}

}  // namespace metah
