// A file, mapped read-only, that is never read in silence once it was changed.
#pragma once
#include <cstddef>
#include <cstdint>
#include <ctime>
#include <optional>

#include "system/map_guard.h"

namespace metah {

// The file stays readable after it was unlinked or replaced by another. What is cut off reads as
// zeros, see MapGuard.
class FileMap {
  public:
    // Maps `length` bytes, at least 1, from the start. Throws std::system_error.
    FileMap(int file, size_t length);
    FileMap(const FileMap&) = delete;
    FileMap& operator=(const FileMap&) = delete;
    ~FileMap();

    const uint8_t* data() const { return data_; }
    size_t size() const { return size_; }

    // What happened to the file since it was mapped, as the end of a sentence; null: nothing that
    // its length or its time of modification tells.
    const char* change() const;

    // Waits until a write from now on would be seen by change(): file systems count time in ticks,
    // and a file may have been written in this very tick. At most about 20 ms.
    void settle() const;

  private:
    int file_ = -1;
    const uint8_t* data_ = nullptr;
    size_t size_;
    timespec written_{};
    std::optional<MapGuard> guard_;
    std::optional<MapGuard::Reading> reading_;
};

}  // namespace metah
