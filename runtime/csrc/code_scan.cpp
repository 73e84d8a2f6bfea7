#include "code_scan.h"

#include <algorithm>

namespace metah {

// Rows left in each group, counted when a search first needs them.
struct CodeScan::Weights {
    std::atomic<const std::vector<uint32_t>*> counts{nullptr};
    ~Weights() { delete counts.load(); }
};

namespace {

Database counted(Database db) {
    db.alive = db.rows;
    if (db.removed)
        db.alive -= db.rows - static_cast<size_t>(std::count(db.removed, db.removed + db.rows, 0));
    if (db.alive == db.rows) db.removed = nullptr;
    return db;
}

Database with_removed(Database db, const uint8_t* removed) {
    db.removed = removed;
    return counted(db);
}

}  // namespace

CodeScan::CodeScan(Database db)
    : db_(counted(db)),
      tables_(std::make_shared<Tables>(db_)),
      weights_(std::make_shared<Weights>()) {}

CodeScan::CodeScan(const CodeScan& other, const uint8_t* removed)
    : db_(with_removed(other.db_, removed)),
      tables_(other.tables_),
      weights_(std::make_shared<Weights>()) {}

// Null: there is no memory for them.
const uint32_t* CodeScan::weights(const Groups& groups) const try {
    const std::vector<uint32_t>* counts = weights_->counts;
    if (!counts) {
        auto made = std::make_unique<std::vector<uint32_t>>(groups.size());
        for (size_t g = 0; g < groups.size(); ++g)
            for (uint32_t i = groups.offsets[g]; i < groups.offsets[g + 1]; ++i)
                (*made)[g] += !db_.gone(groups.rows[i]);
        if (weights_->counts.compare_exchange_strong(counts, made.get())) counts = made.release();
    }
    return counts->data();
} catch (const std::bad_alloc&) {
    return nullptr;
}

SearchedCodes CodeScan::source(size_t queries) const {
    const int bits = static_cast<int>(db_.stride()) * 8;
    const double cost = scan_cost(db_.rows, bits, queries) * static_cast<double>(queries);
    const Groups* groups = tables_->groups(cost);
    const uint32_t* weights = groups ? this->weights(*groups) : nullptr;
    if (!weights) return {db_, nullptr, nullptr};
    Database unique = db_;
    unique.codes = groups->codes.data();
    unique.rows = groups->size();
    unique.ids = nullptr;
    unique.removed = nullptr;
    unique.detail = 0;
    return {unique, groups, weights};
}

WorkSplit split(size_t rows, size_t queries, int threads) {
    const size_t t = static_cast<size_t>(std::max(threads, 1));
    WorkSplit out{{}, false};
    if (queries >= 8 * t) {
        for (size_t i = 0; i < t; ++i)
            out.rectangles.push_back({queries * i / t, queries * (i + 1) / t, 0, rows});
        return out;
    }
    constexpr size_t kAlign = 512, kLeast = 1 << 16;  // rows worth a thread
    const size_t n = std::clamp<size_t>(rows / kLeast, 1, t);
    auto edge = [&](size_t i) { return i == n ? rows : rows * i / n / kAlign * kAlign; };
    for (size_t i = 0; i < n; ++i) out.rectangles.push_back({0, queries, edge(i), edge(i + 1)});
    out.by_rows = n > 1;
    return out;
}

}  // namespace metah
