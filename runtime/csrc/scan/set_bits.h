// Kernels::extract_set_bits one bit at a time.
#pragma once
#include "scan/words.h"

namespace metah {
namespace METAH_ISA {

// From word `first` on.
inline int64_t* extract_one_by_one(uint64_t* words, size_t first, size_t count, int64_t* out) {
    for (size_t i = first; i < count; ++i) {
        uint64_t left = words[i];
        words[i] = 0;
        for (; left; left &= left - 1)
            *out++ = static_cast<int64_t>(64 * i) + __builtin_ctzll(left);
    }
    return out;
}

}  // namespace METAH_ISA
}  // namespace metah
