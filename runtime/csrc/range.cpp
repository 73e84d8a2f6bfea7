// Radius search: finds by tables where they pay, else by a scan; then writes in order.
#include <algorithm>
#include <bit>
#include <numeric>
#include <optional>

#include "index.h"
#include "pool.h"

namespace metah {
namespace {

// Where hits go while several threads find them. A lane is written by one thread at a time; a scan
// split by rows uses one lane a part, so that rows ascend from lane to lane.
struct Collector {
    std::vector<std::vector<std::vector<Hit>>> lanes;  // lane, query
    Collector(size_t lanes_, size_t queries) : lanes(lanes_) {
        for (auto& lane : lanes) lane.resize(queries);
    }
    void add(const Source& source, size_t lane, size_t query, const Hit* hits, uint32_t n) {
        auto& out = lanes[lane][query];
        for (uint32_t i = 0; i < n; ++i)
            if (source.groups ? source.weights[hits[i].row] > 0 : !source.db.gone(hits[i].row))
                out.push_back(hits[i]);
    }
    void drop(size_t query) { lanes[0][query].clear(); }
};

struct Counter {
    std::vector<std::vector<int64_t>> lanes;
    Counter(size_t lanes_, size_t queries) : lanes(lanes_) {
        for (auto& lane : lanes) lane.resize(queries);
    }
    void add(const Source& source, size_t lane, size_t query, const Hit* hits, uint32_t n) {
        int64_t sum = 0;
        for (uint32_t i = 0; i < n; ++i)
            sum += source.groups ? source.weights[hits[i].row]
                                 : static_cast<uint32_t>(!source.db.gone(hits[i].row));
        lanes[lane][query] += sum;
    }
    void drop(size_t query) { lanes[0][query] = 0; }
};

// Scans some queries; `names[i]` is the sink's number of query i.
template <class Sink>
void scan_into(const Source& source, const uint8_t* codes, const std::vector<size_t>& names,
               int radius, int threads, Sink& sink) {
    const std::vector<Part> parts = split(source.db.rows, names.size(), threads);
    const bool by_rows = parts.size() > 1 && parts[0].last_query == names.size();
    parallel(parts.size(), [&](size_t p) {
        const Part& part = parts[p];
        for (size_t q = part.first_query; q < part.last_query; q += kMaxQueries) {
            Scan scan = make_scan(source.db);
            scan.first = part.first_row;
            scan.last = part.last_row;
            scan.queries = codes + q * source.db.width;
            scan.count = static_cast<uint32_t>(
                std::min<size_t>(kMaxQueries, part.last_query - q));
            const std::vector<int32_t> bounds(scan.count, radius);
            scan.bounds = bounds.data();
            auto consume = [&](uint32_t i, const Hit* hits, uint32_t n) {
                sink.add(source, by_rows ? p : 0, names[q + i], hits, n);
            };
            scan.context = &consume;
            scan.consume = [](void* f, uint32_t i, const Hit* hits, uint32_t n) {
                (*static_cast<decltype(consume)*>(f))(i, hits, n);
            };
            if (scan.last > scan.first) source.db.kernels->scan(scan);
        }
    });
}

// Probes the tables for all queries; returns those that were given up.
template <class Sink>
std::vector<size_t> probe_into(const Source& source, const Mih& mih, Queries queries, int radius,
                               int threads, Sink& sink) {
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
            if (n != kGiveUp) return sink.add(source, 0, first + q, hits, n);
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
    for (const auto& part : given_up) all.insert(all.end(), part.begin(), part.end());
    return all;
}

// Puts the rows of one query's hits in the order (distance, row) and hands each to `write`.
class Ordered {
  public:
    Ordered(const Source& source, const Database& rows, bool ascending)
        : source_(source), rows_(rows), ascending_(ascending) {}

    template <class Write>
    void each(std::vector<Hit> hits, Write write) {
        if (!ascending_ && !source_.groups) {
            std::sort(hits.begin(), hits.end(), before);
        } else {
            by_distance(hits);
        }
        if (!source_.groups) {
            for (const Hit& hit : hits) write(hit.row, hit.distance);
            return;
        }
        for (size_t i = 0; i < hits.size();) {
            size_t end = i;
            while (end < hits.size() && hits[end].distance == hits[i].distance) ++end;
            const uint32_t distance = hits[i].distance;
            merge(hits.data() + i, end - i, [&](uint32_t row) { write(row, distance); });
            i = end;
        }
    }

  private:
    static bool before(Hit a, Hit b) {
        return a.distance != b.distance ? a.distance < b.distance : a.row < b.row;
    }

    void by_distance(std::vector<Hit>& hits) {
        place_.assign(static_cast<size_t>(rows_.bits()) + 2, 0);
        for (const Hit& hit : hits) ++place_[hit.distance + 1];
        std::partial_sum(place_.begin(), place_.end(), place_.begin());
        sorted_.resize(hits.size());
        for (const Hit& hit : hits) sorted_[place_[hit.distance]++] = hit;
        hits.swap(sorted_);
    }

    // The rows of some groups, ascending: through a bitmap of all rows if they are many.
    template <class Write>
    void merge(const Hit* hits, size_t n, Write write) {
        const Groups& groups = *source_.groups;
        size_t total = 0;
        for (size_t i = 0; i < n; ++i) total += groups.count(hits[i].row);
        auto each_row = [&](auto&& visit) {
            for (size_t i = 0; i < n; ++i)
                for (uint32_t at = groups.offsets[hits[i].row];
                     at < groups.offsets[hits[i].row + 1]; ++at)
                    if (!rows_.gone(groups.rows[at])) visit(groups.rows[at]);
        };
        if (n == 1) {
            each_row(write);
        } else if (total < rows_.rows / 256 + 64) {
            some_.clear();
            each_row([&](uint32_t row) { some_.push_back(row); });
            std::sort(some_.begin(), some_.end());
            for (uint32_t row : some_) write(row);
        } else {
            bitmap_.resize(rows_.rows / 64 + 1);
            each_row([&](uint32_t row) { bitmap_[row / 64] |= uint64_t{1} << row % 64; });
            for (size_t word = 0; word < bitmap_.size(); ++word) {
                for (uint64_t left = bitmap_[word]; left; left &= left - 1)
                    write(static_cast<uint32_t>(word * 64 +
                                                static_cast<size_t>(std::countr_zero(left))));
                bitmap_[word] = 0;
            }
        }
    }

    const Source& source_;
    const Database& rows_;
    const bool ascending_;
    std::vector<size_t> place_;
    std::vector<Hit> sorted_;
    std::vector<uint32_t> some_;
    std::vector<uint64_t> bitmap_;
};

}  // namespace

template <class Sink>
bool Index::find_hits(const Source& from, Queries queries, int radius, int threads,
                      Sink& sink) const {
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

RangeFound Index::find(Queries queries, int radius, int threads) const {
    RangeFound found;
    found.source = source(queries.count);
    const size_t lanes = std::max(threads, 1);
    Collector collector(lanes, queries.count);
    found.ascending = find_hits(found.source, queries, radius, threads, collector);
    found.hits.swap(collector.lanes[0]);
    found.lims.assign(queries.count + 1, 0);
    for (size_t q = 0; q < queries.count; ++q) {
        auto& hits = found.hits[q];
        for (size_t lane = 1; lane < lanes; ++lane)
            hits.insert(hits.end(), collector.lanes[lane][q].begin(),
                        collector.lanes[lane][q].end());
        int64_t rows = static_cast<int64_t>(hits.size());
        if (found.source.groups) {
            rows = 0;
            for (const Hit& hit : hits) rows += found.source.weights[hit.row];
        }
        found.lims[q + 1] = found.lims[q] + rows;
    }
    return found;
}

void Index::write(const RangeFound& found, int threads, int64_t* ids, int32_t* distances) const {
    const size_t n = found.hits.size();
    const size_t tasks =
        std::clamp<size_t>(static_cast<size_t>(found.lims.back()) / 4096, 1,
                           std::min(n, static_cast<size_t>(std::max(threads, 1))));
    parallel(tasks, [&](size_t t) {
        Ordered ordered(found.source, db_, found.ascending);
        for (size_t q = n * t / tasks; q < n * (t + 1) / tasks; ++q) {
            int64_t* id = ids + found.lims[q];
            int32_t* distance = distances + found.lims[q];
            ordered.each(found.hits[q], [&](uint32_t row, uint32_t d) {
                *id++ = db_.id(row);
                *distance++ = static_cast<int32_t>(d);
            });
        }
    });
}

void Index::count(Queries queries, int radius, int threads, int64_t* counts) const {
    const Source from = source(queries.count);
    Counter counter(static_cast<size_t>(std::max(threads, 1)), queries.count);
    find_hits(from, queries, radius, threads, counter);
    std::fill(counts, counts + queries.count, 0);
    for (const auto& lane : counter.lanes)
        for (size_t q = 0; q < queries.count; ++q) counts[q] += lane[q];
}

}  // namespace metah
