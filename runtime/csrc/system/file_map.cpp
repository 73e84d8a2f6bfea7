#include "system/file_map.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <system_error>

namespace metah {
namespace {

timespec time_of(const struct stat& facts) {
#ifdef __APPLE__
    return facts.st_mtimespec;
#else
    return facts.st_mtim;
#endif
}

}  // namespace

FileMap::FileMap(int file, size_t length) : size_(length) {
    struct stat facts;
    void* data = MAP_FAILED;
    if (fstat(file, &facts) == 0 && (file_ = fcntl(file, F_DUPFD_CLOEXEC, 0)) >= 0)
        data = mmap(nullptr, length, PROT_READ, MAP_SHARED, file, 0);
    try {
        if (data == MAP_FAILED) throw std::system_error(errno, std::generic_category());
        guard_.emplace(data, length);
        reading_.emplace(*guard_);
    } catch (...) {
        guard_.reset();
        if (data != MAP_FAILED) munmap(data, length);
        if (file_ >= 0) close(file_);
        throw;
    }
    data_ = static_cast<const uint8_t*>(data);
    written_ = time_of(facts);
}

FileMap::~FileMap() {
    reading_.reset();
    guard_.reset();
    munmap(const_cast<uint8_t*>(data_), size_);
    close(file_);
}

void FileMap::settle() const {
#ifdef CLOCK_REALTIME_COARSE
    constexpr auto kClock = CLOCK_REALTIME_COARSE;  // that of the kernel's file times
#else
    constexpr auto kClock = CLOCK_REALTIME;
#endif
    const timespec step{0, 1'000'000};
    for (int steps = 0; steps < 20; ++steps) {
        timespec now;
        clock_gettime(kClock, &now);
        if (now.tv_sec > written_.tv_sec ||
            (now.tv_sec == written_.tv_sec && now.tv_nsec > written_.tv_nsec))
            return;
        nanosleep(&step, nullptr);
    }
}

const char* FileMap::change() const {
    struct stat facts;
    if (fstat(file_, &facts) != 0) return "cannot be examined any more";
    if (static_cast<size_t>(facts.st_size) < size_) return "was cut while it was open";
    if (guard_->lost()) return "could not be read";
    const timespec written = time_of(facts);
    if (static_cast<size_t>(facts.st_size) != size_ || written.tv_sec != written_.tv_sec ||
        written.tv_nsec != written_.tv_nsec)
        return "was written to while it was open";
    return nullptr;
}

}  // namespace metah
