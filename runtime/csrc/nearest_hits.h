// The k nearest by the hash code alone, among rows or groups: a source and a Nearest of TopKBatch.
#pragma once
#include <vector>

#include "code_scan.h"
#include "row_view.h"
#include "scan/k_nearest.h"

namespace metah {

class NearestHits {
  public:
    using Item = Hit;

    NearestHits(const SearchedCodes& source, HitKind kind, uint64_t k, int bound)
        : source_(&source), best_(source.db.bits(), k, kind, bound) {}

    void add(const Hit* hits, uint32_t n) {
        if (source_->groups) {
            for (uint32_t i = 0; i < n; ++i)
                if (const uint32_t rows = source_->weights[hits[i].row]) best_.add(hits[i], rows);
        } else {
            for (uint32_t i = 0; i < n; ++i)
                if (!source_->db.gone(hits[i].row)) best_.add(hits[i]);
        }
    }

    int bound() const { return best_.bound(); }
    bool enough() const { return best_.enough(); }
    std::vector<Hit> sorted() const { return best_.sorted(); }
    static constexpr uint64_t most_held(uint64_t k) { return TopK::most_hits(k); }

  private:
    const SearchedCodes* source_;
    TopK best_;
};

struct HashCodes {
    const SearchedCodes& from;
    HitKind kind;

    const Database& db() const { return from.db; }
    RowView view() const { return {from.db, Part::hash_code}; }
    NearestHits nearest(const uint8_t*, uint64_t k, int bound) const {
        return {from, kind, k, bound};
    }
    bool may_guess() const { return kind == HitKind::row && !from.db.removed; }
};

}  // namespace metah
