// Exact Hamming search. Every answer ascends by (distance, id), whatever the threads and tables;
// where rows have a detail code, by (distance, distance of the hash code, id).
#pragma once
#include <cstdint>
#include <memory>
#include <vector>

#include "accel/tables.h"
#include "database.h"
#include "scan/kernels.h"

namespace metah {

struct Queries {
    const uint8_t* codes;  // (count, stride)
    size_t count;
};

// The codes that a search goes over: all rows, or each unique code once.
struct SearchedCodes {
    Database db;              // of groups: no ids, nothing removed
    const Groups* groups;     // null: rows
    const uint32_t* weights;  // (groups,) rows of a group that are not removed; null: rows
};

// The hits of a radius search before they are put in order.
struct RangeFound {
    std::vector<int64_t> lims;           // (queries + 1,)
    std::vector<std::vector<Hit>> hits;  // of each query; `row` numbers rows or groups
    bool ascending = true;               // rows ascend within equal distances
    SearchedCodes source;
};

class CodeScan {
  public:
    explicit CodeScan(Database db);
    // The same codes with other removed rows; shares the tables.
    CodeScan(const CodeScan& other, const uint8_t* removed);

    const Database& db() const { return db_; }
    Tables& tables() const { return *tables_; }

    // ids, distances: (count, k) with k <= alive rows. code_distances: as distances; null where
    // there is no detail code.
    void search(Queries queries, uint64_t k, int threads, int64_t* ids, int32_t* distances,
                int32_t* code_distances) const;

    // Finding and writing are two steps, so that the output is allocated once, of exact size.
    RangeFound find(Queries queries, int radius, int threads) const;
    void write(Queries queries, const RangeFound& found, int threads, int64_t* ids,
               int32_t* distances, int32_t* code_distances) const;

    // counts: (count,).
    void count(Queries queries, int radius, int threads, int64_t* counts) const;

  private:
    SearchedCodes source(size_t queries) const;
    const uint32_t* weights(const Groups& groups) const;
    template <class Sink>
    bool find_hits(const SearchedCodes& source, Queries queries, int radius, int threads,
                   Sink& sink) const;

    Database db_;
    std::shared_ptr<Tables> tables_;
    struct Weights;
    std::shared_ptr<Weights> weights_;
};

// Some queries against some rows.
struct WorkRectangle {
    size_t first_query, last_query;
    size_t first_row, last_row;
};

// All queries against all rows, as at most one rectangle a thread: split by queries where there are
// enough of them, else by rows.
struct WorkSplit {
    std::vector<WorkRectangle> rectangles;
    bool by_rows;  // more than one rectangle, and each has all queries
};

WorkSplit split(size_t rows, size_t queries, int threads);

}  // namespace metah
