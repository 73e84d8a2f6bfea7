// Exact Hamming search. Every answer ascends by (distance, id), whatever the threads and tables.
#pragma once
#include <cstdint>
#include <memory>
#include <vector>

#include "database.h"
#include "kernel.h"
#include "tables.h"

namespace metah {

struct Queries {
    const uint8_t* codes;  // (count, width)
    size_t count;
};

// The codes that a search goes over: all rows, or each unique code once.
struct Source {
    Database db;               // of groups: no ids, nothing removed
    const Groups* groups;      // null: rows
    const uint32_t* weights;   // (groups,) rows of a group that are not removed; null: rows
};

// The hits of a radius search before they are put in order.
struct RangeFound {
    std::vector<int64_t> lims;           // (queries + 1,)
    std::vector<std::vector<Hit>> hits;  // of each query; `row` numbers rows or groups
    bool ascending = true;               // rows ascend within equal distances
    Source source;
};

class Index {
  public:
    explicit Index(Database db);
    // The same codes with other removed rows; shares the tables.
    Index(const Index& other, const uint8_t* removed);

    const Database& db() const { return db_; }
    Tables& tables() const { return *tables_; }

    // ids, distances: (count, k) with k <= alive rows.
    void search(Queries queries, uint64_t k, int threads, int64_t* ids, int32_t* distances) const;

    // Finding and writing are two steps, so that the output is allocated once, of exact size.
    RangeFound find(Queries queries, int radius, int threads) const;
    void write(const RangeFound& found, int threads, int64_t* ids, int32_t* distances) const;

    // counts: (count,).
    void count(Queries queries, int radius, int threads, int64_t* counts) const;

  private:
    Source source(size_t queries) const;
    const uint32_t* weights(const Groups& groups) const;
    template <class Sink>
    bool find_hits(const Source& source, Queries queries, int radius, int threads,
                   Sink& sink) const;

    Database db_;
    std::shared_ptr<Tables> tables_;
    struct Weights;
    std::shared_ptr<Weights> weights_;
};

// A rectangle of work: some queries against some rows.
struct Part {
    size_t first_query, last_query;
    size_t first_row, last_row;
    size_t queries() const { return last_query - first_query; }
};

// Splits by queries where there are enough of them, else by rows; at most one part a thread.
std::vector<Part> split(size_t rows, size_t queries, int threads);

Scan make_scan(const Database& db);

}  // namespace metah
