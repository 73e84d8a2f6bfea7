#include "system/fork_lock.h"

#include <pthread.h>

namespace metah {
namespace {

std::atomic<uint32_t> generation{1};
[[maybe_unused]] const int registered = pthread_atfork(nullptr, nullptr, [] { ++generation; });

}  // namespace

uint32_t fork_generation() { return generation; }

bool ForkLock::try_lock() {
    uint32_t holder = holder_;
    const uint32_t here = fork_generation();
    return holder != here && holder_.compare_exchange_strong(holder, here);
}

void ForkLock::lock() {
    while (!try_lock()) holder_.wait(fork_generation());
}

void ForkLock::unlock() {
    holder_ = 0;
    holder_.notify_all();
}

}  // namespace metah
