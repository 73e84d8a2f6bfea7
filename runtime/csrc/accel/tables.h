// What is built beside the codes when it pays: groups of equal codes and tables for radius search.
#pragma once
#include <array>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <memory>
#include <vector>

#include "accel/groups.h"
#include "accel/mih.h"
#include "system/fork_lock.h"

namespace metah {

// Built while searches run, read without a lock. A structure is built once the searches that
// lacked it have cost as much as building it (the ski-rental rule: at most twice the best cost in
// hindsight). While one thread builds, the others scan. What does not fit in memory is not built,
// and not tried again: the searches go on without it.
class Tables {
  public:
    explicit Tables(const Database& db) : db_(db) {}
    Tables(const Tables&) = delete;
    Tables& operator=(const Tables&) = delete;
    ~Tables();

    // The groups, or null: codes hardly repeat, or building does not pay yet. `cost`: nanoseconds
    // that a scan of all rows for the waiting queries takes.
    const Groups* groups(double cost);

    // Tables that answer the radius for less than `cost` nanoseconds a query on `rows` codes, or
    // null. They number the groups where groups() gave some, else the rows.
    const Mih* mih(const Groups* groups, int radius, double cost, size_t queries, int threads);

    // Builds what this radius wants (radius < 0: the groups alone), whatever the searches so far;
    // waits for another thread that builds.
    void prepare(int radius, int threads);

    size_t bytes() const;

    // The most memory of all that is built; without it half of the memory that is free when
    // something is to be built.
    void limit(size_t bytes);

    // The size of something that did not fit; 0: nothing, or this was told before.
    size_t take_refused() { return refused_.exchange(0); }

  private:
    bool repetitive();
    bool fits(double bytes);
    void refuse(double bytes);
    // Null: it does not fit.
    const Groups* build_groups();
    const Mih* build_mih(const Groups* groups, MihShape shape, int threads);

    const Database db_;
    std::atomic<double> unique_{-1};  // estimate of the number of unique codes
    std::atomic<size_t> limit_{SIZE_MAX}, refused_{0};
    std::atomic<double> too_large_{INFINITY};  // bytes that are known not to fit
    std::atomic<double> spent_groups_{0}, spent_mih_{0};
    ForkLock building_;
    std::atomic<const Groups*> groups_{nullptr};
    std::array<std::atomic<const Mih*>, 8> mihs_{};
};

// Nanoseconds of a scan of `rows` codes of `bits` bits for each of `queries` queries.
double scan_cost(size_t rows, int bits, size_t queries);

}  // namespace metah
