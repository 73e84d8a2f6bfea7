// Large uninitialised arrays on huge pages: fewer page faults to fill, fewer TLB misses to read.
#pragma once
#include <sys/mman.h>

#include <algorithm>
#include <cstddef>
#include <cstdlib>
#include <new>
#include <utility>

namespace metah {

// Freed by std::free. Throws std::bad_alloc.
inline void* allocate(size_t bytes) {
    constexpr size_t kHuge = size_t{2} << 20;
    const size_t align = bytes >= kHuge ? kHuge : 64;
    void* data = std::aligned_alloc(align, std::max(align, (bytes + align - 1) / align * align));
    if (!data) throw std::bad_alloc();
#ifdef MADV_HUGEPAGE
    if (bytes >= kHuge) madvise(data, bytes, MADV_HUGEPAGE);
#endif
    return data;
}

template <class T>
class Buffer {
  public:
    Buffer() = default;
    explicit Buffer(size_t size)
        : data_(static_cast<T*>(allocate(size * sizeof(T)))), size_(size) {}
    Buffer(Buffer&& other) noexcept
        : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}
    Buffer& operator=(Buffer&& other) noexcept {
        std::swap(data_, other.data_);
        std::swap(size_, other.size_);
        return *this;
    }
    ~Buffer() { std::free(data_); }

    T* data() const { return data_; }
    size_t size() const { return size_; }
    size_t bytes() const { return size_ * sizeof(T); }
    T& operator[](size_t i) const { return data_[i]; }

  private:
    T* data_ = nullptr;
    size_t size_ = 0;
};

}  // namespace metah
