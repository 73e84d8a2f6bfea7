// The codes that are searched: borrowed memory, one row of `width` bytes a code.
#pragma once
#include <cstddef>
#include <cstdint>
#include <stdexcept>

namespace metah {

struct Kernels;

// The limits of a search; metah_runtime reads them from the native module.
constexpr size_t kMaxRows = UINT32_MAX - 1;  // a row number is an uint32, one is reserved
constexpr size_t kMaxWidth = 128;            // bytes of a code
constexpr int kMaxThreads = 1024;

// The codes, or the file that holds them, were changed while they were searched.
struct CodesChanged : std::runtime_error {
    CodesChanged() : runtime_error("the codes were changed while they were searched") {}
};

struct Database {
    const uint8_t* codes = nullptr;    // (rows, width), as on disk; never written, never copied
    const int64_t* ids = nullptr;      // (rows,) strictly ascending; null: the row number
    const uint8_t* removed = nullptr;  // (rows,) not 0 = not to be found; null: none
    size_t rows = 0;
    size_t alive = 0;  // rows that are not removed
    size_t width = 0;  // bytes of a code
    const Kernels* kernels = nullptr;
    int bits() const { return static_cast<int>(width) * 8; }
    int64_t id(size_t row) const { return ids ? ids[row] : static_cast<int64_t>(row); }
    bool gone(size_t row) const { return removed && removed[row]; }
};

}  // namespace metah
