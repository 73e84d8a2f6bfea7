#define METAH_ISA portable
#include "simd_portable.h"
//
#include "bitslice.h"
#include "rows.h"

namespace metah {

void scan_portable(const Scan& scan) {
    if (scan.count < 48)
        portable::row_scan(scan);
    else
        portable::slice_scan(scan);
}

}  // namespace metah
