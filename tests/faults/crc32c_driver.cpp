// Runs the checksum under the sanitizers over buffers that end exactly where the memory does.
#include "system/crc32c.h"

#include <cstdio>
#include <cstdlib>
#include <memory>
#include <vector>

int main() {
    for (size_t length : {0, 1, 7, 8, 9, 255, 767, 768, 769, 12287, 12288, 12289, 50001}) {
        for (size_t start = 0; start < 9; ++start) {
            std::unique_ptr<unsigned char[]> data(new unsigned char[start + length]);
            for (size_t i = 0; i < start + length; ++i) data[i] = static_cast<unsigned char>(i * 131 + start);
            const unsigned char* begin = data.get() + start;
            const uint32_t whole = metah::crc32c(0, begin, length);
            if (whole != metah::crc32c_portable(0, begin, length)) return std::puts("forms differ"), 1;
            const size_t block = 1 + length / 3;
            std::vector<uint32_t> sums((length + block - 1) / block);
            metah::crc32c_blocks(begin, length, block, sums.data());
            uint32_t joined = 0;
            for (size_t at = 0; at < length; at += block) {
                const size_t part = length - at < block ? length - at : block;
                if (sums[at / block] != metah::crc32c_portable(0, begin + at, part)) return std::puts("blocks differ"), 1;
                joined = metah::crc32c(joined, begin + at, part);
            }
            if (joined != whole) return std::puts("parts differ"), 1;
        }
    }
    return 0;
}
