// Bit-sliced scan for large batches of queries.
//
// A block of kLanes codes is transposed to one plane a bit. For each group of five bits a table
// holds, for all 32 query patterns, the number of differing bits of every code in three planes:
// its low bit and two bits of weight 2. A query then adds the planes that its patterns select, in
// a carry-save network seeded with 2^kPlanes - 1 - bound: only the overflow has to be looked at, it
// is set where the distance exceeds the bound.
#pragma once
#include "scan/words.h"

namespace metah {
namespace METAH_ISA {

using V = Simd::V;
using Pair = Simd::Pair;

constexpr int kWords = Simd::kBytes / 8;  // 64-bit lanes of a vector
constexpr int kLanes = kWords * 64;       // codes of a block
constexpr int kGroup = 5;                 // bits of a table
constexpr int kEntry = 3;                 // planes of a table's entry

constexpr int groups_of(int bits) { return (bits + kGroup - 1) / kGroup; }

// Transposes the 64 x 64 bit matrices in the lanes of rows[0..63]: three levels at a time.
template <int kStride>
INLINE void transpose_levels(V* rows) {
    constexpr uint64_t kLow[6] = {0x5555555555555555, 0x3333333333333333, 0x0f0f0f0f0f0f0f0f,
                                  0x00ff00ff00ff00ff, 0x0000ffff0000ffff, 0x00000000ffffffff};
    constexpr int kFirst = kStride == 8 ? 3 : 0;
    V r[8];
    for (int i = 0; i < 8; ++i) r[i] = rows[i * kStride];
    for (int level = 2; level >= 0; --level) {
        const int step = 1 << level, shift = step * kStride;
        const uint64_t low = kLow[kFirst + level];
        for (int i = 0; i < 8; ++i) {
            if (i & step) continue;
            V& a = r[i];
            V& b = r[i + step];
            V swap = ((a >> shift) ^ b) & low;
            b ^= swap;
            a ^= swap << shift;
        }
    }
    for (int i = 0; i < 8; ++i) rows[i * kStride] = r[i];
}

INLINE void transpose(V* rows) {
    for (int i = 0; i < 8; ++i) transpose_levels<8>(rows + i);
    for (int i = 0; i < 64; i += 8) transpose_levels<1>(rows + i);
}

// planes[64 w + j], lane l, bit r: bit j of word w of the block's code r * kWords + l.
inline void make_planes(const Scan& scan, size_t base, V* planes) {
    const size_t words = (scan.width + 7) / 8;
    const size_t rows = scan.last - base < kLanes ? scan.last - base : kLanes;
    const uint8_t* block = scan.codes + base * scan.width;
    for (size_t w = 0; w < words; ++w) {
        auto* out = reinterpret_cast<unsigned char*>(planes + 64 * w);
        if (scan.width == 8) {
            std::memcpy(out, block, 8 * rows);
        } else {
            for (size_t i = 0; i < rows; ++i) {
                uint64_t x = load_word(block + i * scan.width, scan.width, w, scan.end);
                std::memcpy(out + 8 * i, &x, 8);
            }
        }
        if (rows < kLanes) std::memset(out + 8 * rows, 0, 8 * (kLanes - rows));
        transpose(planes + 64 * w);
    }
}

// table: (groups, 32, kEntry) planes; each group's entries are the patterns of its query bits.
inline void make_table(const V* planes, int bits, V* table) {
    for (int first = 0; first < bits; first += kGroup, table += 32 * kEntry) {
        const int size = bits - first < kGroup ? bits - first : kGroup;
        V p[kGroup] = {};
        for (int i = 0; i < size; ++i) p[i] = planes[first + i];
        V sum3[8], carry3[8], sum2[4], carry2[4];
        for (int i = 0; i < 8; ++i) {
            V a = i & 1 ? ~p[0] : p[0], b = i & 2 ? ~p[1] : p[1], c = i & 4 ? ~p[2] : p[2];
            sum3[i] = a ^ b ^ c;
            carry3[i] = (a & b) | ((a ^ b) & c);
        }
        for (int i = 0; i < 4; ++i) {
            V a = i & 1 ? ~p[3] : p[3], b = i & 2 ? ~p[4] : p[4];
            sum2[i] = a ^ b;
            carry2[i] = a & b;
        }
        for (int i = 0; i < 1 << size; ++i) {
            V low = sum3[i & 7] & sum2[i >> 3];
            Pair pair = Pair::of(carry3[i & 7], carry2[i >> 3] ^ low);
            table[kEntry * i] = sum3[i & 7] ^ sum2[i >> 3];
            table[kEntry * i + 1] = pair.x;
            table[kEntry * i + 2] = pair.second();
        }
    }
}

// Adds planes into kPlanes sums; which levels hold a waiting pair is known at compile time
// (`waiting`, one bit a level), so that everything unfolds to straight code in registers.
template <int kPlanes>
struct Adder {
    V sum[kPlanes];
    V over;
    Pair pair[kPlanes];

    static constexpr unsigned after(unsigned waiting, int level) {
        for (; level < kPlanes && (waiting >> level & 1); ++level) waiting &= ~(1u << level);
        return level < kPlanes ? waiting | 1u << level : waiting;
    }

    template <unsigned kWaiting, int kLevel>
    INLINE void push(Pair in) {
        if constexpr (kLevel >= kPlanes)
            over |= in.any();
        else if constexpr (kWaiting >> kLevel & 1)
            push<kWaiting, kLevel + 1>(Pair::add(sum[kLevel], pair[kLevel], in));
        else
            pair[kLevel] = in;
    }

    template <unsigned kWaiting, int kLevel, bool kOne>
    INLINE void flush(V one) {
        if constexpr (kLevel >= kPlanes) {
            if constexpr (kOne) over |= one;
        } else if constexpr (kWaiting >> kLevel & 1) {
            V carry = pair[kLevel].add_to(sum[kLevel]);
            constexpr unsigned kRest = kWaiting & ~(1u << kLevel);
            if constexpr (kOne) {
                V second = sum[kLevel] & one;
                sum[kLevel] ^= one;
                push<kRest, kLevel + 1>(Pair::of(carry, second));
                flush<after(kRest, kLevel + 1), kLevel + 1, false>(one);
            } else {
                flush<kRest, kLevel + 1, true>(carry);
            }
        } else if constexpr (kOne) {
            V carry = sum[kLevel] & one;
            sum[kLevel] ^= one;
            flush<kWaiting, kLevel + 1, true>(carry);
        } else {
            flush<kWaiting, kLevel + 1, false>(one);
        }
    }

    // Adds groups kAt.. of kBits bits; `odd` is the low plane of an odd group so far.
    template <int kBits, int kAt, unsigned kWaiting>
    INLINE void groups(const V* table, const uint16_t* offsets, V odd) {
        if constexpr (kAt * kGroup >= kBits) {
            flush<kWaiting, 0, groups_of(kBits) % 2 == 1>(odd);
        } else {
            const V* entry = reinterpret_cast<const V*>(
                reinterpret_cast<const unsigned char*>(table + 32 * kEntry * kAt) + offsets[kAt]);
            constexpr bool kSingle = kBits - kAt * kGroup == 1;
            if constexpr (!kSingle) push<kWaiting, 1>(Pair::stored(entry[1], entry[2]));
            constexpr unsigned kNext = kSingle ? kWaiting : after(kWaiting, 1);
            if constexpr (kAt % 2 == 1) {
                push<kNext, 0>(Pair::of(odd, entry[0]));
                groups<kBits, kAt + 1, after(kNext, 0)>(table, offsets, odd);
            } else {
                groups<kBits, kAt + 1, kNext>(table, offsets, entry[0]);
            }
        }
    }
};

constexpr int planes_of(int bits) {
    int planes = 3;
    while (1 << planes < bits) ++planes;
    return planes;
}

// A query as scan_block reads it: kPlanes uint32 of the seed, one uint16 offset a group.
struct Record {
    unsigned char* at;
    INLINE uint32_t* seed() const { return reinterpret_cast<uint32_t*>(at); }
    INLINE uint16_t* offsets(int planes) const {
        return reinterpret_cast<uint16_t*>(at + 4 * planes);
    }
};

struct Found {  // queries with a row inside their bound; the rows as bits in plane order
    V* mask;
    uint32_t* query;
};

struct Records {  // (count,) of `stride` bytes; the codes are `pieces` pieces of kBits bits
    unsigned char* at;
    size_t stride;
    uint32_t count;
    int pieces;
    INLINE Record operator[](size_t query) const { return {at + query * stride}; }
};

// Returns the number of queries found.
template <int kBits, int kPlanes>
INLINE uint32_t scan_block(const V* table, const Records records, const Found found) {
    constexpr int kGroups = groups_of(kBits);
    uint32_t n = 0;
    for (uint32_t q = 0; q < records.count; ++q) {
        const Record record = records[q];
        Adder<kPlanes> adder;
        for (int i = 0; i < kPlanes; ++i) adder.sum[i] = Simd::broadcast(record.seed()[i]);
        adder.over = V{};
        const uint16_t* offsets = record.offsets(kPlanes);
        for (int c = 0; c < records.pieces; ++c)
            adder.template groups<kBits, 0, 0>(table + c * kGroups * 32 * kEntry,
                                               offsets + c * kGroups, V{});
        found.mask[n] = ~adder.over;
        found.query[n] = q;
        n += !Simd::all_ones(adder.over);
    }
    return n;
}

// The whole scan, for one width of codes.
template <int kBits, int kPlanes>
class SliceScan {
  public:
    SliceScan(const Scan& scan, int pieces) : scan_(scan), words_((scan.width + 7) / 8) {
        const size_t groups = static_cast<size_t>(pieces) * kGroups;
        records_ = {nullptr, (4 * kPlanes + 2 * groups + 3) / 4 * 4, scan.count, pieces};
        Carve carve{scratch(bytes(groups))};
        planes_ = carve.take<V>(64 * words_);
        table_ = carve.take<V>(groups * 32 * kEntry);
        found_.mask = carve.take<V>(scan.count);
        found_.query = carve.take<uint32_t>(scan.count);
        hits_ = carve.take<Hit>(kLanes);
        queries_ = carve.take<uint64_t>(scan.count * words_);
        records_.at = carve.take<unsigned char>(scan.count * records_.stride);
        done_ = carve.take<unsigned char>(scan.count);
        for (uint32_t q = 0; q < scan.count; ++q) make_record(q);
    }

    void run() {
        bool wide = true;
        for (size_t base = scan_.first; base < scan_.last; base += kLanes) {
            make_planes(scan_, base, planes_);
            for (int c = 0; c < records_.pieces; ++c)
                make_table(planes_ + 64 * c, kBits, table_ + c * kGroups * 32 * kEntry);
            const uint32_t n = scan_block<kBits, kPlanes>(table_, records_, found_);
            if (wide) wide = report_wide(base);
            for (uint32_t i = 0; i < n; ++i)
                if (!wide || !done_[found_.query[i]]) report(base, found_.query[i], found_.mask[i]);
        }
    }

  private:
    static constexpr int kGroups = groups_of(kBits);
    static constexpr int kLimit = (1 << kPlanes) - 1;  // bounds above it do not fit the seed

    size_t bytes(size_t groups) const {
        return sizeof(V) * (64 * words_ + groups * 32 * kEntry + scan_.count) +
               scan_.count * (4 + 8 * words_ + records_.stride + 1) + sizeof(Hit) * kLanes + 8 * 64;
    }

    void make_record(uint32_t q) {
        uint64_t* words = queries_ + q * words_;
        const uint8_t* query = scan_.queries + q * scan_.width;
        const uint8_t* end = scan_.queries + scan_.count * scan_.width;
        for (size_t w = 0; w < words_; ++w) words[w] = load_word(query, scan_.width, w, end);
        uint16_t* out = records_[q].offsets(kPlanes);
        for (int c = 0; c < records_.pieces; ++c)
            for (int first = 0; first < kBits; first += kGroup) {
                unsigned pattern = 0;
                for (int i = 0; i < kGroup && first + i < kBits; ++i) {
                    int bit = c * kBits + first + i;
                    pattern |= (words[bit / 64] >> bit % 64 & 1) << i;
                }
                *out++ = static_cast<uint16_t>(pattern * kEntry * sizeof(V));
            }
        make_seed(q);
    }

    INLINE void make_seed(uint32_t q) {
        int bound = scan_.bounds[q] < kLimit ? scan_.bounds[q] : kLimit;
        int bias = kLimit - (bound < 0 ? 0 : bound);
        uint32_t* seed = records_[q].seed();
        for (int i = 0; i < kPlanes; ++i) seed[i] = bias >> i & 1 ? ~0u : 0u;
    }

    // Queries whose bound takes in every distance: all rows are hits. False: there are none.
    bool report_wide(size_t base) {
        bool any = false;
        for (uint32_t q = 0; q < scan_.count; ++q) {
            done_[q] = scan_.bounds[q] > kLimit;
            any |= done_[q];
        }
        if (any)
            for (uint32_t q = 0; q < scan_.count; ++q)
                if (done_[q]) report(base, q, ~V{});
        return any;
    }

    void report(size_t base, uint32_t q, V mask) {
        uint64_t any = 0, word[kWords];
        for (int l = 0; l < kWords; ++l) any |= word[l] = mask[l];
        uint32_t n = 0;
        for (; any; any &= any - 1) {
            const int r = __builtin_ctzll(any);
            for (int l = 0; l < kWords; ++l) {
                const size_t row = base + r * kWords + l;
                if (!(word[l] >> r & 1) || row >= scan_.last) continue;
                hits_[n++] = {static_cast<uint32_t>(row),
                              row_distance(scan_.codes + row * scan_.width, queries_ + q * words_,
                                           scan_.width, scan_.end)};
            }
        }
        if (n == 0) return;
        scan_.consume(scan_.context, q, hits_, n);
        make_seed(q);
    }

    const Scan& scan_;
    const size_t words_;
    V* planes_;
    V* table_;
    Found found_;
    Hit* hits_;
    uint64_t* queries_;
    Records records_;
    unsigned char* done_;
};

template <int kBits>
void slice_one(const Scan& scan) {
    SliceScan<kBits, planes_of(kBits)>(scan, 1).run();
}

template <int kPlanes>
void slice_many(const Scan& scan) {
    SliceScan<64, kPlanes>(scan, static_cast<int>((scan.width + 7) / 8)).run();
}

inline void slice_scan(const Scan& scan) {
    using Run = void (*)(const Scan&);
    static constexpr Run kOne[16] = {
        slice_one<8>,   slice_one<16>,  slice_one<24>,  slice_one<32>, slice_one<40>, slice_one<48>,
        slice_one<56>,  slice_one<64>,  slice_one<72>,  slice_one<80>, slice_one<88>, slice_one<96>,
        slice_one<104>, slice_one<112>, slice_one<120>, slice_one<128>};
    if (scan.width <= 16)
        kOne[scan.width - 1](scan);
    else if (scan.width <= 32)
        slice_many<8>(scan);
    else if (scan.width <= 64)
        slice_many<9>(scan);
    else
        slice_many<10>(scan);
}

}  // namespace METAH_ISA
}  // namespace metah
