// Equal hash codes as one: trained codes repeat, so that a search over the unique ones is far
// shorter.
#pragma once
#include <cstddef>
#include <cstdint>
#include <vector>

#include "database.h"
#include "system/buffer.h"

namespace metah {

struct Groups {
    std::vector<uint8_t> codes;     // (size, width) hash codes, in the order of the first row
    std::vector<uint32_t> offsets;  // (size + 1,)
    Buffer<uint32_t> rows;          // rows of group g: rows[offsets[g]..offsets[g + 1]), ascending
    Buffer<uint8_t> details;        // (rows, detail) detail codes in the order of `rows`
    size_t size() const { return offsets.size() - 1; }
    uint32_t count(size_t group) const { return offsets[group + 1] - offsets[group]; }
    size_t bytes() const {
        return codes.size() + 4 * (offsets.size() + rows.size()) + details.size();
    }
};

// Throws std::bad_alloc.
Groups make_groups(const Database& db);

// The most memory that make_groups takes at once for so many unique codes.
double groups_bytes(const Database& db, double unique);

// Estimate of the number of unique codes from a strided sample: pairs of equal codes in it.
double estimate_unique(const Database& db);

}  // namespace metah
