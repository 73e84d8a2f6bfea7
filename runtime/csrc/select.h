// Keeps the k nearest of a stream of hits whose rows ascend: an integer threshold, no heap.
#pragma once
#include <cstdint>
#include <vector>

#include "kernel.h"

namespace metah {

// A hit is wanted while its distance is <= bound(). A histogram over the distances tells when the
// wanted ones reach k: then the bound drops below the largest kept distance, so that later rows
// win no ties. At most (bits + 1) * k hits are ever stored, whatever their order.
class TopK {
  public:
    TopK(int bits, uint64_t k) : k_(k), bound_(bits), count_(bits + 1, 0) {}

    int bound() const { return bound_; }  // < 0: k codes equal to the query are found

    void add(Hit hit) {
        if (static_cast<int>(hit.distance) > bound_) return;
        if (hits_.size() >= 4 * k_ + 64) compact();
        hits_.push_back(hit);
        ++count_[hit.distance];
        for (++wanted_; bound_ >= 0 && wanted_ >= k_; --bound_) wanted_ -= count_[bound_];
    }

    // The kept hits, ascending by (distance, row), at most k of them.
    std::vector<Hit> sorted() const {
        std::vector<uint64_t> place(count_.size() + 1, 0);
        for (const Hit& hit : hits_) ++place[hit.distance + 1];
        for (size_t d = 1; d < place.size(); ++d) place[d] += place[d - 1];
        std::vector<Hit> out(hits_.size());
        for (const Hit& hit : hits_) out[place[hit.distance]++] = hit;
        if (out.size() > k_) out.resize(k_);
        return out;
    }

  private:
    void compact() {
        size_t kept = 0;
        for (const Hit& hit : hits_)
            if (static_cast<int>(hit.distance) <= bound_ + 1) hits_[kept++] = hit;
        hits_.resize(kept);
    }

    uint64_t k_;
    uint64_t wanted_ = 0;  // hits with distance <= bound_
    int bound_;
    std::vector<uint64_t> count_;
    std::vector<Hit> hits_;
};

}  // namespace metah
