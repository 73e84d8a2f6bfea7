#include "search.h"

#include <bit>
#include <cstring>

#include "select.h"

namespace metah {
namespace {

uint32_t distance(const uint8_t* a, const uint8_t* b, size_t width) {
    uint32_t sum = 0;
    size_t i = 0;
    for (; i + 8 <= width; i += 8) {
        uint64_t x, y;
        std::memcpy(&x, a + i, 8);
        std::memcpy(&y, b + i, 8);
        sum += std::popcount(x ^ y);
    }
    for (; i < width; ++i) sum += std::popcount(static_cast<unsigned>(a[i] ^ b[i]));
    return sum;
}

}  // namespace

void search(const Database& db, Queries queries, uint64_t k, int, int64_t* ids,
            int32_t* distances) {
    for (size_t q = 0; q < queries.count; ++q) {
        TopK best(db.bits(), k);
        const uint8_t* query = queries.codes + q * db.width;
        for (size_t row = 0; row < db.rows && best.bound() >= 0; ++row) {
            uint32_t d = distance(query, db.codes + row * db.width, db.width);
            if (static_cast<int>(d) <= best.bound() && !db.gone(row))
                best.add({static_cast<uint32_t>(row), d});
        }
        for (const Hit& hit : best.sorted()) {
            *ids++ = db.id(hit.row);
            *distances++ = static_cast<int32_t>(hit.distance);
        }
    }
}

Ranges range_search(const Database& db, Queries queries, int radius, int) {
    Ranges out;
    out.lims.push_back(0);
    std::vector<std::vector<uint32_t>> rows(db.bits() + 1);
    for (size_t q = 0; q < queries.count; ++q) {
        const uint8_t* query = queries.codes + q * db.width;
        for (size_t row = 0; row < db.rows; ++row) {
            uint32_t d = distance(query, db.codes + row * db.width, db.width);
            if (static_cast<int>(d) <= radius && !db.gone(row))
                rows[d].push_back(static_cast<uint32_t>(row));
        }
        for (size_t d = 0; d < rows.size(); ++d) {
            for (uint32_t row : rows[d]) {
                out.ids.push_back(db.id(row));
                out.distances.push_back(static_cast<int32_t>(d));
            }
            rows[d].clear();
        }
        out.lims.push_back(static_cast<int64_t>(out.ids.size()));
    }
    return out;
}

void count(const Database& db, Queries queries, int radius, int, int64_t* counts) {
    for (size_t q = 0; q < queries.count; ++q) {
        const uint8_t* query = queries.codes + q * db.width;
        counts[q] = 0;
        for (size_t row = 0; row < db.rows; ++row)
            counts[q] += static_cast<int>(distance(query, db.codes + row * db.width, db.width)) <=
                             radius &&
                         !db.gone(row);
    }
}

}  // namespace metah
