// 256-bit vectors of AVX2.
#pragma once
#include <immintrin.h>

#include "scan/xor_pair.h"

namespace metah {
namespace METAH_ISA {

struct Simd {
    // Queries from which on the bit-sliced scan is the fastest.
    static constexpr uint32_t kSliceFrom = 160;
    static constexpr int kBytes = 32;
    typedef uint64_t V __attribute__((vector_size(32), may_alias));

    static INLINE V broadcast(uint32_t bits) {
        return reinterpret_cast<V>(_mm256_set1_epi32(static_cast<int>(bits)));
    }
    static INLINE uint32_t popcount(uint64_t x) {
        return static_cast<uint32_t>(__builtin_popcountll(x));
    }
    static INLINE bool all_ones(V v) {
        return _mm256_testc_si256(reinterpret_cast<__m256i>(v), _mm256_set1_epi32(-1));
    }
    using Pair = XorPair<Simd>;
};

}  // namespace METAH_ISA
}  // namespace metah
