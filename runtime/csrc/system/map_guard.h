// Mapped files that are cut, or cannot be read any more, while they are open: a signal (SIGBUS)
// that would end the process becomes a fact that can be asked for.
#pragma once
#include <cstddef>

namespace metah {

struct GuardedRange;

// Guards one range of memory for its life. Where the system cannot give a page of it, that page and
// all that follow in the range read as zeros from then on, and lost() says so. For memory that
// others read too, only while a Reading of it lives.
class MapGuard {
  public:
    MapGuard(const void* data, size_t bytes);  // throws std::bad_alloc
    MapGuard(const MapGuard&) = delete;
    MapGuard& operator=(const MapGuard&) = delete;
    ~MapGuard();

    bool lost() const;

    // While it lives, the guard is on; they may be many.
    class Reading {
      public:
        explicit Reading(const MapGuard& guard);
        Reading(const Reading&) = delete;
        Reading& operator=(const Reading&) = delete;
        ~Reading();

      private:
        GuardedRange* range_;
    };

  private:
    GuardedRange* range_;
};

}  // namespace metah
