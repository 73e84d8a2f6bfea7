// Radius search: finds by tables where they pay, else by a scan; then writes in order.
#include <algorithm>
#include <numeric>
#include <optional>

#include "code_scan.h"
#include "detail_search.h"
#include "row_view.h"
#include "system/pool.h"

namespace metah {
namespace {

// Where the hits of a batch of queries go. One thread at a time adds to a query.
struct Collector {
    std::vector<std::vector<Hit>> hits;  // of each query
    explicit Collector(size_t queries) : hits(queries) {}
    void add(const SearchedCodes& source, size_t query, const Hit* found, uint32_t n) {
        auto& out = hits[query];
        for (uint32_t i = 0; i < n; ++i)
            if (source.groups ? source.weights[found[i].row] > 0 : !source.db.gone(found[i].row))
                out.push_back(found[i]);
    }
    void append(size_t query, Collector& other, size_t other_query) {
        auto& from = other.hits[other_query];
        hits[query].insert(hits[query].end(), from.begin(), from.end());
        std::vector<Hit>().swap(from);
    }
    void drop(size_t query) { hits[query].clear(); }
};

struct Counter {
    std::vector<int64_t> counts;
    explicit Counter(size_t queries) : counts(queries) {}
    void add(const SearchedCodes& source, size_t query, const Hit* found, uint32_t n) {
        int64_t sum = 0;
        for (uint32_t i = 0; i < n; ++i)
            sum += source.groups ? source.weights[found[i].row]
                                 : static_cast<uint32_t>(!source.db.gone(found[i].row));
        counts[query] += sum;
    }
    void append(size_t query, Counter& other, size_t other_query) {
        counts[query] += other.counts[other_query];
    }
    void drop(size_t query) { counts[query] = 0; }
};

// Scans some rows for up to kMaxQueries queries; `add` is called as Scan::consume.
template <class Add>
void scan_block(const Database& db, const WorkRectangle& some, const uint8_t* queries, int radius,
                Add add) {
    Scan scan{};
    scan.first = some.first_row;
    scan.last = some.last_row;
    scan.queries = queries + some.first_query * db.width;
    scan.count = static_cast<uint32_t>(some.last_query - some.first_query);
    const std::vector<int32_t> bounds(scan.count, radius);
    scan.bounds = bounds.data();
    scan.context = &add;
    scan.consume = [](void* f, uint32_t i, const Hit* hits, uint32_t n) {
        (*static_cast<Add*>(f))(i, hits, n);
    };
    if (scan.last > scan.first) RowView(db, Part::hash_code).scan(scan);
}

// Scans for some queries; `names[i]` is the sink's number of query i.
template <class Sink>
void scan_into(const SearchedCodes& source, const uint8_t* codes, const std::vector<size_t>& names,
               int radius, int threads, Sink& sink) {
    const WorkSplit work = split(source.db.rows, names.size(), threads);
    if (!work.by_rows) {
        parallel(work.rectangles.size(), [&](size_t r) {
            WorkRectangle some = work.rectangles[r];
            for (const size_t last = some.last_query; some.first_query < last;
                 some.first_query = some.last_query) {
                some.last_query = std::min<size_t>(some.first_query + kMaxQueries, last);
                scan_block(source.db, some, codes, radius,
                           [&](uint32_t i, const Hit* hits, uint32_t n) {
                               sink.add(source, names[some.first_query + i], hits, n);
                           });
            }
        });
        return;
    }
    for (size_t first = 0; first < names.size(); first += kMaxQueries) {
        const size_t count = std::min<size_t>(kMaxQueries, names.size() - first);
        std::vector<Sink> found(work.rectangles.size(), Sink(count));
        parallel(work.rectangles.size(), [&](size_t r) {
            const WorkRectangle some{first, first + count, work.rectangles[r].first_row,
                                     work.rectangles[r].last_row};
            scan_block(
                source.db, some, codes, radius,
                [&](uint32_t i, const Hit* hits, uint32_t n) { found[r].add(source, i, hits, n); });
        });
        for (size_t q = 0; q < count; ++q)  // rows ascend from rectangle to rectangle
            for (Sink& rows : found) sink.append(names[first + q], rows, q);
    }
}

// Probes the tables for all queries; returns those that were given up.
template <class Sink>
std::vector<size_t> probe_into(const SearchedCodes& source, const Mih& mih, Queries queries,
                               int radius, int threads, Sink& sink) {
    const size_t tasks = std::clamp<size_t>(queries.count / 64, 1, static_cast<size_t>(threads));
    std::vector<std::vector<size_t>> given_up(tasks);
    parallel(tasks, [&](size_t t) {
        const size_t first = queries.count * t / tasks, last = queries.count * (t + 1) / tasks;
        Probe probe{};
        probe.table_count = static_cast<int>(mih.tables.size());
        for (size_t j = 0; j < mih.tables.size(); ++j)
            probe.tables[j] = {mih.tables[j].offsets.data(), mih.tables[j].items.data(),
                               mih.tables[j].codes.data()};
        probe.length = mih.length;
        probe.rows = source.db.rows;
        probe.width = mih.width;
        probe.queries = queries.codes + first * mih.width;
        probe.count = last - first;
        probe.radius = radius;
        probe.most_candidates = source.db.rows / 8;
        auto consume = [&](size_t q, const Hit* hits, uint32_t n) {
            if (n != kGiveUp) return sink.add(source, first + q, hits, n);
            sink.drop(first + q);
            given_up[t].push_back(first + q);
        };
        probe.context = &consume;
        probe.consume = [](void* f, size_t q, const Hit* hits, uint32_t n) {
            (*static_cast<decltype(consume)*>(f))(q, hits, n);
        };
        source.db.kernels->probe(probe);
    });
    std::vector<size_t> all;
    for (const auto& some : given_up) all.insert(all.end(), some.begin(), some.end());
    return all;
}

// Writes the hits of one query after the other in the order (distance, id).
class Writer {
  public:
    Writer(const SearchedCodes& source, const Database& rows, bool ascending, int64_t* ids,
           int32_t* distances)
        : source_(source), rows_(rows), ascending_(ascending), ids_(ids), distances_(distances) {}

    void write(const std::vector<Hit>& hits) {
        if (source_.groups) return write_groups(by_distance(hits));
        if (ascending_) {
            write_rows(by_distance(hits));
        } else {
            sorted_ = hits;
            std::sort(sorted_.begin(), sorted_.end(), [](Hit a, Hit b) {
                return a.distance != b.distance ? a.distance < b.distance : a.row < b.row;
            });
            write_rows(sorted_);
        }
    }

  private:
    // Stable, so that ascending rows stay so.
    const std::vector<Hit>& by_distance(const std::vector<Hit>& hits) {
        place_.assign(static_cast<size_t>(rows_.bits()) + 2, 0);
        for (const Hit& hit : hits) ++place_[hit.distance + 1];
        std::partial_sum(place_.begin(), place_.end(), place_.begin());
        sorted_.resize(hits.size());
        for (const Hit& hit : hits) sorted_[place_[hit.distance]++] = hit;
        return sorted_;
    }

    void write_rows(const std::vector<Hit>& hits) {
        for (const Hit& hit : hits) {
            *ids_++ = rows_.id(hit.row);
            *distances_++ = static_cast<int32_t>(hit.distance);
        }
    }

    void write_groups(const std::vector<Hit>& hits) {
        for (size_t i = 0; i < hits.size();) {
            size_t end = i;
            while (end < hits.size() && hits[end].distance == hits[i].distance) ++end;
            const int64_t* first = ids_;
            merge(hits.data() + i, end - i);
            distances_ =
                std::fill_n(distances_, ids_ - first, static_cast<int32_t>(hits[i].distance));
            i = end;
        }
    }

    // The rows of a group that are not removed.
    template <class Visit>
    void rows_of(const Hit& group, Visit visit) const {
        const uint32_t* row = &source_.groups->rows[source_.groups->offsets[group.row]];
        const uint32_t* end = row + source_.groups->count(group.row);
        if (rows_.removed) {
            for (; row < end; ++row)
                if (!rows_.removed[*row]) visit(*row);
        } else {
            for (; row < end; ++row) visit(*row);
        }
    }

    // The rows of some groups, ascending: through a bitmap of all rows if they are many.
    void merge(const Hit* hits, size_t n) {
        size_t total = 0;
        for (size_t i = 0; i < n; ++i) total += source_.weights[hits[i].row];
        int64_t* out = ids_;
        if (n == 1) {
            rows_of(hits[0], [&out](uint32_t row) { *out++ = row; });
        } else if (total < rows_.rows / 256 + 64) {
            for (size_t i = 0; i < n; ++i) rows_of(hits[i], [&out](uint32_t row) { *out++ = row; });
            std::sort(ids_, out);
        } else {
            bitmap_.resize(rows_.rows / 64 + 1);
            uint64_t* bits = bitmap_.data();
            for (size_t i = 0; i < n; ++i)
                rows_of(hits[i],
                        [bits](uint32_t row) { bits[row / 64] |= uint64_t{1} << row % 64; });
            out = source_.db.kernels->extract_set_bits(bits, bitmap_.size(), out, out + total);
        }
        if (rows_.ids)
            for (int64_t* id = ids_; id < out; ++id) *id = rows_.ids[*id];
        ids_ = out;
    }

    const SearchedCodes& source_;
    const Database& rows_;
    const bool ascending_;
    int64_t* ids_;
    int32_t* distances_;
    std::vector<size_t> place_;
    std::vector<Hit> sorted_;
    std::vector<uint64_t> bitmap_;
};

}  // namespace

template <class Sink>
bool CodeScan::find_hits(const SearchedCodes& from, Queries queries, int radius, int threads,
                         Sink& sink) const {
    std::vector<uint8_t> packed;
    if (db_.detail) {
        packed = RowView(db_, Part::hash_code).packed(queries.codes, queries.count);
        queries.codes = packed.data();
    }
    const double cost = scan_cost(from.db.rows, db_.bits(), queries.count);
    const Mih* mih = tables_->mih(from.groups, radius, cost, queries.count, threads);
    std::vector<size_t> names(mih ? 0 : queries.count);
    std::iota(names.begin(), names.end(), size_t{0});
    if (!mih) {
        scan_into(from, queries.codes, names, radius, threads, sink);
        return true;
    }
    names = probe_into(from, *mih, queries, radius, threads, sink);
    if (names.empty()) return false;
    std::vector<uint8_t> codes;
    for (size_t q : names)
        codes.insert(codes.end(), queries.codes + q * db_.width,
                     queries.codes + (q + 1) * db_.width);
    scan_into(from, codes.data(), names, radius, threads, sink);
    return false;
}

RangeFound CodeScan::find(Queries queries, int radius, int threads) const {
    RangeFound found;
    found.source = source(queries.count);
    Collector collector(queries.count);
    found.ascending = find_hits(found.source, queries, radius, threads, collector);
    found.hits.swap(collector.hits);
    found.lims.assign(queries.count + 1, 0);
    for (size_t q = 0; q < queries.count; ++q) {
        const auto& hits = found.hits[q];
        int64_t rows = static_cast<int64_t>(hits.size());
        if (found.source.groups) {
            rows = 0;
            for (const Hit& hit : hits) rows += found.source.weights[hit.row];
        }
        found.lims[q + 1] = found.lims[q] + rows;
    }
    return found;
}

void CodeScan::write(Queries queries, const RangeFound& found, int threads, int64_t* ids,
                     int32_t* distances, int32_t* code_distances) const {
    if (db_.detail)
        return write_details(db_, queries, found, threads, ids, distances, code_distances);
    const size_t n = found.hits.size();
    const size_t tasks = std::clamp<size_t>(static_cast<size_t>(found.lims.back()) / 4096, 1,
                                            std::min(n, static_cast<size_t>(std::max(threads, 1))));
    parallel(tasks, [&](size_t t) {
        const size_t first = n * t / tasks, last = n * (t + 1) / tasks;
        Writer writer(found.source, db_, found.ascending, ids + found.lims[first],
                      distances + found.lims[first]);
        for (size_t q = first; q < last; ++q) writer.write(found.hits[q]);
    });
}

void CodeScan::count(Queries queries, int radius, int threads, int64_t* counts) const {
    const SearchedCodes from = source(queries.count);
    Counter counter(queries.count);
    find_hits(from, queries, radius, threads, counter);
    std::copy(counter.counts.begin(), counter.counts.end(), counts);
}

}  // namespace metah
