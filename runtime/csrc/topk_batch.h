// Scans with falling bounds: what top-k search of every kind shares.
#pragma once
#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "code_scan.h"
#include "row_view.h"
#include "system/pool.h"

namespace metah {

// Top-k of up to kMaxQueries queries over a range of rows. Queries that cannot improve any more
// leave the batch between two scans.
//
// Nearest keeps the k nearest of one query. It is made by Source::nearest(query, bound); then
//   add(hits, n)   rows ascend from call to call
//   bound()        largest distance that can still improve it, < 0 for none
//   enough()       whether k rows were found within the bound that it was made with
//   sorted()       vector of Nearest::Item, ascending
//   most_held(k)   items that it holds at once
// Source: view() of the rows, nearest(), may_guess() whether a sample tells where the k nearest
// lie.
template <class Source, class Nearest>
class TopKBatch {
  public:
    // queries: (count, view().width()).
    TopKBatch(const Source& source, const uint8_t* queries, size_t count, uint64_t k)
        : source_(source),
          view_(source.view()),
          k_(k),
          width_(view_.width()),
          all_(queries),
          queries_(queries, queries + count * width_),
          active_(count),
          bounds_(count) {
        std::iota(active_.begin(), active_.end(), 0u);
    }

    void run(size_t first, size_t last) {
        const int bits = view_.bits();
        guess_bounds(first, last);
        best_.reserve(active_.size());
        for (uint32_t q = 0; q < active_.size(); ++q)
            best_.push_back(source_.nearest(all_ + q * width_, k_, bounds_[q]));
        const std::vector<int32_t> guessed = bounds_;
        scan(first, last);
        active_.clear();
        for (uint32_t q = 0; q < best_.size(); ++q) {
            if (guessed[q] == bits || best_[q].enough()) continue;
            std::copy_n(all_ + q * width_, width_, &queries_[active_.size() * width_]);
            bounds_[active_.size()] = bits;
            active_.push_back(q);
            best_[q] = source_.nearest(all_ + q * width_, k_, bits);
        }
        scan(first, last);
    }

    const Nearest& best(size_t query) const { return best_[query]; }

  private:
    // A first bound from a strided sample of rows: one that takes in far more than k rows if the
    // sample is like the rest. run() starts anew where it is not.
    void guess_bounds(size_t first, size_t last) {
        constexpr size_t kSample = 2048;
        const int bits = view_.bits();
        const size_t rows = last - first;
        std::fill(bounds_.begin(), bounds_.end(), bits);
        if (rows < 16 * kSample || !source_.may_guess()) return;
        const double wanted = static_cast<double>(k_) * kSample / static_cast<double>(rows);
        const double least = std::max(8.0, 2 * wanted + 3 * std::sqrt(wanted));
        if (least > kSample / 4) return;
        std::vector<uint8_t> sample(kSample * width_);
        for (size_t i = 0; i < kSample; ++i)
            view_.pack(source_.db().code(first + rows * i / kSample), 1, &sample[i * width_]);
        Scan scan{};
        scan.codes = sample.data();
        scan.end = sample.data() + sample.size();
        scan.width = width_;
        scan.last = kSample;
        scan.queries = queries_.data();
        scan.count = static_cast<uint32_t>(active_.size());
        std::vector<uint32_t> histograms(active_.size() * (static_cast<size_t>(bits) + 1));
        source_.db().kernels->distance_histograms(scan, histograms.data());
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
            Scan scan{};
            scan.first = row;
            scan.last = std::min(last, row + step);
            scan.queries = queries_.data();
            scan.count = static_cast<uint32_t>(active_.size());
            scan.bounds = bounds_.data();
            scan.context = this;
            scan.consume = [](void* self, uint32_t q, const Hit* hits, uint32_t n) {
                static_cast<TopKBatch*>(self)->consume(q, hits, n);
            };
            view_.scan(scan);
            if (finished_) drop_finished();
        }
    }

    void consume(uint32_t q, const Hit* hits, uint32_t n) {
        Nearest& best = best_[active_[q]];
        best.add(hits, n);
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

    const Source& source_;
    const RowView view_;
    const uint64_t k_;
    const size_t width_;
    const uint8_t* all_;
    std::vector<uint8_t> queries_;
    std::vector<uint32_t> active_;  // place in the batch -> query
    std::vector<int32_t> bounds_;
    std::vector<Nearest> best_;
    bool finished_ = false;
};

// Queries that a thread scans at once: as many as keep the items that they hold below 64 MiB.
template <class Nearest>
size_t queries_at_once(uint64_t k) {
    constexpr uint64_t kMost = (uint64_t{64} << 20) / sizeof(typename Nearest::Item);
    return std::clamp<uint64_t>(kMost / Nearest::most_held(k), 1, kMaxQueries);
}

// Finds the k nearest of all queries and calls write(query, items), each query once, ascending
// items: k of them, or as many as hold k rows.
template <class Nearest, class Source, class Write>
void top_k(const Source& source, Queries queries, uint64_t k, int threads, Write write) {
    const size_t width = source.view().width(), rows = source.db().rows;
    const size_t most = queries_at_once<Nearest>(k);
    const WorkSplit work = split(rows, queries.count, threads);
    const auto best_of = [&](const WorkRectangle& some, size_t first, size_t n) {
        TopKBatch<Source, Nearest> batch(source, queries.codes + first * width, n, k);
        batch.run(some.first_row, some.last_row);
        return batch;
    };
    if (!work.by_rows) {
        parallel(work.rectangles.size(), [&](size_t r) {
            const WorkRectangle& some = work.rectangles[r];
            for (size_t q = some.first_query; q < some.last_query; q += most) {
                const size_t n = std::min(most, some.last_query - q);
                const auto batch = best_of(some, q, n);
                for (size_t i = 0; i < n; ++i) write(q + i, batch.best(i).sorted());
            }
        });
        return;
    }
    for (size_t q = 0; q < queries.count; q += most) {
        const size_t n = std::min(most, queries.count - q);
        std::vector<std::vector<std::vector<typename Nearest::Item>>> found(work.rectangles.size());
        parallel(work.rectangles.size(), [&](size_t r) {
            const auto batch = best_of(work.rectangles[r], q, n);
            for (size_t i = 0; i < n; ++i) found[r].push_back(batch.best(i).sorted());
        });
        for (size_t i = 0; i < n; ++i) {
            std::vector<typename Nearest::Item> all;
            for (const auto& some : found) all.insert(all.end(), some[i].begin(), some[i].end());
            std::sort(all.begin(), all.end());
            write(q + i, all);
        }
    }
}

}  // namespace metah
