#include "system/map_guard.h"

#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstdint>
#include <new>

namespace metah {

// All fields are read by the signal handler. `end` is 0 while `begin` changes.
struct GuardedRange {
    std::atomic<bool> taken{false}, lost{false};
    std::atomic<uint32_t> readings{0};
    std::atomic<uintptr_t> begin{0}, end{0};

    bool overlaps(uintptr_t first, uintptr_t last) const {
        const uintptr_t stop = end, start = begin;
        return stop == end && start < last && first < stop;
    }
};

namespace {

// A list that only grows, so that the handler may read it at any moment.
struct Chunk {
    GuardedRange ranges[64];
    std::atomic<Chunk*> next{nullptr};
};

Chunk first_chunk;
const uintptr_t page_size = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));

template <class Visit>
void each_range(Visit visit) {
    for (Chunk* chunk = &first_chunk; chunk; chunk = chunk->next)
        for (GuardedRange& range : chunk->ranges) visit(range);
}

// Puts zeros in the place of the page at `address` and of all that follow in the ranges that are
// being read there; false: there are none.
bool replace_lost_pages(uintptr_t address) {
    uintptr_t end = 0;
    each_range([&](GuardedRange& range) {
        if (range.readings && range.overlaps(address, address + 1))
            end = std::max<uintptr_t>(end, range.end);
    });
    if (end == 0) return false;
    const uintptr_t page = address / page_size * page_size;
    void* const at = reinterpret_cast<void*>(page);
    if (mmap(at, end - page, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) != at)
        return false;
    each_range([&](GuardedRange& range) {
        if (range.overlaps(page, end)) range.lost = true;
    });
    return true;
}

struct sigaction before;             // what was there when ours was set
std::atomic<bool> passed_on{false};  // a signal was given to `before`

void on_bus_error(int signal, siginfo_t* info, void* context) {
    const int error = errno;
    const bool fault = info->si_code > 0;  // else sent by a process
    if (fault && replace_lost_pages(reinterpret_cast<uintptr_t>(info->si_addr))) {
        errno = error;
        return;
    }
    // Not ours. A handler that prints and raises the signal again comes here a second time.
    const bool again = !fault && passed_on;
    passed_on = true;
    if (!again && before.sa_flags & SA_SIGINFO && before.sa_sigaction) {
        before.sa_sigaction(signal, info, context);
    } else if (!again && before.sa_handler != SIG_DFL && before.sa_handler != SIG_IGN) {
        before.sa_handler(signal);
    } else if (again || fault || before.sa_handler == SIG_DFL) {
        struct sigaction standard{};
        sigaction(signal, &(standard.sa_handler = SIG_DFL, standard), nullptr);
        if (!fault) raise(signal);  // a fault comes again by itself
    }
    errno = error;
}

// Sets the handler where it is not, also where others set theirs over it.
void set_handler() {
    struct sigaction now;
    if (sigaction(SIGBUS, nullptr, &now) != 0) return;
    if (now.sa_flags & SA_SIGINFO && now.sa_sigaction == on_bus_error) return;
    before = now;
    struct sigaction ours{};
    ours.sa_sigaction = on_bus_error;
    ours.sa_flags = SA_SIGINFO | SA_ONSTACK;
    sigemptyset(&ours.sa_mask);
    sigaction(SIGBUS, &ours, nullptr);
}

GuardedRange* take_range() {
    for (Chunk* chunk = &first_chunk;;) {
        for (GuardedRange& range : chunk->ranges)
            if (!range.taken && !range.taken.exchange(true)) return &range;
        Chunk* next = chunk->next;
        if (!next) {
            Chunk* made = new Chunk;
            if (chunk->next.compare_exchange_strong(next, made))
                next = made;
            else
                delete made;
        }
        chunk = next;
    }
}

}  // namespace

MapGuard::MapGuard(const void* data, size_t bytes) : range_(take_range()) {
    range_->lost = false;
    range_->begin = reinterpret_cast<uintptr_t>(data);
    range_->end = reinterpret_cast<uintptr_t>(data) + bytes;
}

MapGuard::~MapGuard() {
    range_->end = 0;
    range_->taken = false;
}

bool MapGuard::lost() const { return range_->lost; }

MapGuard::Reading::Reading(const MapGuard& guard) : range_(guard.range_) {
    ++range_->readings;
    set_handler();
}

MapGuard::Reading::~Reading() { --range_->readings; }

}  // namespace metah
