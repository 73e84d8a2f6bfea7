// Top-k by the hash code alone: scans rows or groups, then writes the nearest in order.
#include "code_scan.h"
#include "detail_search.h"
#include "nearest_hits.h"
#include "topk_batch.h"

namespace metah {
namespace {

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

}  // namespace

void CodeScan::search(Queries queries, uint64_t k, int threads, int64_t* ids, int32_t* distances,
                      int32_t* code_distances) const {
    const SearchedCodes from = source(queries.count);
    if (db_.detail)
        return search_details(db_, from, queries, k, threads, ids, distances, code_distances);
    const HitKind kind = !from.groups  ? HitKind::row
                         : db_.removed ? HitKind::pruned_group
                                       : HitKind::group;
    top_k<NearestHits>(HashCodes{from, kind}, queries, k, threads,
                       [&](size_t query, const std::vector<Hit>& hits) {
                           write_first(from, db_, hits, k, ids + query * k, distances + query * k);
                       });
}

}  // namespace metah
