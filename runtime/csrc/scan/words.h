// Shared by the kernels of all instruction sets. Each is compiled with its own flags, so everything
// here lives in the namespace METAH_ISA: the linker must never mix the copies.
#pragma once
#include <cstdint>
#include <cstring>

#include "scan/inline.h"
#include "scan/kernels.h"

namespace metah {
namespace METAH_ISA {

// Cuts aligned arrays from one buffer.
struct Carve {
    unsigned char* at;
    template <class T>
    INLINE T* take(size_t n) {
        T* out = reinterpret_cast<T*>(at);
        at += (n * sizeof(T) + 63) / 64 * 64;
        return out;
    }
};

// Asks for the codes that are read some time after the `bytes` at `codes`: the hardware alone does
// not keep enough lines on their way to fill the memory bus. May reach beyond the end, which is
// harmless.
INLINE void prefetch_ahead(const uint8_t* codes, size_t bytes) {
    constexpr size_t kAhead = 16 << 10;
    for (size_t at = 0; at < bytes; at += 64) __builtin_prefetch(codes + kAhead + at);
}

// Byte 8w.. of a row as a little-endian word, zeros past the row's end. Reads inside [row, end).
INLINE uint64_t load_word(const uint8_t* row, size_t width, size_t w, const uint8_t* end) {
    uint64_t x = 0;
    size_t at = 8 * w;
    if (at + 8 <= width) {
        std::memcpy(&x, row + at, 8);
        return x;
    }
    if (width >= 8) {
        std::memcpy(&x, row + width - 8, 8);
        return x >> 8 * (at + 8 - width);
    }
    if (row + 8 <= end) {
        std::memcpy(&x, row, 8);
        return x & ((uint64_t{1} << 8 * width) - 1);
    }
    for (size_t i = 0; i < width; ++i) x |= static_cast<uint64_t>(row[i]) << 8 * i;
    return x;
}

INLINE uint32_t row_distance(const uint8_t* row, const uint64_t* query, size_t width,
                             const uint8_t* end) {
    uint32_t sum = 0;
    for (size_t w = 0; w < (width + 7) / 8; ++w)
        sum += Simd::popcount(load_word(row, width, w, end) ^ query[w]);
    return sum;
}

}  // namespace METAH_ISA
}  // namespace metah
