// Row by row scan for few queries: reads each code once, straight from the row-major layout.
#pragma once
#include "scan/words.h"

namespace metah {
namespace METAH_ISA {

// kWidth: bytes of a code, or 0 for any.
template <size_t kWidth>
class RowScan {
  public:
    explicit RowScan(const Scan& scan) : scan_(scan), words_((scan.width + 7) / 8) {
        Carve carve{scratch(scan.count * words_ * 8 + sizeof(Hit) * kTile + 128)};
        queries_ = carve.take<uint64_t>(scan.count * words_);
        hits_ = carve.take<Hit>(kTile);
        const uint8_t* end = scan.queries + scan.count * width();
        for (uint32_t q = 0; q < scan.count; ++q)
            for (size_t w = 0; w < words_; ++w)
                queries_[q * words_ + w] = load_word(scan.queries + q * width(), width(), w, end);
    }

    void run() {
        for (size_t base = scan_.first; base < scan_.last; base += kTile) {
            size_t stop = base + kTile < scan_.last ? base + kTile : scan_.last;
            for (uint32_t q = 0; q < scan_.count; ++q) tile(base, stop, q);
        }
    }

  private:
    static constexpr size_t kTile = 512;  // rows in the first cache while the queries pass
    static constexpr int kStep = 8;       // rows between two looks at the bound

    INLINE size_t width() const { return kWidth ? kWidth : scan_.width; }

    // `row` may be read up to 8 bytes from its start.
    INLINE uint32_t distance(const uint8_t* row, const uint64_t* query) const {
        if constexpr (kWidth == 0) {
            return row_distance(row, query, width(), scan_.end);
        } else if constexpr (kWidth < 8) {
            uint64_t x;
            std::memcpy(&x, row, 8);
            return Simd::popcount((x ^ query[0]) << (64 - 8 * kWidth));
        } else {
            uint32_t sum = 0;
#pragma GCC unroll 16
            for (size_t w = 0; w < kWidth / 8; ++w) {
                uint64_t x;
                std::memcpy(&x, row + 8 * w, 8);
                sum += Simd::popcount(x ^ query[w]);
            }
            static_assert(kWidth < 8 || kWidth % 8 == 0);
            return sum;
        }
    }

    INLINE void tile(size_t base, size_t stop, uint32_t q) {
        uint64_t query[kWidth ? (kWidth + 7) / 8 : 16];
        std::memcpy(query, queries_ + q * words_, words_ * 8);
        const int32_t bound = scan_.bounds[q];
        uint32_t n = 0;
        size_t row = base, wide = stop;
        while (wide > base && scan_.codes + (wide - 1) * width() + 8 > scan_.end) --wide;
        const uint8_t* at = scan_.codes + row * width();
        for (; row + kStep <= wide; row += kStep, at += kStep * width()) {
            int32_t below = 0;
#pragma GCC unroll 8
            for (int i = 0; i < kStep; ++i)
                below |= static_cast<int32_t>(distance(at + i * width(), query)) - bound - 1;
            if (__builtin_expect(below >= 0, 1)) continue;
            for (int i = 0; i < kStep; ++i) {
                auto d = static_cast<int32_t>(distance(at + i * width(), query));
                if (d <= bound)
                    hits_[n++] = {static_cast<uint32_t>(row + i), static_cast<uint32_t>(d)};
            }
        }
        for (; row < stop; ++row, at += width()) {
            auto d = static_cast<int32_t>(row_distance(at, query, width(), scan_.end));
            if (d <= bound) hits_[n++] = {static_cast<uint32_t>(row), static_cast<uint32_t>(d)};
        }
        if (n) scan_.consume(scan_.context, q, hits_, n);
    }

    const Scan& scan_;
    const size_t words_;
    uint64_t* queries_;
    Hit* hits_;
};

// Kernels::distance_histograms.
inline void distance_histograms(const Scan& scan, uint32_t* histogram) {
    const size_t words = (scan.width + 7) / 8;
    const uint8_t* end = scan.queries + scan.count * scan.width;
    for (uint32_t q = 0; q < scan.count; ++q, histogram += 8 * scan.width + 1) {
        uint64_t query[16];
        for (size_t w = 0; w < words; ++w)
            query[w] = load_word(scan.queries + q * scan.width, scan.width, w, end);
        const uint8_t* row = scan.codes + scan.first * scan.width;
        for (size_t i = scan.first; i < scan.last; ++i, row += scan.width)
            ++histogram[row_distance(row, query, scan.width, scan.end)];
    }
}

inline void row_scan(const Scan& scan) {
    switch (scan.width) {
        case 2:
            return RowScan<2>(scan).run();
        case 3:
            return RowScan<3>(scan).run();
        case 4:
            return RowScan<4>(scan).run();
        case 6:
            return RowScan<6>(scan).run();
        case 8:
            return RowScan<8>(scan).run();
        case 16:
            return RowScan<16>(scan).run();
        case 32:
            return RowScan<32>(scan).run();
        case 64:
            return RowScan<64>(scan).run();
        case 128:
            return RowScan<128>(scan).run();
        default:
            return RowScan<0>(scan).run();
    }
}

}  // namespace METAH_ISA
}  // namespace metah
