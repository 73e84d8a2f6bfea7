// 128-bit vectors by the compiler's vector extension: SSE2 on x86-64, NEON on aarch64.
#pragma once
#include "words.h"

namespace metah {
namespace METAH_ISA {

struct Simd {
    static constexpr int kBytes = 16;
    typedef uint64_t V __attribute__((vector_size(16), may_alias));

    static INLINE V broadcast(uint32_t bits) {
        uint64_t x = bits | static_cast<uint64_t>(bits) << 32;
        return V{x, x};
    }
    static INLINE bool all_ones(V v) { return (v[0] & v[1]) == ~uint64_t{0}; }
    using Pair = XorPair<V>;
};

}  // namespace METAH_ISA
}  // namespace metah
