// Top-k: scans with falling bounds, then writes the nearest in order.
#include <algorithm>
#include <cmath>
#include <numeric>
#include <stdexcept>

#include "code_scan.h"
#include "scan/k_nearest.h"
#include "system/pool.h"

namespace metah {
namespace {

// Top-k of up to kMaxQueries queries over a range of rows. Queries that cannot improve any more
// leave the batch between two scans.
class TopKBatch {
  public:
    TopKBatch(const SearchedCodes& source, HitKind kind, const uint8_t* queries, size_t count,
              uint64_t k)
        : source_(source),
          kind_(kind),
          k_(k),
          width_(source.db.width),
          all_(queries),
          queries_(queries, queries + count * width_),
          active_(count),
          bounds_(count) {
        std::iota(active_.begin(), active_.end(), 0u);
    }

    void run(size_t first, size_t last) {
        const int bits = source_.db.bits();
        guess_bounds(first, last);
        best_.reserve(active_.size());
        for (int bound : bounds_) best_.emplace_back(bits, k_, kind_, bound);
        const std::vector<int32_t> guessed = bounds_;
        scan(first, last);
        active_.clear();
        for (uint32_t q = 0; q < best_.size(); ++q) {
            if (guessed[q] == bits || best_[q].enough()) continue;
            std::copy_n(all_ + q * width_, width_, &queries_[active_.size() * width_]);
            bounds_[active_.size()] = bits;
            active_.push_back(q);
            best_[q] = TopK(bits, k_, kind_, bits);
        }
        scan(first, last);
    }

    const TopK& best(size_t query) const { return best_[query]; }

  private:
    // A first bound from a strided sample of rows: one that takes in far more than k rows if the
    // sample is like the rest. run() starts anew where it is not.
    void guess_bounds(size_t first, size_t last) {
        constexpr size_t kSample = 2048;
        const int bits = source_.db.bits();
        const size_t rows = last - first;
        std::fill(bounds_.begin(), bounds_.end(), bits);
        if (rows < 16 * kSample || kind_ != HitKind::row || source_.db.removed) return;
        const double wanted = static_cast<double>(k_) * kSample / static_cast<double>(rows);
        const double least = std::max(8.0, 2 * wanted + 3 * std::sqrt(wanted));
        if (least > kSample / 4) return;
        std::vector<uint8_t> sample(kSample * width_);
        for (size_t i = 0; i < kSample; ++i)
            std::copy_n(source_.db.codes + (first + rows * i / kSample) * width_, width_,
                        &sample[i * width_]);
        Scan scan{};
        scan.codes = sample.data();
        scan.end = sample.data() + sample.size();
        scan.width = width_;
        scan.last = kSample;
        scan.queries = queries_.data();
        scan.count = static_cast<uint32_t>(active_.size());
        std::vector<uint32_t> histograms(active_.size() * (static_cast<size_t>(bits) + 1));
        source_.db.kernels->distance_histograms(scan, histograms.data());
        const uint32_t* at = histograms.data();
        for (size_t q = 0; q < active_.size(); ++q, at += bits + 1) {
            double sum = at[0];
            int bound = 0;
            while (sum < least) sum += at[++bound];
            bounds_[q] = bound;
        }
    }

    void scan(size_t first, size_t last) {
        size_t step = 4096;
        for (size_t row = first; row < last && !active_.empty(); row += step) {
            if (row > first) step = std::min<size_t>(2 * step, 1 << 18);
            Scan scan = make_scan(source_.db);
            scan.first = row;
            scan.last = std::min(last, row + step);
            scan.queries = queries_.data();
            scan.count = static_cast<uint32_t>(active_.size());
            scan.bounds = bounds_.data();
            scan.context = this;
            scan.consume = [](void* self, uint32_t q, const Hit* hits, uint32_t n) {
                static_cast<TopKBatch*>(self)->consume(q, hits, n);
            };
            source_.db.kernels->scan(scan);
            if (finished_) drop_finished();
        }
    }

    void consume(uint32_t q, const Hit* hits, uint32_t n) {
        TopK& best = best_[active_[q]];
        if (source_.groups) {
            for (uint32_t i = 0; i < n; ++i)
                if (const uint32_t weight = source_.weights[hits[i].row]) best.add(hits[i], weight);
        } else {
            for (uint32_t i = 0; i < n; ++i)
                if (!source_.db.gone(hits[i].row)) best.add(hits[i]);
        }
        bounds_[q] = std::max(best.bound(), 0);
        finished_ |= best.bound() < 0;
    }

    void drop_finished() {
        size_t kept = 0;
        for (size_t i = 0; i < active_.size(); ++i) {
            if (best_[active_[i]].bound() < 0) continue;
            active_[kept] = active_[i];
            bounds_[kept] = bounds_[i];
            std::copy_n(&queries_[i * width_], width_, &queries_[kept * width_]);
            ++kept;
        }
        active_.resize(kept);
        finished_ = false;
    }

    const SearchedCodes& source_;
    const HitKind kind_;
    const uint64_t k_;
    const size_t width_;
    const uint8_t* all_;
    std::vector<uint8_t> queries_;
    std::vector<uint32_t> active_;  // place in the batch -> query
    std::vector<int32_t> bounds_;
    std::vector<TopK> best_;
    bool finished_ = false;
};

// Writes the first k rows of the hits, which ascend by (distance, row or group).
void write_first(const SearchedCodes& source, const Database& rows, const std::vector<Hit>& hits,
                 size_t k, int64_t* ids, int32_t* distances) {
    const auto need = [&](size_t hit) {
        if (hit >= hits.size()) throw CodesChanged();
    };
    if (!source.groups) {
        if (k) need(k - 1);
        for (size_t i = 0; i < k; ++i) {
            ids[i] = rows.id(hits[i].row);
            distances[i] = static_cast<int32_t>(hits[i].distance);
        }
        return;
    }
    const Groups& groups = *source.groups;
    std::vector<uint32_t> some;
    for (size_t i = 0, done = 0; done < k;) {
        need(i);
        const uint32_t distance = hits[i].distance;
        some.clear();
        size_t merged = 0;
        for (; i < hits.size() && hits[i].distance == distance; ++i, ++merged) {
            size_t taken = 0;
            for (uint32_t at = groups.offsets[hits[i].row];
                 at < groups.offsets[hits[i].row + 1] && taken < k - done; ++at)
                if (!rows.gone(groups.rows[at])) some.push_back(groups.rows[at]), ++taken;
        }
        const size_t n = std::min(some.size(), k - done);
        if (merged > 1)
            std::partial_sort(some.begin(), some.begin() + static_cast<ptrdiff_t>(n), some.end());
        for (size_t j = 0; j < n; ++j, ++done) {
            ids[done] = rows.id(some[j]);
            distances[done] = static_cast<int32_t>(distance);
        }
    }
}

// Queries that a thread scans at once: as many as keep the hits that TopK holds below 64 MiB.
size_t queries_at_once(uint64_t k) {
    constexpr uint64_t kMost = (uint64_t{64} << 20) / sizeof(Hit);
    return std::clamp<uint64_t>(kMost / TopK::most_hits(k), 1, kMaxQueries);
}

}  // namespace

void CodeScan::search(Queries queries, uint64_t k, int threads, int64_t* ids,
                      int32_t* distances) const {
    const SearchedCodes from = source(queries.count);
    const HitKind kind = !from.groups  ? HitKind::row
                         : db_.removed ? HitKind::pruned_group
                                       : HitKind::group;
    const size_t most = queries_at_once(k);
    const WorkSplit work = split(from.db.rows, queries.count, threads);
    const auto best_of = [&](const WorkRectangle& some, size_t first, size_t n) {
        TopKBatch batch(from, kind, queries.codes + first * db_.width, n, k);
        batch.run(some.first_row, some.last_row);
        return batch;
    };
    const auto write = [&](size_t query, const std::vector<Hit>& hits) {
        write_first(from, db_, hits, k, ids + query * k, distances + query * k);
    };
    if (!work.by_rows) {
        parallel(work.rectangles.size(), [&](size_t r) {
            const WorkRectangle& some = work.rectangles[r];
            for (size_t q = some.first_query; q < some.last_query; q += most) {
                const size_t n = std::min(most, some.last_query - q);
                const TopKBatch batch = best_of(some, q, n);
                for (size_t i = 0; i < n; ++i) write(q + i, batch.best(i).sorted());
            }
        });
        return;
    }
    for (size_t q = 0; q < queries.count; q += most) {
        const size_t n = std::min(most, queries.count - q);
        std::vector<std::vector<std::vector<Hit>>> found(work.rectangles.size());
        parallel(work.rectangles.size(), [&](size_t r) {
            const TopKBatch batch = best_of(work.rectangles[r], q, n);
            for (size_t i = 0; i < n; ++i) found[r].push_back(batch.best(i).sorted());
        });
        for (size_t i = 0; i < n; ++i) {
            std::vector<Hit> all;
            for (const auto& rows : found) all.insert(all.end(), rows[i].begin(), rows[i].end());
            std::sort(all.begin(), all.end(), [](Hit a, Hit b) {
                return a.distance != b.distance ? a.distance < b.distance : a.row < b.row;
            });
            write(q + i, all);
        }
    }
}

}  // namespace metah
