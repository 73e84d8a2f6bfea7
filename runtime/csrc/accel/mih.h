// Multi-index hashing for small radii (Norouzi, Punjani and Fleet, "Fast exact search in Hamming
// space with multi-index hashing", TPAMI 36, 2014): one direct-address table for each of m disjoint
// substrings of the code, so that a code within the radius shares a near bucket with the query.
#pragma once
#include <cstddef>
#include <cstdint>
#include <vector>

#include "database.h"
#include "scan/kernels.h"
#include "system/buffer.h"

namespace metah {

// Radius to probe in table j of m: by the pigeonhole principle every code within r is within
// substring_radius of the query in at least one table; -1: the table need not be probed.
inline int substring_radius(int r, int m, int j) { return j <= r % m ? r / m : r / m - 1; }

struct Mih {
    struct Table {
        Buffer<uint32_t> offsets;  // (2^length + 1,)
        Buffer<uint32_t> items;    // row numbers, bucket by bucket, ascending in a bucket
        Buffer<uint8_t> codes;     // their codes
    };
    int length = 0;  // bits of a substring; table j takes bits j length .. (j + 1) length - 1
    size_t width = 0;
    std::vector<Table> tables;
    size_t bytes() const;
};

struct MihShape {
    int tables;
    int length;
    double cost;  // nanoseconds a query, for codes that spread evenly
};

// The cheapest shape for this radius and number of rows.
MihShape best_shape(size_t rows, int bits, int radius);

// The cost of answering this radius with tables of that shape.
double probe_cost(size_t rows, int tables, int length, int radius);

// Memory of the tables of that shape.
size_t mih_bytes(size_t rows, size_t width, MihShape shape);

// Throws std::bad_alloc, and CodesChanged if the codes are written meanwhile.
// codes: (rows, stride), of which the first `width` bytes count.
Mih make_mih(const uint8_t* codes, size_t rows, size_t width, size_t stride, MihShape shape,
             int threads);

// The view that the kernels read, and the queries to answer.
struct MihTable {
    const uint32_t* offsets;
    const uint32_t* items;
    const uint8_t* codes;
};

constexpr int kMaxTables = 33;

struct Probe {
    MihTable tables[kMaxTables];
    int table_count;
    int length;
    size_t rows, width;
    const uint8_t* queries;
    size_t count;
    int radius;
    size_t most_candidates;  // a query that meets more is given up
    // Hits of one query in no order, each once; n == kGiveUp: the query was given up.
    void (*consume)(void* context, size_t query, const Hit* hits, uint32_t n);
    void* context;
};

constexpr uint32_t kGiveUp = UINT32_MAX;

}  // namespace metah
