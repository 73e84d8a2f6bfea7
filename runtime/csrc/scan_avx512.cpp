#define METAH_ISA avx512
#include "simd_avx512.h"
//
#include "bitslice.h"
#include "lanes.h"
#include "mih_probe.h"
#include "rows.h"

namespace metah {

void scan_avx512(const Scan& scan) {
    using namespace avx512;
    if (scan.count >= Simd::kSliceFrom) return slice_scan(scan);
    if (!lane_scan(scan)) row_scan(scan);
}

void probe_avx512(const Probe& probe) { avx512::MihProbe(probe).run(); }

void tally_avx512(const Scan& scan, uint32_t* histogram) { avx512::row_tally(scan, histogram); }

#ifdef METAH_EMULATE_AVX512
int64_t* drain_avx512(uint64_t* words, size_t count, int64_t* out, int64_t*) {
    return avx512::drain_bits(words, 0, count, out);
}
#else
namespace {

// Eight places at a time: the few bits of a word are a branch that nothing can predict.
__attribute__((target("avx512vbmi2"))) int64_t* drain_vbmi2(uint64_t* words, size_t count,
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
    return avx512::drain_bits(words, i, count, out);
}

}  // namespace

int64_t* drain_avx512(uint64_t* words, size_t count, int64_t* out, int64_t* end) {
    static const bool vbmi2 = __builtin_cpu_supports("avx512vbmi2");
    return vbmi2 ? drain_vbmi2(words, count, out, end) : avx512::drain_bits(words, 0, count, out);
}
#endif

}  // namespace metah
