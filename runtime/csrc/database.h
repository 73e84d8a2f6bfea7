// The codes that are searched: borrowed memory, one row a code. A row is a hash code, then perhaps
// a detail code.
#pragma once
#include <cstddef>
#include <cstdint>
#include <stdexcept>

namespace metah {

struct Kernels;

// The limits of a search; metah_runtime reads them from the native module.
constexpr size_t kMaxRows = UINT32_MAX - 1;  // a row number is an uint32, one is reserved
constexpr size_t kMaxWidth = 128;            // bytes that are compared, Database::whole_width
constexpr int kMaxThreads = 1024;

// The codes, or the file that holds them, were changed while they were searched.
struct CodesChanged : std::runtime_error {
    CodesChanged() : runtime_error("the codes were changed while they were searched") {}
};

struct Database {
    const uint8_t* codes = nullptr;    // (rows, stride), as on disk; never written, never copied
    const int64_t* ids = nullptr;      // (rows,) strictly ascending; null: the row number
    const uint8_t* removed = nullptr;  // (rows,) not 0 = not to be found; null: none
    size_t rows = 0;
    size_t alive = 0;   // rows that are not removed
    size_t width = 0;   // bytes of a hash code
    size_t detail = 0;  // bytes of a detail code
    size_t weight = 1;  // of the hash code's distance in the sum with the detail's
    const Kernels* kernels = nullptr;
    size_t stride() const { return width + detail; }
    const uint8_t* code(size_t row) const { return codes + row * stride(); }
    int bits() const { return static_cast<int>(width) * 8; }  // of a hash code
    // Bytes whose plain Hamming distance is weight times the hash code's plus the detail's.
    size_t whole_width() const { return weight * width + detail; }
    int64_t id(size_t row) const { return ids ? ids[row] : static_cast<int64_t>(row); }
    bool gone(size_t row) const { return removed && removed[row]; }
};

}  // namespace metah
