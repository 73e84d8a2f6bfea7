// Preloaded: allocations of C++ code fail from a chosen one on, once or for good.
#include <atomic>
#include <cerrno>
#include <cstdlib>
#include <malloc.h>
#include <new>

namespace {

std::atomic<long> made{0}, first{-1}, last{-1};

bool fails() {
    const long number = ++made;
    return number >= first && number < last;
}

}  // namespace

// Allocations first..last-1 from now on fail; returns how many there were since the call before.
extern "C" long fail_allocations(long first_, long last_) {
    const long before = made.exchange(0);
    first = first_;
    last = last_;
    return before;
}

void* operator new(std::size_t size) {
    void* data = fails() ? nullptr : std::malloc(size ? size : 1);
    if (!data) throw std::bad_alloc();
    return data;
}

extern "C" void* aligned_alloc(std::size_t alignment, std::size_t size) {
    if (fails()) {
        errno = ENOMEM;
        return nullptr;
    }
    return memalign(alignment, size);
}
