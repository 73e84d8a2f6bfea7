#include "detail_search.h"

#include <algorithm>
#include <cstring>

#include "nearest_hits.h"
#include "topk_batch.h"

namespace metah {
namespace {

// A row and its distances as one number, in the order of the answers.
using Ranked = uint64_t;
constexpr int kDistanceShift = 48, kCodeShift = 32;

Ranked ranked(size_t distance, size_t code_distance, size_t row) {
    return static_cast<Ranked>(distance) << kDistanceShift |
           static_cast<Ranked>(code_distance) << kCodeShift | row;
}

// Keeps the k first of a stream of ranked rows.
class FirstRanked {
  public:
    // Rows with a larger distance than `bound` are not wanted.
    FirstRanked(uint64_t k, int bound)
        : k_(k), end_(ranked(static_cast<size_t>(bound) + 1, 0, 0)) {}

    static constexpr uint64_t most_held(uint64_t k) { return 2 * k + 64; }

    int bound() const { return end_ ? static_cast<int>((end_ - 1) >> kDistanceShift) : -1; }
    bool enough() const { return rows_.size() >= k_; }

    void add(Ranked row) {
        if (row >= end_) return;
        rows_.push_back(row);
        if (rows_.size() < most_held(k_)) return;
        std::nth_element(rows_.begin(), rows_.begin() + static_cast<ptrdiff_t>(k_ - 1),
                         rows_.end());
        end_ = rows_[k_ - 1];
        rows_.resize(k_);
    }

    std::vector<Ranked> sorted() const {
        std::vector<Ranked> out = rows_;
        const size_t n = std::min<size_t>(k_, out.size());
        std::partial_sort(out.begin(), out.begin() + static_cast<ptrdiff_t>(n), out.end());
        out.resize(n);
        return out;
    }

  private:
    uint64_t k_;
    Ranked end_;  // the rows that are wanted come before it
    std::vector<Ranked> rows_;
};

// The k nearest of one query by a scan over whole rows.
class NearestRows : public FirstRanked {
  public:
    using Item = Ranked;

    NearestRows(const Database& db, const uint8_t* query, uint64_t k, int bound)
        : FirstRanked(k, bound), db_(&db), query_(query) {}

    void add(const Hit* hits, uint32_t n) {
        for (uint32_t i = 0; i < n; ++i) {
            const Hit hit = hits[i];
            if (static_cast<int>(hit.distance) > bound() || db_->gone(hit.row)) continue;
            FirstRanked::add(ranked(hit.distance,
                                    db_->kernels->distance(db_->code(hit.row), query_, db_->width),
                                    hit.row));
        }
    }

  private:
    const Database* db_;
    const uint8_t* query_;  // begins with the hash code
};

struct WholeRows {
    const Database& rows;

    const Database& db() const { return rows; }
    RowView view() const { return {rows, Part::whole}; }
    NearestRows nearest(const uint8_t* query, uint64_t k, int bound) const {
        return {rows, query, k, bound};
    }
    bool may_guess() const { return !rows.removed; }
};

// The k nearest of some queries where hash codes repeat: the distance of a group's hash code bounds
// that of its rows from below. A group's details are read once for all queries that it can serve.
class GroupSearch {
  public:
    // queries: (count, stride), at most kMaxQueries.
    GroupSearch(const Database& db, const SearchedCodes& from, Queries queries, uint64_t k)
        : db_(db),
          from_(from),
          groups_(*from.groups),
          queries_(queries),
          k_(k),
          codes_(RowView(db, Part::hash_code).packed(queries.codes, queries.count)),
          best_(queries.count, FirstRanked(k, farthest())),
          rows_read_(queries.count),
          details_(queries.count * db.detail) {}

    void run() {
        seed();
        // So that what is near some query stays in the second cache.
        const size_t step = std::max<size_t>((1 << 15) / queries_.count, 1024);
        std::vector<int32_t> bounds(queries_.count);
        for (size_t first = 0; first < groups_.size(); first += step) {
            for (size_t q = 0; q < queries_.count; ++q)
                bounds[q] = std::min(std::max(best_[q].bound(), 0) / weight(), from_.db.bits());
            near_.clear();
            Scan scan{};
            scan.first = first;
            scan.last = std::min(first + step, groups_.size());
            scan.queries = codes_.data();
            scan.count = static_cast<uint32_t>(queries_.count);
            scan.bounds = bounds.data();
            scan.context = this;
            scan.consume = [](void* self, uint32_t q, const Hit* hits, uint32_t n) {
                auto& near = static_cast<GroupSearch*>(self)->near_;
                for (uint32_t i = 0; i < n; ++i) near.push_back({q, hits[i].row, hits[i].distance});
            };
            RowView(from_.db, Part::hash_code).scan(scan);
            read_near(first, scan.last);
        }
    }

    // Whether so many rows can win that a scan of all is faster.
    bool gave_up(size_t query) const { return rows_read_[query] > db_.rows / 4; }

    std::vector<Ranked> sorted(size_t query) const { return best_[query].sorted(); }

  private:
    // A query that some group can serve.
    struct Near {
        uint32_t query, group, distance;
    };

    int weight() const { return static_cast<int>(db_.weight); }
    int farthest() const { return static_cast<int>(db_.whole_width()) * 8; }
    const uint8_t* detail_of(size_t query) const {
        return queries_.codes + query * db_.stride() + db_.width;
    }

    // First bounds: the distance of the k-th among some rows of the nearest groups.
    void seed() {
        const HashCodes source{from_, HitKind::group};
        TopKBatch<HashCodes, NearestHits> batch(source, codes_.data(), queries_.count, k_);
        batch.run(0, groups_.size());
        const size_t most = std::max<size_t>(16 * k_, 1 << 13);
        for (uint32_t q = 0; q < queries_.count; ++q) {
            for (const Hit& hit : batch.best(q).sorted()) {
                if (rows_read_[q] >= most) break;
                const Near near{q, hit.row, hit.distance};
                read(&near, &near + 1, most);
            }
            rows_read_[q] = 0;
            const std::vector<Ranked> rows = best_[q].sorted();
            best_[q] =
                FirstRanked(k_, rows.size() < k_ ? farthest()
                                                 : static_cast<int>(rows.back() >> kDistanceShift));
        }
    }

    // Reads the groups first..last-1 for the queries in near_.
    void read_near(size_t first, size_t last) {
        if (queries_.count == 1) return read_in_order(near_);
        starts_.assign(last - first + 1, 0);
        for (const Near& near : near_) ++starts_[near.group - first + 1];
        for (size_t i = 1; i < starts_.size(); ++i) starts_[i] += starts_[i - 1];
        by_group_.resize(near_.size());
        for (const Near& near : near_) by_group_[starts_[near.group - first]++] = near;
        read_in_order(by_group_);
    }

    // near: the queries of one group after those of another.
    void read_in_order(const std::vector<Near>& near) {
        constexpr size_t kAhead = 8;
        const Near* end = near.data() + near.size();
        for (const Near *at = near.data(), *next; at < end; at = next) {
            if (at + kAhead < end)
                __builtin_prefetch(
                    &groups_.details[groups_.offsets[at[kAhead].group] * db_.detail]);
            for (next = at; next < end && next->group == at->group;) ++next;
            read(at, next, SIZE_MAX);
        }
    }

    // Reads at most `most` rows of one group.
    void read(const Near* near, const Near* end, size_t most) {
        const size_t first = groups_.offsets[near->group];
        const size_t n = std::min<size_t>(groups_.count(near->group), most);
        const uint8_t* details = &groups_.details[first * db_.detail];
        rows_ = &groups_.rows[first];
        if (n <= kFew) {
            for (; near < end; ++near) {
                const int bound =
                    best_[near->query].bound() - weight() * static_cast<int>(near->distance);
                if (bound < 0) continue;
                rows_read_[near->query] += n;
                const uint8_t* detail = detail_of(near->query);
                for (uint32_t i = 0; i < n; ++i) {
                    const Hit hit{
                        i, db_.kernels->distance(details + i * db_.detail, detail, db_.detail)};
                    if (static_cast<int>(hit.distance) <= bound) add(*near, hit);
                }
            }
            return;
        }
        readers_.clear();
        bounds_.clear();
        for (; near < end; ++near) {
            const int bound =
                best_[near->query].bound() - weight() * static_cast<int>(near->distance);
            if (bound < 0 || gave_up(near->query)) continue;
            rows_read_[near->query] += n;
            std::memcpy(&details_[readers_.size() * db_.detail], detail_of(near->query),
                        db_.detail);
            readers_.push_back(*near);
            bounds_.push_back(bound);
        }
        if (readers_.empty()) return;
        Scan scan{};
        scan.codes = details;
        scan.end = groups_.details.data() + groups_.details.size();
        scan.width = db_.detail;
        scan.last = n;
        scan.queries = details_.data();
        scan.count = static_cast<uint32_t>(readers_.size());
        scan.bounds = bounds_.data();
        scan.context = this;
        scan.consume = [](void* self, uint32_t reader, const Hit* hits, uint32_t count) {
            static_cast<GroupSearch*>(self)->consume(reader, hits, count);
        };
        (n < kShort ? db_.kernels->short_scan : db_.kernels->scan)(scan);
    }

    void consume(uint32_t reader, const Hit* hits, uint32_t n) {
        const Near& near = readers_[reader];
        for (uint32_t i = 0; i < n; ++i) add(near, hits[i]);
        const int distance = weight() * static_cast<int>(near.distance);
        bounds_[reader] = std::max(best_[near.query].bound() - distance, 0);
    }

    // hit: a row of the group that is being read, and the distance of its detail.
    void add(const Near& near, Hit hit) {
        const uint32_t row = rows_[hit.row];
        if (!db_.gone(row))
            best_[near.query].add(
                ranked(db_.weight * near.distance + hit.distance, near.distance, row));
    }

    static constexpr size_t kFew = 4;      // rows that are not worth the start of a kernel
    static constexpr size_t kShort = 256;  // rows that a kernel without tiles takes faster

    const Database& db_;
    const SearchedCodes& from_;
    const Groups& groups_;
    const Queries queries_;
    const uint64_t k_;
    const std::vector<uint8_t> codes_;  // (queries, width)
    std::vector<FirstRanked> best_;
    std::vector<size_t> rows_read_;
    std::vector<Near> near_, by_group_;
    std::vector<uint32_t> starts_;
    // Of the group that is being read: its rows, and the queries that read it.
    const uint32_t* rows_ = nullptr;
    std::vector<Near> readers_;
    std::vector<int32_t> bounds_;
    std::vector<uint8_t> details_;
};

// Writes ranked rows; throws CodesChanged if they are fewer than k.
struct Output {
    const Database& db;
    uint64_t k;
    int64_t* ids;
    int32_t* distances;
    int32_t* code_distances;

    void operator()(size_t query, const std::vector<Ranked>& rows) const {
        if (rows.size() < k) throw CodesChanged();
        write(query * k, rows.data(), k);
    }

    void write(size_t at, const Ranked* rows, size_t n) const {
        for (size_t i = 0; i < n; ++i, ++at) {
            ids[at] = db.id(static_cast<uint32_t>(rows[i]));
            distances[at] = static_cast<int32_t>(rows[i] >> kDistanceShift);
            code_distances[at] = static_cast<int32_t>(rows[i] >> kCodeShift & 0xffff);
        }
    }
};

}  // namespace

void search_details(const Database& db, const SearchedCodes& from, Queries queries, uint64_t k,
                    int threads, int64_t* ids, int32_t* distances, int32_t* code_distances) {
    const Output output{db, k, ids, distances, code_distances};
    const WholeRows whole{db};
    const RowView view = whole.view();
    if (!from.groups || from.groups->size() > db.rows / 16) {
        const std::vector<uint8_t> packed = view.packed(queries.codes, queries.count);
        top_k<NearestRows>(whole, {packed.data(), queries.count}, k, threads, output);
        return;
    }
    const size_t most = queries_at_once<NearestRows>(k);
    const size_t tasks = std::min(queries.count, static_cast<size_t>(std::max(threads, 1)));
    std::vector<std::vector<size_t>> given_up(tasks);
    parallel(tasks, [&](size_t t) {
        const size_t last = queries.count * (t + 1) / tasks;
        for (size_t q = queries.count * t / tasks, n; q < last; q += n) {
            n = std::min(most, last - q);
            GroupSearch search(db, from, {queries.codes + q * db.stride(), n}, k);
            search.run();
            for (size_t i = 0; i < n; ++i)
                if (search.gave_up(i))
                    given_up[t].push_back(q + i);
                else
                    output(q + i, search.sorted(i));
        }
    });
    std::vector<size_t> rest;
    for (const auto& some : given_up) rest.insert(rest.end(), some.begin(), some.end());
    if (rest.empty()) return;
    std::vector<uint8_t> packed(rest.size() * view.width());
    for (size_t i = 0; i < rest.size(); ++i)
        view.pack(queries.codes + rest[i] * db.stride(), 1, &packed[i * view.width()]);
    top_k<NearestRows>(whole, {packed.data(), rest.size()}, k, threads,
                       [&](size_t i, const std::vector<Ranked>& rows) { output(rest[i], rows); });
}

void write_details(const Database& db, Queries queries, const RangeFound& found, int threads,
                   int64_t* ids, int32_t* distances, int32_t* code_distances) {
    const Output output{db, 0, ids, distances, code_distances};
    const size_t n = found.hits.size();
    const size_t tasks = std::clamp<size_t>(static_cast<size_t>(found.lims.back()) / 4096, 1,
                                            std::min(n, static_cast<size_t>(std::max(threads, 1))));
    const Groups* groups = found.source.groups;
    parallel(tasks, [&](size_t t) {
        std::vector<Ranked> rows;
        for (size_t q = n * t / tasks; q < n * (t + 1) / tasks; ++q) {
            const uint8_t* detail = queries.codes + q * db.stride() + db.width;
            const auto add = [&](size_t code_distance, const uint8_t* row_detail, size_t row) {
                rows.push_back(ranked(
                    db.weight * code_distance + db.kernels->distance(row_detail, detail, db.detail),
                    code_distance, row));
            };
            rows.clear();
            for (const Hit& hit : found.hits[q]) {
                if (!groups) {
                    add(hit.distance, db.code(hit.row) + db.width, hit.row);
                    continue;
                }
                for (size_t at = groups->offsets[hit.row]; at < groups->offsets[hit.row + 1]; ++at)
                    if (!db.gone(groups->rows[at]))
                        add(hit.distance, &groups->details[at * db.detail], groups->rows[at]);
            }
            std::sort(rows.begin(), rows.end());
            const auto at = static_cast<size_t>(found.lims[q]);
            output.write(at, rows.data(),
                         std::min(rows.size(), static_cast<size_t>(found.lims[q + 1]) - at));
        }
    });
}

}  // namespace metah
