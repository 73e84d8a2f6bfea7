#define METAH_ISA portable
#include "scan/simd_portable.h"
//
#include "scan/popcount_rows.h"
#include "scan/set_bits.h"

namespace metah::METAH_ISA {
inline void small_scan(const Scan& scan) { row_scan(scan); }

inline int64_t* extract_set_bits(uint64_t* words, size_t count, int64_t* out, int64_t*) {
    return extract_one_by_one(words, 0, count, out);
}
}  // namespace metah::METAH_ISA

#include "scan/kernel_table.h"
