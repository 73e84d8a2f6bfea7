// Exact Hamming search: the entries that the binding calls. Every answer ascends by (distance, id).
#pragma once
#include <cstdint>
#include <vector>

#include "database.h"

namespace metah {

struct Queries {
    const uint8_t* codes;  // (count, width)
    size_t count;
};

struct Ranges {
    std::vector<int64_t> lims;  // (count + 1,)
    std::vector<int64_t> ids;
    std::vector<int32_t> distances;
};

// ids, distances: (count, min(k, alive)).
void search(const Database& db, Queries queries, uint64_t k, int threads, int64_t* ids,
            int32_t* distances);

Ranges range_search(const Database& db, Queries queries, int radius, int threads);

// counts: (count,).
void count(const Database& db, Queries queries, int radius, int threads, int64_t* counts);

}  // namespace metah
