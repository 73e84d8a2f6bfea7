// 512-bit vectors of AVX-512. METAH_EMULATE_AVX512 maps the intrinsics to SIMDe, for tests.
#pragma once
#ifdef METAH_EMULATE_AVX512
#define SIMDE_ENABLE_NATIVE_ALIASES
#include <simde/x86/avx512.h>
#else
#include <immintrin.h>
#endif

#include "scan/inline.h"

namespace metah {
namespace METAH_ISA {

struct Simd {
    // Queries from which on the bit-sliced scan is the fastest.
    static constexpr uint32_t kSliceFrom = 128;
    static constexpr int kBytes = 64;
    typedef uint64_t V __attribute__((vector_size(64), may_alias));

    static INLINE V broadcast(uint32_t bits) {
        return reinterpret_cast<V>(_mm512_set1_epi32(static_cast<int>(bits)));
    }
    static INLINE uint32_t popcount(uint64_t x) {
        return static_cast<uint32_t>(__builtin_popcountll(x));
    }
    static INLINE bool all_ones(V v) {
        return _mm512_cmpeq_epi64_mask(reinterpret_cast<__m512i>(v), _mm512_set1_epi32(-1)) == 0xff;
    }

    template <int kTable>
    static INLINE V ternary(V a, V b, V c) {
        return reinterpret_cast<V>(_mm512_ternarylogic_epi64(reinterpret_cast<__m512i>(a),
                                                             reinterpret_cast<__m512i>(b),
                                                             reinterpret_cast<__m512i>(c), kTable));
    }
    static INLINE V xor3(V a, V b, V c) { return ternary<0x96>(a, b, c); }
    static INLINE V majority(V a, V b, V c) { return ternary<0xE8>(a, b, c); }

    // Two planes as they are: a full adder is two ternary operations.
    struct Pair {
        V x, y;
        static INLINE Pair of(V x, V y) { return {x, y}; }
        INLINE V second() const { return y; }
        static INLINE Pair stored(V x, V y) { return {x, y}; }
        INLINE V any() const { return x | y; }
        INLINE V add_to(V& sum) const {
            V carry = majority(sum, x, y);
            sum = xor3(sum, x, y);
            return carry;
        }
        static INLINE Pair add(V& sum, const Pair& a, const Pair& b) {
            V first = a.add_to(sum);
            return {first, b.add_to(sum)};
        }
    };
};

}  // namespace METAH_ISA
}  // namespace metah
