// Row by row scan for few queries: reads each code once, straight from the row-major layout.
#pragma once
#include "words.h"

namespace metah {
namespace METAH_ISA {

constexpr size_t kTile = 512;   // rows that stay in the first cache while the queries pass
constexpr int kStep = 8;        // rows between two looks at the bound

// kWidth: bytes of a code, or 0 for any.
template <int kWidth>
class RowScan {
  public:
    explicit RowScan(const Scan& scan)
        : scan_(scan), width_(kWidth ? kWidth : scan.width), words_((width_ + 7) / 8) {
        Carve carve{scratch(scan.count * words_ * 8 + sizeof(Hit) * kTile + 128)};
        queries_ = carve.take<uint64_t>(scan.count * words_);
        hits_ = carve.take<Hit>(kTile);
        const uint8_t* end = scan.queries + scan.count * width_;
        for (uint32_t q = 0; q < scan.count; ++q)
            for (size_t w = 0; w < words_; ++w)
                queries_[q * words_ + w] = load_word(scan.queries + q * width_, width_, w, end);
    }

    void run() {
        for (size_t base = scan_.first; base < scan_.last; base += kTile) {
            size_t stop = base + kTile < scan_.last ? base + kTile : scan_.last;
            for (uint32_t q = 0; q < scan_.count; ++q) tile(base, stop, q);
        }
    }

  private:
    INLINE uint32_t distance(const uint8_t* row, const uint64_t* query) const {
        return row_distance(row, query, width_, row + width_ + slack_);
    }

    INLINE void tile(size_t base, size_t stop, uint32_t q) {
        uint64_t query[kWidth ? (kWidth + 7) / 8 : 16];
        std::memcpy(query, queries_ + q * words_, words_ * 8);
        const int32_t bound = scan_.bounds[q];
        uint32_t n = 0;
        size_t row = base;
        // Rows of less than eight bytes are read as eight, except near the end of the memory.
        slack_ = 8;
        size_t wide = stop;
        while (wide > base && scan_.codes + wide * width_ + 8 > scan_.end && width_ < 8) --wide;
        for (; row + kStep <= wide; row += kStep) {
            const uint8_t* at = scan_.codes + row * width_;
            int32_t below = 0;
            for (int i = 0; i < kStep; ++i)
                below |= static_cast<int32_t>(distance(at + i * width_, query)) - bound - 1;
            if (below >= 0) continue;
            for (int i = 0; i < kStep; ++i) {
                auto d = static_cast<int32_t>(distance(at + i * width_, query));
                if (d <= bound)
                    hits_[n++] = {static_cast<uint32_t>(row + i), static_cast<uint32_t>(d)};
            }
        }
        slack_ = 0;
        for (; row < stop; ++row) {
            auto d = static_cast<int32_t>(distance(scan_.codes + row * width_, query));
            if (d <= bound) hits_[n++] = {static_cast<uint32_t>(row), static_cast<uint32_t>(d)};
        }
        if (n) scan_.consume(scan_.context, q, hits_, n);
    }

    const Scan& scan_;
    const size_t width_, words_;
    size_t slack_ = 0;
    uint64_t* queries_;
    Hit* hits_;
};

inline void row_scan(const Scan& scan) {
    switch (scan.width) {
        case 2: return RowScan<2>(scan).run();
        case 4: return RowScan<4>(scan).run();
        case 6: return RowScan<6>(scan).run();
        case 8: return RowScan<8>(scan).run();
        case 16: return RowScan<16>(scan).run();
        case 32: return RowScan<32>(scan).run();
        case 64: return RowScan<64>(scan).run();
        default: return RowScan<0>(scan).run();
    }
}

}  // namespace METAH_ISA
}  // namespace metah
