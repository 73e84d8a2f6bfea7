#define METAH_ISA avx512
#include "scan/simd_avx512.h"
//
#include "scan/popcount_avx512.h"
#include "scan/popcount_rows.h"
#include "scan/set_bits_avx512.h"

namespace metah::METAH_ISA {
inline void small_scan(const Scan& scan) {
    if (!popcount_scan(scan)) row_scan(scan);
}
}  // namespace metah::METAH_ISA

#include "scan/kernel_table.h"
