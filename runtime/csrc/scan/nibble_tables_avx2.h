// Scan by nibble tables for middling batches, AVX2.
//
// A tile of 128 codes is turned to one byte vector a nibble. The distance of a nibble to the
// query's is one shuffle: the query's nibble picks the 16-entry table, the code's nibble the entry
// (the in-register tables of André, Kermarrec and Le Scouarnec, "Cache locality is not enough:
// high-performance nearest neighbor search with product quantization fast scan", VLDB 2015).
#pragma once
#include "scan/words.h"

namespace metah {
namespace METAH_ISA {

class NibbleScan {
  public:
    explicit NibbleScan(const Scan& scan)
        : scan_(scan), words_((scan.width + 7) / 8), nibbles_(2 * scan.width) {
        const size_t count = scan.count + 1;  // the last may be scanned with a copy of itself
        Carve carve{scratch(sizeof(__m256i) * (kVectors * 16 * words_ + 16) + sizeof(Hit) * kTile +
                            count * (8 * words_ + 2 * nibbles_) + 6 * 64)};
        planes_ = carve.take<__m256i>(kVectors * 16 * words_);
        tables_ = carve.take<__m256i>(16);
        hits_ = carve.take<Hit>(kTile);
        queries_ = carve.take<uint64_t>(count * words_);
        offsets_ = carve.take<uint16_t>(count * nibbles_);
        for (int v = 0; v < 16; ++v) {
            unsigned char entry[32];
            for (int i = 0; i < 32; ++i)
                entry[i] = static_cast<unsigned char>(__builtin_popcount(v ^ (i & 15)));
            std::memcpy(tables_ + v, entry, 32);
        }
        const uint8_t* end = scan.queries + scan.count * scan.width;
        for (size_t q = 0; q < count; ++q) {
            const uint8_t* query =
                scan.queries + (q < scan.count ? q : scan.count - 1) * scan.width;
            for (size_t w = 0; w < words_; ++w)
                queries_[q * words_ + w] = load_word(query, scan.width, w, end);
            for (size_t j = 0; j < nibbles_; ++j)
                offsets_[q * nibbles_ + j] =
                    static_cast<uint16_t>((query[j / 2] >> (j % 2 ? 4 : 0) & 15) * 32);
        }
    }

    void run() {
        for (size_t base = scan_.first; base < scan_.last; base += kTile) {
            make_planes(base);
            for (uint32_t q = 0; q < scan_.count; q += 2) two_queries(base, q);
        }
    }

  private:
    static constexpr int kVectors = 4;
    static constexpr size_t kTile = 32 * kVectors;

    // planes_[(j * kVectors + v)]: nibble j of codes 32 v..32 v + 31, in the order of `ascending`.
    void make_planes(size_t base) {
        const __m256i low = _mm256_set1_epi8(15);
        for (int v = 0; v < kVectors; ++v)
            for (size_t w = 0; w < words_; ++w) {
                uint64_t word[32];
                const size_t first = base + 32 * v;
                const void* words = word;
                if (scan_.width == 8 && first + 32 <= scan_.last) {
                    words = scan_.codes + 8 * first;
                } else {
                    for (size_t i = 0; i < 32; ++i)
                        word[i] = first + i < scan_.last
                                      ? load_word(scan_.codes + (first + i) * scan_.width,
                                                  scan_.width, w, scan_.end)
                                      : 0;
                }
                __m256i byte[8];
                transpose_bytes(static_cast<const __m256i*>(words), byte);
                for (size_t j = 0; j < 8; ++j) {
                    __m256i* out = planes_ + (16 * w + 2 * j) * kVectors + v;
                    out[0] = _mm256_and_si256(byte[j], low);
                    out[kVectors] = _mm256_and_si256(_mm256_srli_epi16(byte[j], 4), low);
                }
            }
    }

    // Byte j of 32 words into out[j]: word 4r + 2l + b at byte 16 l + 2r + b.
    static INLINE void transpose_bytes(const __m256i* in, __m256i* out) {
        const __m256i pairs = _mm256_broadcastsi128_si256(
            _mm_setr_epi8(0, 8, 1, 9, 2, 10, 3, 11, 4, 12, 5, 13, 6, 14, 7, 15));
        __m256i a[8], b[8];
        for (int r = 0; r < 8; ++r) a[r] = _mm256_shuffle_epi8(_mm256_loadu_si256(in + r), pairs);
        for (int r = 0; r < 4; ++r) {
            b[r] = _mm256_unpacklo_epi16(a[2 * r], a[2 * r + 1]);
            b[r + 4] = _mm256_unpackhi_epi16(a[2 * r], a[2 * r + 1]);
        }
        for (int h = 0; h < 2; ++h)
            for (int r = 0; r < 2; ++r) {
                a[4 * h + r] = _mm256_unpacklo_epi32(b[4 * h + 2 * r], b[4 * h + 2 * r + 1]);
                a[4 * h + 2 + r] = _mm256_unpackhi_epi32(b[4 * h + 2 * r], b[4 * h + 2 * r + 1]);
            }
        for (int h = 0; h < 4; ++h) {
            out[2 * h] = _mm256_unpacklo_epi64(a[2 * h], a[2 * h + 1]);
            out[2 * h + 1] = _mm256_unpackhi_epi64(a[2 * h], a[2 * h + 1]);
        }
    }

    static INLINE uint32_t ascending(uint32_t mask) {
        return _pdep_u32(mask & 0xffff, 0x33333333) | _pdep_u32(mask >> 16, 0xcccccccc);
    }

    INLINE void two_queries(size_t base, uint32_t q) {
        const uint16_t* offset0 = offsets_ + q * nibbles_;
        const uint16_t* offset1 = offset0 + nibbles_;
        const auto* tables = reinterpret_cast<const unsigned char*>(tables_);
        __m256i d0[kVectors] = {}, d1[kVectors] = {};
        for (size_t j = 0; j < nibbles_; ++j) {
            const __m256i table0 = *reinterpret_cast<const __m256i*>(tables + offset0[j]);
            const __m256i table1 = *reinterpret_cast<const __m256i*>(tables + offset1[j]);
            const __m256i* plane = planes_ + j * kVectors;
            for (int v = 0; v < kVectors; ++v) {
                d0[v] = _mm256_adds_epu8(d0[v], _mm256_shuffle_epi8(table0, plane[v]));
                d1[v] = _mm256_adds_epu8(d1[v], _mm256_shuffle_epi8(table1, plane[v]));
            }
        }
        look(base, q, d0);
        if (q + 1 < scan_.count) look(base, q + 1, d1);
    }

    INLINE void look(size_t base, uint32_t q, const __m256i* d) {
        const int bound = scan_.bounds[q] < 255 ? scan_.bounds[q] : 255;
        const __m256i limit = _mm256_set1_epi8(static_cast<char>(bound));
        __m256i in[kVectors], any = _mm256_setzero_si256();
        for (int v = 0; v < kVectors; ++v) {
            in[v] = _mm256_cmpeq_epi8(_mm256_min_epu8(d[v], limit), d[v]);
            any = _mm256_or_si256(any, in[v]);
        }
        if (__builtin_expect(!_mm256_testz_si256(any, any), 0)) report(base, q, in);
    }

    __attribute__((noinline)) void report(size_t base, uint32_t q, const __m256i* in) {
        uint32_t n = 0;
        for (int v = 0; v < kVectors; ++v) {
            auto mask = ascending(static_cast<uint32_t>(_mm256_movemask_epi8(in[v])));
            for (; mask; mask &= mask - 1) {
                const size_t row = base + 32 * v + static_cast<size_t>(__builtin_ctz(mask));
                if (row >= scan_.last) break;
                const uint32_t d = row_distance(scan_.codes + row * scan_.width,
                                                queries_ + q * words_, scan_.width, scan_.end);
                if (static_cast<int32_t>(d) <= scan_.bounds[q])
                    hits_[n++] = {static_cast<uint32_t>(row), d};
            }
        }
        if (n) scan_.consume(scan_.context, q, hits_, n);
    }

    const Scan& scan_;
    const size_t words_, nibbles_;
    __m256i* planes_;
    __m256i* tables_;
    Hit* hits_;
    uint64_t* queries_;
    uint16_t* offsets_;
};

}  // namespace METAH_ISA
}  // namespace metah
