#include "accel/mih.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>

#include "system/pool.h"

namespace metah {
namespace {

constexpr int kMostBits = 24;         // a table of offsets is at most 64 MiB
// Nanoseconds of one thread: two cache misses, prefetched; one code in a row of them. On a busy Zen 3
// machine `CodeIndex.count` of 4,000 queries on 2^20 and 2^22 random codes of 64 bits takes 0.5 to 1.6
// times the sum of them at radius 1 to 4.
constexpr double kProbeCost = 25;
constexpr double kCandidateCost = 3;

uint32_t substring(const uint8_t* code, size_t width, int first, int length) {
    uint64_t word = 0;
    const size_t at = static_cast<size_t>(first) / 8;
    std::memcpy(&word, code + at, std::min<size_t>(8, width - at));
    return static_cast<uint32_t>(word >> first % 8 & ((uint64_t{1} << length) - 1));
}

}  // namespace

size_t Mih::bytes() const {
    size_t sum = 0;
    for (const Table& t : tables) sum += t.offsets.bytes() + t.items.bytes() + t.codes.bytes();
    return sum;
}

double probe_cost(size_t rows, int tables, int length, int radius) {
    double cost = 0;
    const double bucket = static_cast<double>(rows) / std::exp2(length);
    for (int j = 0; j < tables; ++j) {
        double probes = 0, choose = 1;
        for (int i = 0; i <= substring_radius(radius, tables, j); ++i) {
            probes += choose;
            choose = choose * (length - i) / (i + 1);
        }
        cost += probes * (kProbeCost + bucket * kCandidateCost);
    }
    return cost;
}

MihShape best_shape(size_t rows, int bits, int radius) {
    MihShape best{0, 0, INFINITY};
    const int wide =
        std::min(kMostBits,
                 static_cast<int>(std::log2(std::max<double>(static_cast<double>(rows), 128))) + 1);
    for (int m = 1; m <= std::min({radius + 1, bits / 8, kMaxTables}); ++m) {
        const int length = std::min(bits / m, wide);
        const double cost = probe_cost(rows, m, length, radius);
        if (cost < best.cost) best = {m, length, cost};
    }
    return best;
}

size_t mih_bytes(size_t rows, size_t width, MihShape shape) {
    const size_t buckets = (size_t{1} << shape.length) + 1;
    return static_cast<size_t>(shape.tables) * (4 * buckets + rows * (4 + width));
}

Mih make_mih(const uint8_t* codes, size_t rows, size_t width, size_t stride, MihShape shape,
             int threads) {
    Mih mih;
    mih.length = shape.length;
    mih.width = width;
    mih.tables.resize(static_cast<size_t>(shape.tables));
    const size_t m = mih.tables.size(), workers = std::min(m, static_cast<size_t>(threads));
    parallel(workers, [&](size_t worker) {
        // Each key is read once: codes that change meanwhile must not move a row to another bucket
        // than the one that was counted for it.
        const Buffer<uint32_t> keys(rows);
        for (size_t j = worker; j < m; j += workers) {
            Mih::Table& table = mih.tables[j];
            const int first = static_cast<int>(j) * shape.length;
            // The offsets move up by one bucket while the rows are placed.
            const size_t buckets = size_t{1} << shape.length;
            table.offsets = Buffer<uint32_t>(buckets + 1);
            uint32_t* next = table.offsets.data() + 1;
            std::fill_n(table.offsets.data(), buckets + 1, 0);
            for (size_t row = 0; row < rows; ++row) {
                keys[row] = substring(codes + row * stride, width, first, shape.length);
                ++next[keys[row]];
            }
            uint32_t sum = 0;
            for (size_t i = 0; i < buckets; ++i) sum += std::exchange(next[i], sum);
            table.items = Buffer<uint32_t>(rows);
            table.codes = Buffer<uint8_t>(rows * width);
            for (size_t row = 0; row < rows; ++row) {
                const uint32_t at = next[keys[row]]++;
                uint8_t* code = &table.codes[at * width];
                table.items[at] = static_cast<uint32_t>(row);
                std::memcpy(code, codes + row * stride, width);
                if (substring(code, width, first, shape.length) != keys[row]) throw CodesChanged();
            }
        }
    });
    return mih;
}

}  // namespace metah
