#include "accel/groups.h"

#include <algorithm>
#include <cstring>

namespace metah {
namespace {

uint64_t hash(const uint8_t* code, size_t width) {
    uint64_t h = 0;
    for (size_t i = 0; i < width; i += 8) {
        uint64_t word = 0;
        std::memcpy(&word, code + i, std::min<size_t>(8, width - i));
        h = (h ^ word) * 0x9e3779b97f4a7c15;
        h ^= h >> 32;
    }
    return h * 0xd6e8feb86659fd93;
}

// Open addressing from code to its number in `codes`.
class Numbering {
  public:
    Numbering(std::vector<uint8_t>& codes, size_t width) : codes_(codes), width_(width) {
        slots_.assign(1 << 12, kEmpty);
    }

    uint32_t number(const uint8_t* code) {
        if (2 * (size_t{size_} + 1) > slots_.size()) grow();
        size_t at = place(code);
        for (; slots_[at] != kEmpty; at = (at + 1) & (slots_.size() - 1))
            if (std::memcmp(&codes_[slots_[at] * width_], code, width_) == 0) return slots_[at];
        codes_.insert(codes_.end(), code, code + width_);
        return slots_[at] = size_++;
    }

  private:
    static constexpr uint32_t kEmpty = UINT32_MAX;

    size_t place(const uint8_t* code) const {
        return hash(code, width_) >> 20 & (slots_.size() - 1);
    }

    void grow() {
        slots_.assign(slots_.size() * 2, kEmpty);
        for (uint32_t i = 0; i < size_; ++i) {
            size_t at = place(&codes_[i * width_]);
            while (slots_[at] != kEmpty) at = (at + 1) & (slots_.size() - 1);
            slots_[at] = i;
        }
    }

    std::vector<uint8_t>& codes_;
    const size_t width_;
    std::vector<uint32_t> slots_;
    uint32_t size_ = 0;
};

}  // namespace

Groups make_groups(const Database& db) {
    Groups out;
    const Buffer<uint32_t> group(db.rows);
    {
        Numbering numbering(out.codes, db.width);
        for (size_t row = 0; row < db.rows; ++row) group[row] = numbering.number(db.code(row));
    }
    out.codes.shrink_to_fit();
    out.offsets.assign(out.codes.size() / db.width + 1, 0);
    for (size_t row = 0; row < db.rows; ++row) ++out.offsets[group[row] + 1];
    for (size_t g = 1; g < out.offsets.size(); ++g) out.offsets[g] += out.offsets[g - 1];
    out.rows = Buffer<uint32_t>(db.rows);
    std::vector<uint32_t> next(out.offsets.begin(), out.offsets.end() - 1);
    out.details = Buffer<uint8_t>(db.rows * db.detail);
    for (size_t row = 0; row < db.rows; ++row) {
        const uint32_t at = next[group[row]]++;
        out.rows[at] = static_cast<uint32_t>(row);
        if (db.detail)
            std::memcpy(&out.details[at * db.detail], db.code(row) + db.width, db.detail);
    }
    return out;
}

double groups_bytes(const Database& db, double unique) {
    // Rows and their groups; codes while their vector grows, slots of the numbering, offsets.
    return static_cast<double>((8 + db.detail) * db.rows) +
           unique * (3 * static_cast<double>(db.width) + 16 + 8);
}

double estimate_unique(const Database& db) {
    constexpr size_t kSample = 16384;
    if (db.rows == 0) return 0;
    const size_t n = std::min(db.rows, kSample);
    std::vector<uint64_t> sample(n);
    for (size_t i = 0; i < n; ++i) sample[i] = hash(db.code(i * db.rows / n), db.width);
    std::sort(sample.begin(), sample.end());
    double pairs = 0, run = 1;
    for (size_t i = 1; i <= n; ++i, ++run)
        if (i == n || sample[i] != sample[i - 1]) {
            pairs += run * (run - 1) / 2;
            run = 0;
        }
    const double all = static_cast<double>(n) * static_cast<double>(n - 1) / 2;
    const double rows = static_cast<double>(db.rows);
    return pairs == 0 ? rows : std::min(rows, all / pairs);
}

}  // namespace metah
