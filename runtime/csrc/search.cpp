#include "search.h"

#include <algorithm>
#include <numeric>

#include "kernel.h"
#include "pool.h"
#include "select.h"

namespace metah {
namespace {

// A rectangle of work: queries first_query.. against rows first_row...
struct Part {
    size_t first_query, last_query;
    size_t first_row, last_row;
};

// Splits by queries where there are enough of them, else by rows; one part a thread.
std::vector<Part> split(const Database& db, size_t queries, int threads) {
    const size_t t = static_cast<size_t>(std::max(threads, 1));
    std::vector<Part> parts;
    if (queries >= 8 * t) {
        for (size_t i = 0; i < t; ++i)
            parts.push_back({queries * i / t, queries * (i + 1) / t, 0, db.rows});
    } else {
        constexpr size_t kAlign = 512, kLeast = 1 << 16;  // rows worth a thread
        const size_t n = std::clamp<size_t>(db.rows / kLeast, 1, t);
        auto edge = [&](size_t i) {
            return i == n ? db.rows : db.rows * i / n / kAlign * kAlign;
        };
        for (size_t i = 0; i < n; ++i) parts.push_back({0, queries, edge(i), edge(i + 1)});
    }
    return parts;
}

Scan make_scan(const Database& db) {
    Scan scan{};
    scan.codes = db.codes;
    scan.end = db.codes + db.rows * db.width;
    scan.width = db.width;
    return scan;
}

// Top-k of up to kMaxQueries queries over a range of rows. Queries that cannot improve any more
// leave the batch between two scans.
class TopKBatch {
  public:
    TopKBatch(const Database& db, const uint8_t* queries, size_t count, uint64_t k)
        : db_(db), queries_(queries, queries + count * db.width), active_(count), bounds_(count) {
        best_.reserve(count);
        for (size_t i = 0; i < count; ++i) best_.emplace_back(db.bits(), k);
        std::iota(active_.begin(), active_.end(), 0u);
        std::fill(bounds_.begin(), bounds_.end(), db.bits());
    }

    void run(size_t first, size_t last) {
        size_t step = 4096;
        for (size_t row = first; row < last && !active_.empty(); row += step, step *= 2) {
            step = std::min<size_t>(step, 1 << 18);
            Scan scan = make_scan(db_);
            scan.first = row;
            scan.last = std::min(last, row + step);
            scan.queries = queries_.data();
            scan.count = static_cast<uint32_t>(active_.size());
            scan.bounds = bounds_.data();
            scan.context = this;
            scan.consume = [](void* self, uint32_t q, const Hit* hits, uint32_t n) {
                static_cast<TopKBatch*>(self)->consume(q, hits, n);
            };
            db_.kernels->scan(scan);
            if (finished_) drop_finished();
        }
    }

    const TopK& best(size_t query) const { return best_[query]; }

  private:
    void consume(uint32_t q, const Hit* hits, uint32_t n) {
        TopK& best = best_[active_[q]];
        for (uint32_t i = 0; i < n; ++i)
            if (!db_.gone(hits[i].row)) best.add(hits[i]);
        bounds_[q] = std::max(best.bound(), 0);
        finished_ |= best.bound() < 0;
    }

    void drop_finished() {
        size_t kept = 0;
        for (size_t i = 0; i < active_.size(); ++i) {
            if (best_[active_[i]].bound() < 0) continue;
            active_[kept] = active_[i];
            bounds_[kept] = bounds_[i];
            std::copy_n(&queries_[i * db_.width], db_.width, &queries_[kept * db_.width]);
            ++kept;
        }
        active_.resize(kept);
        finished_ = false;
    }

    const Database& db_;
    std::vector<uint8_t> queries_;
    std::vector<uint32_t> active_;  // place in the batch -> query
    std::vector<int32_t> bounds_;
    std::vector<TopK> best_;
    bool finished_ = false;
};

void write(const Database& db, const std::vector<Hit>& hits, int64_t* ids, int32_t* distances) {
    for (const Hit& hit : hits) {
        *ids++ = db.id(hit.row);
        *distances++ = static_cast<int32_t>(hit.distance);
    }
}

bool by_distance(const Hit& a, const Hit& b) {
    return a.distance != b.distance ? a.distance < b.distance : a.row < b.row;
}

}  // namespace

void search(const Database& db, Queries queries, uint64_t k, int threads, int64_t* ids,
            int32_t* distances) {
    const std::vector<Part> parts = split(db, queries.count, threads);
    const bool by_rows = parts.front().last_query == queries.count && parts.size() > 1;
    std::vector<std::vector<std::vector<Hit>>> found(by_rows ? parts.size() : 0);
    parallel(parts.size(), [&](size_t p) {
        const Part& part = parts[p];
        for (size_t q = part.first_query; q < part.last_query; q += kMaxQueries) {
            const size_t n = std::min<size_t>(kMaxQueries, part.last_query - q);
            TopKBatch batch(db, queries.codes + q * db.width, n, k);
            batch.run(part.first_row, part.last_row);
            for (size_t i = 0; i < n; ++i)
                if (by_rows)
                    found[p].push_back(batch.best(i).sorted());
                else
                    write(db, batch.best(i).sorted(), ids + (q + i) * k, distances + (q + i) * k);
        }
    });
    for (size_t q = 0; by_rows && q < queries.count; ++q) {
        std::vector<Hit> all;
        for (const auto& part : found) all.insert(all.end(), part[q].begin(), part[q].end());
        std::partial_sort(all.begin(), all.begin() + static_cast<ptrdiff_t>(k), all.end(),
                          by_distance);
        all.resize(k);
        write(db, all, ids + q * k, distances + q * k);
    }
}

namespace {

// Scans with a fixed bound; Consume: (query, hits, n).
template <class Consume>
void scan_radius(const Database& db, const uint8_t* queries, size_t count, int radius,
                 const Part& part, Consume consume) {
    for (size_t q = 0; q < count; q += kMaxQueries) {
        Scan scan = make_scan(db);
        scan.first = part.first_row;
        scan.last = part.last_row;
        scan.queries = queries + q * db.width;
        scan.count = static_cast<uint32_t>(std::min<size_t>(kMaxQueries, count - q));
        const std::vector<int32_t> bounds(scan.count, radius);
        scan.bounds = bounds.data();
        auto shifted = [&](uint32_t i, const Hit* hits, uint32_t n) { consume(q + i, hits, n); };
        scan.context = &shifted;
        scan.consume = [](void* f, uint32_t i, const Hit* hits, uint32_t n) {
            (*static_cast<decltype(shifted)*>(f))(i, hits, n);
        };
        db.kernels->scan(scan);
    }
}

}  // namespace

Ranges range_search(const Database& db, Queries queries, int radius, int threads) {
    const std::vector<Part> parts = split(db, queries.count, threads);
    std::vector<std::vector<std::vector<Hit>>> found(parts.size());  // part, query
    parallel(parts.size(), [&](size_t p) {
        const Part& part = parts[p];
        auto& mine = found[p];
        mine.resize(part.last_query - part.first_query);
        scan_radius(db, queries.codes + part.first_query * db.width, mine.size(), radius, part,
                    [&](size_t q, const Hit* hits, uint32_t n) {
                        for (uint32_t i = 0; i < n; ++i)
                            if (!db.gone(hits[i].row)) mine[q].push_back(hits[i]);
                    });
    });
    Ranges out;
    out.lims.assign(queries.count + 1, 0);
    for (size_t p = 0; p < parts.size(); ++p)
        for (size_t q = 0; q < found[p].size(); ++q)
            out.lims[parts[p].first_query + q + 1] += static_cast<int64_t>(found[p][q].size());
    std::partial_sum(out.lims.begin(), out.lims.end(), out.lims.begin());
    out.ids.resize(static_cast<size_t>(out.lims.back()));
    out.distances.resize(out.ids.size());
    // Stable counting sort by distance; rows ascend within a part and from part to part.
    std::vector<size_t> place(static_cast<size_t>(radius) + 2);
    for (size_t q = 0; q < queries.count; ++q) {
        std::fill(place.begin(), place.end(), 0);
        auto each = [&](auto&& visit) {
            for (size_t p = 0; p < parts.size(); ++p)
                if (parts[p].first_query <= q && q < parts[p].last_query)
                    for (const Hit& hit : found[p][q - parts[p].first_query]) visit(hit);
        };
        each([&](const Hit& hit) { ++place[hit.distance + 1]; });
        place[0] = static_cast<size_t>(out.lims[q]);
        std::partial_sum(place.begin(), place.end(), place.begin());
        each([&](const Hit& hit) {
            const size_t at = place[hit.distance]++;
            out.ids[at] = db.id(hit.row);
            out.distances[at] = static_cast<int32_t>(hit.distance);
        });
    }
    return out;
}

void count(const Database& db, Queries queries, int radius, int threads, int64_t* counts) {
    const std::vector<Part> parts = split(db, queries.count, threads);
    std::vector<std::vector<int64_t>> found(parts.size());
    parallel(parts.size(), [&](size_t p) {
        const Part& part = parts[p];
        auto& mine = found[p];
        mine.assign(part.last_query - part.first_query, 0);
        scan_radius(db, queries.codes + part.first_query * db.width, mine.size(), radius, part,
                    [&](size_t q, const Hit* hits, uint32_t n) {
                        for (uint32_t i = 0; i < n; ++i) mine[q] += !db.gone(hits[i].row);
                    });
    });
    std::fill(counts, counts + queries.count, 0);
    for (size_t p = 0; p < parts.size(); ++p)
        for (size_t q = 0; q < found[p].size(); ++q)
            counts[parts[p].first_query + q] += found[p][q];
}

}  // namespace metah
