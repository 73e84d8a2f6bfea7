#define METAH_ISA avx512
#include "simd_avx512.h"
//
#include "bitslice.h"
#include "rows.h"

namespace metah {

void scan_avx512(const Scan& scan) {
    if (scan.count < 48)
        avx512::row_scan(scan);
    else
        avx512::slice_scan(scan);
}

}  // namespace metah
