// Search over rows with a detail code: in the order (distance, distance of the hash code, id),
// where the distance is the weighted sum over both parts.
#pragma once
#include "code_scan.h"

namespace metah {

// The k nearest; ids, distances, code_distances: (count, k). Where hash codes repeat (from.groups),
// only the details of groups that can still win are read.
void search_details(const Database& db, const SearchedCodes& from, Queries queries, uint64_t k,
                    int threads, int64_t* ids, int32_t* distances, int32_t* code_distances);

// Writes the hits of a radius search of the hash code in order.
void write_details(const Database& db, Queries queries, const RangeFound& found, int threads,
                   int64_t* ids, int32_t* distances, int32_t* code_distances);

}  // namespace metah
