// Scan by vector popcount for small and middling batches, AVX-512 VPOPCNTDQ.
//
// A tile of codes stays in sixteen registers, one code a lane and word, while the queries pass:
// exclusive or, popcount, minimum over the tile, one compare with the query's bound. The few
// queries with a hit are noted and looked at after the loop.
#pragma once
#include "scan/words.h"

namespace metah {
namespace METAH_ISA {

struct Lane64 {
    using Word = uint64_t;
    static INLINE __m512i popcount(__m512i x) { return _mm512_popcnt_epi64(x); }
    static INLINE __m512i broadcast(uint64_t x) {
        return _mm512_set1_epi64(static_cast<long long>(x));
    }
    static INLINE uint32_t at_most(__m512i a, __m512i b) { return _mm512_cmple_epu64_mask(a, b); }
};

struct Lane32 {
    using Word = uint32_t;
    static INLINE __m512i popcount(__m512i x) { return _mm512_popcnt_epi32(x); }
    static INLINE __m512i broadcast(uint64_t x) { return _mm512_set1_epi32(static_cast<int>(x)); }
    static INLINE uint32_t at_most(__m512i a, __m512i b) { return _mm512_cmple_epu32_mask(a, b); }
};

template <class Lane, int kWordsOfCode>
class PopcountScan {
  public:
    explicit PopcountScan(const Scan& scan) : scan_(scan) {
        Carve carve{scratch(scan.count * (8 * kWordsOfCode + 4) + sizeof(Hit) * kTile + 64 * 20)};
        tile_ = carve.take<__m512i>(16);
        queries_ = carve.take<uint64_t>(scan.count * kWordsOfCode);
        near_ = carve.take<uint32_t>(scan.count);
        hits_ = carve.take<Hit>(kTile);
        const uint8_t* end = scan.queries + scan.count * scan.width;
        for (uint32_t q = 0; q < scan.count; ++q)
            for (int w = 0; w < kWordsOfCode; ++w)
                queries_[q * kWordsOfCode + w] =
                    load_word(scan.queries + q * scan.width, scan.width, w, end);
    }

    void run() {
        for (size_t base = scan_.first; base < scan_.last; base += kTile) {
            prefetch_ahead(scan_.codes + base * scan_.width, kTile * scan_.width);
            load_tile(base);
            __m512i code[kWordsOfCode][kVectors];
            for (int w = 0; w < kWordsOfCode; ++w)
                for (int v = 0; v < kVectors; ++v) code[w][v] = tile_[w * kVectors + v];
            uint32_t n = 0;
            for (uint32_t q = 0; q < scan_.count; ++q) {
                __m512i least = distances(code, q, 0);
#pragma GCC unroll 16
                for (int v = 1; v < kVectors; ++v)
                    least = _mm512_min_epu32(least, distances(code, q, v));
                near_[n] = q;
                n += Lane::at_most(least, bound(q)) != 0;
            }
            for (uint32_t i = 0; i < n; ++i) report(base, near_[i], code);
        }
    }

  private:
    static constexpr int kVectors = 16 / kWordsOfCode;
    static constexpr size_t kLanesOf = 64 / sizeof(typename Lane::Word);
    static constexpr size_t kTile = kVectors * kLanesOf;
    using Codes = __m512i[kWordsOfCode][kVectors];

    // tile_[w * kVectors + v]: word w of codes v * kLanesOf ..
    void load_tile(size_t base) {
        auto* out = reinterpret_cast<unsigned char*>(tile_);
        const uint8_t* row = scan_.codes + base * scan_.width;
        if (scan_.width == sizeof(typename Lane::Word) * kWordsOfCode &&
            base + kTile <= scan_.last) {
            for (int v = 0; v < kVectors; ++v) {
                __m512i codes[kWordsOfCode];
                for (int i = 0; i < kWordsOfCode; ++i)
                    codes[i] = _mm512_loadu_si512(row + 64 * (v * kWordsOfCode + i));
                split<kWordsOfCode>(codes, tile_ + v, kVectors);
            }
            return;
        }
        if (scan_.width == 6 && base + kTile <= scan_.last && row + 6 * kTile + 16 <= scan_.end) {
            for (size_t v = 0; v < kVectors; ++v)
                tile_[v] = widen6(_mm512_loadu_si512(row + 6 * kLanesOf * v));
            return;
        }
        for (size_t i = 0; i < kTile; ++i, row += scan_.width)
            for (size_t w = 0; w < kWordsOfCode; ++w) {
                const auto x = static_cast<typename Lane::Word>(
                    base + i < scan_.last ? load_word(row, scan_.width, w, scan_.end) : 0);
                std::memcpy(out + (w * kTile + i) * sizeof x, &x, sizeof x);
            }
    }

    // The words of eight codes, code by code in n vectors -> out[w * step], word w of all eight.
    template <int n>
    static INLINE void split(const __m512i* codes, __m512i* out, int step) {
        if constexpr (n == 1) {
            *out = *codes;
        } else {
            const __m512i evens = _mm512_setr_epi64(0, 2, 4, 6, 8, 10, 12, 14);
            const __m512i odds = _mm512_setr_epi64(1, 3, 5, 7, 9, 11, 13, 15);
            __m512i even[n / 2], odd[n / 2];
            for (int i = 0; i < n / 2; ++i) {
                even[i] = _mm512_permutex2var_epi64(codes[2 * i], evens, codes[2 * i + 1]);
                odd[i] = _mm512_permutex2var_epi64(codes[2 * i], odds, codes[2 * i + 1]);
            }
            split<n / 2>(even, out, 2 * step);
            split<n / 2>(odd, out + step, 2 * step);
        }
    }

    // Eight codes of six bytes each -> one a lane, zeros above.
    static INLINE __m512i widen6(__m512i codes) {
        uint16_t from[32];
        for (int i = 0; i < 32; ++i) from[i] = static_cast<uint16_t>(3 * (i / 4) + i % 4 % 3);
        return _mm512_maskz_permutexvar_epi16(0x77777777, _mm512_loadu_si512(from), codes);
    }

    INLINE __m512i bound(uint32_t q) const {
        return Lane::broadcast(static_cast<uint64_t>(scan_.bounds[q]));
    }

    INLINE __m512i distances(const Codes& code, uint32_t q, int v) const {
        const uint64_t* query = queries_ + q * kWordsOfCode;
        __m512i sum = Lane::popcount(_mm512_xor_si512(code[0][v], Lane::broadcast(query[0])));
        for (int w = 1; w < kWordsOfCode; ++w)
            sum = _mm512_add_epi32(
                sum, Lane::popcount(_mm512_xor_si512(code[w][v], Lane::broadcast(query[w]))));
        return sum;
    }

    void report(size_t base, uint32_t q, const Codes& code) {
        uint32_t n = 0;
        for (int v = 0; v < kVectors; ++v) {
            const __m512i d = distances(code, q, v);
            typename Lane::Word distance[kLanesOf];
            std::memcpy(distance, &d, 64);
            for (uint32_t mask = Lane::at_most(d, bound(q)); mask; mask &= mask - 1) {
                const auto lane = static_cast<size_t>(__builtin_ctz(mask));
                const size_t row = base + v * kLanesOf + lane;
                if (row >= scan_.last) break;
                hits_[n++] = {static_cast<uint32_t>(row), static_cast<uint32_t>(distance[lane])};
            }
        }
        if (n) scan_.consume(scan_.context, q, hits_, n);
    }

    const Scan& scan_;
    __m512i* tile_;
    uint64_t* queries_;
    uint32_t* near_;
    Hit* hits_;
};

// False: no kernel for this width.
inline bool popcount_scan(const Scan& scan) {
    if (scan.width <= 4)
        PopcountScan<Lane32, 1>(scan).run();
    else if (scan.width <= 8)
        PopcountScan<Lane64, 1>(scan).run();
    else if (scan.width <= 16)
        PopcountScan<Lane64, 2>(scan).run();
    else if (scan.width > 24 && scan.width <= 32)
        PopcountScan<Lane64, 4>(scan).run();
    else if (scan.width > 56 && scan.width <= 64)
        PopcountScan<Lane64, 8>(scan).run();
    else
        return false;
    return true;
}

}  // namespace METAH_ISA
}  // namespace metah
