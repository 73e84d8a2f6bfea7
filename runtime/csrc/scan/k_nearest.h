// Keeps the k nearest of a stream of hits whose rows ascend: an integer threshold, no heap.
#pragma once
#include <algorithm>
#include <cstdint>
#include <vector>

#include "scan/kernels.h"

namespace metah {

// A hit is wanted while its distance is <= bound(). A histogram over the distances tells when k
// wanted ones are found: then the bound drops below the largest kept distance, so that later rows
// win no ties. At most (bits + 1) * k hits are ever stored, whatever their order.
//
// A hit may stand for `weight` rows with equal codes. Then k rows are perhaps found with fewer
// hits; but a later hit may still win ties, as its rows may lie between those of earlier ones.
enum class HitKind {
    row,          // weight 1
    group,        // rows of groups; a group's first row ascends
    pruned_group  // as group, but its first row may be removed: ties are never settled early
};

class TopK {
  public:
    // first_bound: bits, or less where k hits are sure to lie within it (see enough()).
    TopK(int bits, uint64_t k, HitKind kind, int first_bound)
        : k_(k),
          kind_(kind),
          first_(first_bound),
          strict_(first_bound),
          loose_(first_bound),
          count_(bits + 1, 0),
          weight_(kind == HitKind::row ? 0 : bits + 1, 0),
          room_(most_hits(k)) {}

    // How many hits of weight 1 it holds at once.
    static constexpr uint64_t most_hits(uint64_t k) { return 4 * k + 64; }

    int bound() const { return std::min(strict_, loose_); }  // < 0: nothing can be improved

    // Whether k hits were found within the first bound.
    bool enough() const { return strict_ < first_; }

    void add(Hit hit, uint32_t weight = 1) {
        const int d = static_cast<int>(hit.distance);
        if (d > bound()) return;
        if (hits_.size() >= room_) compact();
        hits_.push_back(hit);
        if (kind_ != HitKind::pruned_group) {
            ++count_[hit.distance];
            for (++found_; strict_ >= 0 && found_ >= k_; --strict_) found_ -= count_[strict_];
        }
        if (kind_ != HitKind::row) {
            weight_[hit.distance] += weight;
            for (rows_ += weight; loose_ > 0 && rows_ - weight_[loose_] >= k_; --loose_)
                rows_ -= weight_[loose_];
            if (loose_ == 0 && weight_[0] >= k_) loose_ = -1;  // the one group at distance 0
        }
    }

    // The kept hits by (distance, row): at most k rows, or groups with at least k rows.
    std::vector<Hit> sorted() const {
        std::vector<uint64_t> place(count_.size() + 1, 0);
        for (const Hit& hit : hits_) ++place[hit.distance + 1];
        for (size_t d = 1; d < place.size(); ++d) place[d] += place[d - 1];
        std::vector<Hit> out(hits_.size());
        for (const Hit& hit : hits_) out[place[hit.distance]++] = hit;
        if (kind_ == HitKind::row && out.size() > k_) out.resize(k_);
        return out;
    }

  private:
    void compact() {
        const int keep = std::min(strict_ + 1, std::max(loose_, 0));
        std::erase_if(hits_, [&](Hit h) { return static_cast<int>(h.distance) > keep; });
        room_ = std::max(room_, 2 * hits_.size());
    }

    uint64_t k_;
    HitKind kind_;
    int first_;
    int strict_;  // fewer than k hits have a distance <= strict_
    int loose_;   // the least distance within which k rows are found
    uint64_t found_ = 0, rows_ = 0;
    std::vector<uint64_t> count_, weight_;
    std::vector<Hit> hits_;
    size_t room_;
};

}  // namespace metah
