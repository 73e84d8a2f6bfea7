// Answers radius queries from the tables of multi-index hashing.
#pragma once
#include "accel/mih.h"
#include "scan/words.h"

namespace metah {
namespace METAH_ISA {

class MihProbe {
  public:
    explicit MihProbe(const Probe& probe) : p_(probe), words_((probe.width + 7) / 8) {
        for (int j = 0; j < p_.table_count; ++j) planned_ += planned(j);
        Carve carve{
            scratch(kAhead * (planned_ * sizeof(Bucket) + 8 * words_) + sizeof(Hit) * kHits + 256)};
        buckets_ = carve.take<Bucket>(kAhead * planned_);
        words_of_ = carve.take<uint64_t>(kAhead * words_);
        hits_ = carve.take<Hit>(kHits);
    }

    // Three passes over a few queries at a time, so that memory is asked for before it is read.
    void run() {
        for (size_t first = 0; first < p_.count; first += kAhead) {
            const size_t n = p_.count - first < kAhead ? p_.count - first : kAhead;
            const uint8_t* end = p_.queries + p_.count * p_.width;
            for (size_t i = 0; i < n; ++i) {
                const uint8_t* query = p_.queries + (first + i) * p_.width;
                for (size_t w = 0; w < words_; ++w)
                    words_of_[i * words_ + w] = load_word(query, p_.width, w, end);
                plan(words_of_ + i * words_, buckets_ + i * planned_);
            }
            for (size_t i = 0; i < n; ++i) look_up(buckets_ + i * planned_);
            for (size_t i = 0; i < n; ++i)
                answer(first + i, buckets_ + i * planned_, words_of_ + i * words_);
        }
    }

  private:
    static constexpr size_t kAhead = 16, kHits = 1024;
    // One bucket of a table: first its key, then the rows of it.
    struct Bucket {
        uint32_t key, first, last;
    };

    INLINE int radius(int table) const {
        return substring_radius(p_.radius, p_.table_count, table);
    }

    // Buckets of a table that are looked up ahead: none, the query's own, or also all that differ
    // from it in one bit. Of a larger radius the own one alone, whose neighbours `near` visits.
    INLINE size_t planned(int table) const {
        const int r = radius(table);
        return r < 0 ? 0 : r == 1 ? static_cast<size_t>(p_.length) + 1 : 1;
    }

    INLINE uint32_t substring(const uint64_t* words, int table) const {
        const int first = table * p_.length, shift = first % 64;
        uint64_t x = words[first / 64] >> shift;
        if (shift + p_.length > 64) x |= words[first / 64 + 1] << (64 - shift);
        return static_cast<uint32_t>(x) & ((1u << p_.length) - 1);
    }

    // Writes the keys of the planned buckets, table by table: the own one, then a bit each.
    void plan(const uint64_t* words, Bucket* out) const {
        for (int j = 0; j < p_.table_count; ++j) {
            const uint32_t own = substring(words, j);
            const size_t n = planned(j);
            for (size_t i = 0; i < n; ++i) {
                const uint32_t key = i ? own ^ 1u << (i - 1) : own;
                out++->key = key;
                __builtin_prefetch(p_.tables[j].offsets + key);
            }
        }
    }

    void look_up(Bucket* bucket) const {
        for (int j = 0; j < p_.table_count; ++j) {
            const MihTable& table = p_.tables[j];
            for (const Bucket* end = bucket + planned(j); bucket < end; ++bucket) {
                bucket->first = table.offsets[bucket->key];
                bucket->last = table.offsets[bucket->key + 1];
                if (bucket->first == bucket->last) continue;
                const uint8_t* code = table.codes + bucket->first * p_.width;
                __builtin_prefetch(code);
                __builtin_prefetch(code + p_.width - 1);
            }
        }
    }

    void answer(size_t query, const Bucket* bucket, const uint64_t* words) {
        query_ = query;
        words_now_ = words;
        left_ = p_.most_candidates;
        for (int j = 0; j < p_.table_count; ++j) {
            const int r = radius(j);
            bool held = true;
            for (const Bucket* end = bucket + planned(j); bucket < end && held; ++bucket)
                held = r > 1 ? near(j, bucket->key, 0, r) : rows(j, bucket->first, bucket->last);
            if (!held) {
                p_.consume(p_.context, query, nullptr, kGiveUp);
                found_ = 0;
                return;
            }
        }
        flush();
    }

    // The bucket `key` and all that differ from it in up to `radius` bits from `bit` on.
    bool near(int table, uint32_t key, int bit, int radius) {
        const uint32_t* at = p_.tables[table].offsets + key;
        if (!rows(table, at[0], at[1])) return false;
        if (radius > 0)
            for (; bit < p_.length; ++bit)
                if (!near(table, key ^ 1u << bit, bit + 1, radius - 1)) return false;
        return true;
    }

    // Takes the hits of rows first..last-1 of a table; false: that is too much for one query.
    INLINE bool rows(int j, uint32_t first, uint32_t last) {
        const MihTable& table = p_.tables[j];
        if (last - first > left_) return false;
        left_ -= last - first;
        const uint8_t* end = table.codes + p_.rows * p_.width;
        for (uint32_t i = first; i < last; ++i) {
            const uint8_t* code = table.codes + i * p_.width;
            uint32_t d;
            if (p_.width == 8) {
                uint64_t x;
                std::memcpy(&x, code, 8);
                d = Simd::popcount(x ^ words_now_[0]);
            } else {
                d = row_distance(code, words_now_, p_.width, end);
            }
            if (static_cast<int>(d) > p_.radius || seen(code, end, j)) continue;
            if (found_ == kHits) flush();
            hits_[found_++] = {table.items[i], d};
        }
        return true;
    }

    // Whether an earlier table leads to this code too.
    bool seen(const uint8_t* code, const uint8_t* end, int table) const {
        uint64_t words[16];
        for (size_t w = 0; w < words_; ++w)
            words[w] = load_word(code, p_.width, w, end) ^ words_now_[w];
        for (int j = 0; j < table; ++j)
            if (static_cast<int>(Simd::popcount(substring(words, j))) <=
                substring_radius(p_.radius, p_.table_count, j))
                return true;
        return false;
    }

    void flush() {
        if (found_) p_.consume(p_.context, query_, hits_, found_);
        found_ = 0;
    }

    const Probe& p_;
    const size_t words_;
    size_t planned_ = 0;  // buckets a query
    Bucket* buckets_;
    uint64_t* words_of_;
    Hit* hits_;
    uint32_t found_ = 0;
    size_t query_ = 0, left_ = 0;
    const uint64_t* words_now_ = nullptr;
};

}  // namespace METAH_ISA
}  // namespace metah
