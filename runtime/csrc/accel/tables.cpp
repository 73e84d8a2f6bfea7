#include "accel/tables.h"

#include <algorithm>
#include <mutex>
#include <new>

#include "system/free_memory.h"

namespace metah {
namespace {

constexpr size_t kLeastRows = 4096;

// Nanoseconds of building, of one thread: metah_build_s of `python benchmarks/hamming.py --only
// clustered` and `--only "radius 2, 64"` (three tables) at 1e7 codes of 64 bits. Groups take 16 a
// row on Zen 5 and 72 on a busy Zen 3 machine; a table takes 100 a row on Zen 5.
constexpr double kGroupCost = 60;   // a row
constexpr double kTableCost = 100;  // a row and table

}  // namespace

double scan_cost(size_t rows, int bits, size_t queries) {
    // A bit of a pair: metah_ns_pair / bits of `python benchmarks/hamming.py --only "batch"`, AVX2
    // on Zen 3.
    const double pair = queries >= 128 ? 0.0013 : queries > 1 ? 0.003 : 0.008;
    return pair * bits * static_cast<double>(rows);
}

Tables::~Tables() {
    delete groups_.load();
    for (auto& mih : mihs_) delete mih.load();
}

void Tables::limit(size_t bytes) {
    limit_ = bytes;
    too_large_ = INFINITY;
}

bool Tables::repetitive() {
    if (db_.rows < kLeastRows) return false;
    if (unique_ < 0) unique_ = estimate_unique(db_);
    return unique_ <= static_cast<double>(db_.rows) / 4;
}

bool Tables::fits(double bytes) {
    if (bytes >= too_large_) return false;
    const size_t limit = limit_;
    const size_t room =
        limit == SIZE_MAX ? free_memory() / 2 : limit - std::min(limit, this->bytes());
    if (bytes <= static_cast<double>(room)) return true;
    refuse(bytes);
    return false;
}

void Tables::refuse(double bytes) {
    too_large_ = bytes;
    refused_ = static_cast<size_t>(bytes);
}

const Groups* Tables::build_groups() {
    const double bytes = groups_bytes(db_, unique_);
    try {
        if (!fits(bytes)) return nullptr;
        auto made = std::make_unique<Groups>(make_groups(db_));
        groups_ = made.get();
        return made.release();
    } catch (const std::bad_alloc&) {
        refuse(bytes);
        return nullptr;
    }
}

const Groups* Tables::groups(double cost) {
    const Groups* known = groups_;
    if (known || db_.rows < kLeastRows) return known;
    if (spent_groups_.fetch_add(cost) + cost < kGroupCost * static_cast<double>(db_.rows) ||
        !repetitive())
        return nullptr;
    const std::unique_lock lock(building_, std::try_to_lock);
    if (!lock) return nullptr;
    known = groups_;
    return known ? known : build_groups();
}

const Mih* Tables::build_mih(const Groups* groups, MihShape shape, int threads) {
    const uint8_t* codes = groups ? groups->codes.data() : db_.codes;
    const size_t stride = groups ? db_.width : db_.stride();
    const size_t rows = groups ? groups->size() : db_.rows;
    const double keys = 4 * static_cast<double>(rows) * std::min(shape.tables, threads);
    const double bytes = static_cast<double>(mih_bytes(rows, db_.width, shape)) + keys;
    for (auto& slot : mihs_) {
        if (slot.load()) continue;
        try {
            if (!fits(bytes)) return nullptr;
            auto made =
                std::make_unique<Mih>(make_mih(codes, rows, db_.width, stride, shape, threads));
            slot = made.get();
            return made.release();
        } catch (const std::bad_alloc&) {
            refuse(bytes);
            return nullptr;
        }
    }
    return nullptr;  // enough kinds of tables
}

const Mih* Tables::mih(const Groups* groups, int radius, double cost, size_t queries, int threads) {
    const size_t rows = groups ? groups->size() : db_.rows;
    if (rows < kLeastRows) return nullptr;
    const Mih* best = nullptr;
    double best_cost = cost / 2;
    for (auto& slot : mihs_) {
        const Mih* mih = slot.load();
        if (!mih || mih->tables[0].items.size() != rows) continue;
        const double c =
            probe_cost(rows, static_cast<int>(mih->tables.size()), mih->length, radius);
        if (c < best_cost) best = mih, best_cost = c;
    }
    const MihShape shape = best_shape(rows, db_.bits(), radius);
    if (shape.cost > best_cost / 4) return best;
    // What the searches would have saved so far by the better tables.
    const double saved = ((best ? best_cost : cost) - shape.cost) * static_cast<double>(queries);
    if (spent_mih_.fetch_add(saved) + saved < kTableCost * shape.tables * static_cast<double>(rows))
        return best;
    const std::unique_lock lock(building_, std::try_to_lock);
    if (!lock) return best;
    spent_mih_ = 0;
    const Mih* made = build_mih(groups, shape, threads);
    return made ? made : best;
}

void Tables::prepare(int radius, int threads) {
    const std::lock_guard lock(building_);
    const Groups* groups = groups_;
    if (!groups && repetitive()) groups = build_groups();
    if (radius < 0) return;
    const size_t rows = groups ? groups->size() : db_.rows;
    const MihShape shape = best_shape(rows, db_.bits(), radius);
    for (auto& slot : mihs_)
        if (const Mih* mih = slot.load())
            if (mih->tables[0].items.size() == rows && mih->length == shape.length &&
                static_cast<int>(mih->tables.size()) >= shape.tables)
                return;
    if (shape.cost < scan_cost(rows, db_.bits(), kMaxQueries)) build_mih(groups, shape, threads);
}

size_t Tables::bytes() const {
    const Groups* groups = groups_;
    size_t sum = groups ? groups->bytes() : 0;
    for (auto& slot : mihs_)
        if (const Mih* mih = slot.load()) sum += mih->bytes();
    return sum;
}

}  // namespace metah
