// CRC-32C (Castagnoli, reflected polynomial 0x82F63B78, as in RFC 3720): the checksum of the index.
#pragma once
#include <cstddef>
#include <cstdint>

namespace metah {

// Continue `crc` (0 at the start) over `length` bytes.
uint32_t crc32c(uint32_t crc, const void* data, size_t length);

// One checksum for each block of `block` bytes; the last block may be shorter.
// `out` has room for ceil(length / block) values.
void crc32c_blocks(const void* data, size_t length, size_t block, uint32_t* out);

// The portable form, for tests: equal to crc32c on every machine.
uint32_t crc32c_portable(uint32_t crc, const void* data, size_t length);

// Name of the form that crc32c uses here: "sse4.2", "armv8" or "portable".
const char* crc32c_backend();

}  // namespace metah
