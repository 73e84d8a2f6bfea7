// A lock that a forked child does not inherit: held by a thread that the child lacks, it is free.
#pragma once
#include <atomic>
#include <cstdint>

namespace metah {

// 1 in the process that loaded this module, one more in each forked child.
uint32_t fork_generation();

// For std::lock_guard and std::unique_lock. Waits in lock().
class ForkLock {
  public:
    bool try_lock();
    void lock();
    void unlock();

  private:
    std::atomic<uint32_t> holder_{0};  // generation of the process whose thread holds it; 0: free
};

}  // namespace metah
