// Kernels::extract_set_bits by VBMI2 where the CPU has it.
#pragma once
#include "scan/set_bits.h"

namespace metah {
namespace METAH_ISA {

#ifdef METAH_EMULATE_AVX512
inline int64_t* extract_set_bits(uint64_t* words, size_t count, int64_t* out, int64_t*) {
    return extract_one_by_one(words, 0, count, out);
}
#else
// Eight places at a time: the few bits of a word are a branch that nothing can predict.
__attribute__((target("avx512vbmi2"))) inline int64_t* extract_vbmi2(uint64_t* words, size_t count,
                                                                     int64_t* out, int64_t* end) {
    alignas(64) uint8_t places[64];
    for (int i = 0; i < 64; ++i) places[i] = static_cast<uint8_t>(i);
    const __m512i all = _mm512_load_si512(places);
    size_t i = 0;
    for (; i < count && end - out >= 64; ++i) {
        const uint64_t left = words[i];
        words[i] = 0;
        __m512i some = _mm512_maskz_compress_epi8(left, all);
        const __m512i base = _mm512_set1_epi64(static_cast<long long>(64 * i));
        const int n = __builtin_popcountll(left);
        int done = 0;
        do {
            const __m512i eight = _mm512_cvtepu8_epi64(_mm512_castsi512_si128(some));
            _mm512_storeu_si512(out + done, _mm512_add_epi64(eight, base));
            some = _mm512_alignr_epi64(some, some, 1);
            done += 8;
        } while (__builtin_expect(done < n, 0));
        out += n;
    }
    return extract_one_by_one(words, i, count, out);
}

inline int64_t* extract_set_bits(uint64_t* words, size_t count, int64_t* out, int64_t* end) {
    return __builtin_cpu_supports("avx512vbmi2") ? extract_vbmi2(words, count, out, end)
                                                 : extract_one_by_one(words, 0, count, out);
}
#endif

}  // namespace METAH_ISA
}  // namespace metah
