// CRC-32C: three interleaved hardware streams (the instruction has a latency of 3 cycles and a
// throughput of 1), joined by tables that append zeros; slicing by 8 where there is no instruction.
#include "system/crc32c.h"

#include <array>
#include <cstring>

#if defined(__x86_64__)
#include <nmmintrin.h>
#define METAH_CRC_TARGET __attribute__((target("sse4.2")))
#elif defined(__aarch64__) && defined(__linux__)
#include <arm_acle.h>
#include <sys/auxv.h>
#define METAH_CRC_TARGET __attribute__((target("+crc")))
#endif

namespace metah {
namespace {

constexpr uint32_t kPolynomial = 0x82F63B78u;
using Table = std::array<uint32_t, 256>;

constexpr std::array<Table, 8> make_slices() {
    std::array<Table, 8> slices{};
    for (uint32_t byte = 0; byte < 256; ++byte) {
        uint32_t crc = byte;
        for (int bit = 0; bit < 8; ++bit) crc = (crc >> 1) ^ ((crc & 1) ? kPolynomial : 0);
        slices[0][byte] = crc;
    }
    for (size_t slice = 1; slice < 8; ++slice) {
        for (size_t byte = 0; byte < 256; ++byte) {
            const uint32_t before = slices[slice - 1][byte];
            slices[slice][byte] = (before >> 8) ^ slices[0][before & 255];
        }
    }
    return slices;
}

constexpr std::array<Table, 8> kSlices = make_slices();

uint64_t load64(const uint8_t* data) {
    uint64_t word;
    std::memcpy(&word, data, 8);
    return word;
}

uint32_t raw_portable(uint32_t crc, const uint8_t* data, size_t length) {
    for (; length >= 8; data += 8, length -= 8) {
        uint32_t low = crc;
        low ^= uint32_t(data[0]) | uint32_t(data[1]) << 8 | uint32_t(data[2]) << 16 |
               uint32_t(data[3]) << 24;
        crc = kSlices[7][low & 255] ^ kSlices[6][(low >> 8) & 255] ^ kSlices[5][(low >> 16) & 255] ^
              kSlices[4][low >> 24] ^ kSlices[3][data[4]] ^ kSlices[2][data[5]] ^
              kSlices[1][data[6]] ^ kSlices[0][data[7]];
    }
    for (; length; ++data, --length) crc = (crc >> 8) ^ kSlices[0][(crc ^ *data) & 255];
    return crc;
}

#ifdef METAH_CRC_TARGET

#if defined(__x86_64__)
METAH_CRC_TARGET inline uint64_t step64(uint64_t crc, uint64_t word) {
    return _mm_crc32_u64(crc, word);
}
METAH_CRC_TARGET inline uint64_t step8(uint64_t crc, uint8_t byte) {
    return _mm_crc32_u8(uint32_t(crc), byte);
}
bool have_instruction() { return __builtin_cpu_supports("sse4.2"); }
constexpr const char* kHardware = "sse4.2";
#else
METAH_CRC_TARGET inline uint64_t step64(uint64_t crc, uint64_t word) {
    return __crc32cd(uint32_t(crc), word);
}
METAH_CRC_TARGET inline uint64_t step8(uint64_t crc, uint8_t byte) {
    return __crc32cb(uint32_t(crc), byte);
}
bool have_instruction() { return getauxval(AT_HWCAP) & (1u << 7); }  // HWCAP_CRC32
constexpr const char* kHardware = "armv8";
#endif

// Appending `kStride` zero bytes to a stream is linear in its 32-bit state: four table look-ups.
template <size_t kStride>
struct Shift {
    std::array<Table, 4> tables{};
    constexpr Shift() {
        std::array<uint32_t, 32> image{};
        for (size_t bit = 0; bit < 32; ++bit) {
            uint32_t crc = uint32_t(1) << bit;
            for (size_t zero = 0; zero < kStride; ++zero) crc = (crc >> 8) ^ kSlices[0][crc & 255];
            image[bit] = crc;
        }
        for (size_t part = 0; part < 4; ++part) {
            for (size_t byte = 0; byte < 256; ++byte) {
                uint32_t crc = 0;
                for (size_t bit = 0; bit < 8; ++bit) {
                    if (byte >> bit & 1) crc ^= image[part * 8 + bit];
                }
                tables[part][byte] = crc;
            }
        }
    }
    uint32_t operator()(uint32_t crc) const {
        return tables[0][crc & 255] ^ tables[1][(crc >> 8) & 255] ^ tables[2][(crc >> 16) & 255] ^
               tables[3][crc >> 24];
    }
};

template <size_t kStride>
METAH_CRC_TARGET void interleaved(uint64_t& crc, const uint8_t*& data, size_t& length) {
    static constexpr Shift<kStride> shift;
    while (length >= 3 * kStride) {
        uint64_t a = crc, b = 0, c = 0;
        for (size_t at = 0; at < kStride; at += 8) {
            a = step64(a, load64(data + at));
            b = step64(b, load64(data + kStride + at));
            c = step64(c, load64(data + 2 * kStride + at));
        }
        crc = shift(shift(uint32_t(a)) ^ uint32_t(b)) ^ uint32_t(c);
        data += 3 * kStride;
        length -= 3 * kStride;
    }
}

METAH_CRC_TARGET uint32_t raw_hardware(uint32_t start, const uint8_t* data, size_t length) {
    uint64_t crc = start;
    interleaved<4096>(crc, data, length);
    interleaved<256>(crc, data, length);
    for (; length >= 8; data += 8, length -= 8) crc = step64(crc, load64(data));
    for (; length; ++data, --length) crc = step8(crc, *data);
    return uint32_t(crc);
}

const bool kHaveInstruction = have_instruction();

#endif  // METAH_CRC_TARGET

}  // namespace

uint32_t crc32c_portable(uint32_t crc, const void* data, size_t length) {
    return ~raw_portable(~crc, static_cast<const uint8_t*>(data), length);
}

uint32_t crc32c(uint32_t crc, const void* data, size_t length) {
#ifdef METAH_CRC_TARGET
    if (kHaveInstruction) return ~raw_hardware(~crc, static_cast<const uint8_t*>(data), length);
#endif
    return crc32c_portable(crc, data, length);
}

void crc32c_blocks(const void* data, size_t length, size_t block, uint32_t* out) {
    const auto* bytes = static_cast<const uint8_t*>(data);
    for (size_t at = 0; at < length; at += block) {
        *out++ = crc32c(0, bytes + at, length - at < block ? length - at : block);
    }
}

const char* crc32c_backend() {
#ifdef METAH_CRC_TARGET
    if (kHaveInstruction) return kHardware;
#endif
    return "portable";
}

}  // namespace metah
