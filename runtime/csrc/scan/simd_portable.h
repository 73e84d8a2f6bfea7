// 128-bit vectors by the compiler's vector extension: SSE2 on x86-64, NEON on aarch64.
#pragma once
#include "scan/xor_pair.h"

namespace metah {
namespace METAH_ISA {

struct Simd {
    // Queries from which on the bit-sliced scan is the fastest.
    static constexpr uint32_t kSliceFrom = 8;
    static constexpr int kBytes = 16;
    typedef uint64_t V __attribute__((vector_size(16), may_alias));

    static INLINE V broadcast(uint32_t bits) {
        uint64_t x = bits | static_cast<uint64_t>(bits) << 32;
        return V{x, x};
    }
    static INLINE uint32_t popcount(uint64_t x) {
        x -= x >> 1 & 0x5555555555555555;
        x = (x & 0x3333333333333333) + (x >> 2 & 0x3333333333333333);
        x = (x + (x >> 4)) & 0x0f0f0f0f0f0f0f0f;
        return static_cast<uint32_t>(x * 0x0101010101010101 >> 56);
    }
    static INLINE bool all_ones(V v) { return (v[0] & v[1]) == ~uint64_t{0}; }
    using Pair = XorPair<Simd>;
};

}  // namespace METAH_ISA
}  // namespace metah
