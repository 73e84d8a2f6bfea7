// The C interface of the simulated device: memory, and two entries for each kernel (METAH_SHIM_ENTRY).
#pragma once
#include "cuda_shim.h"

extern "C" void* shim_alloc(uint64_t size) { return std::malloc(size ? size : 1); }
extern "C" void shim_free(void* at) { std::free(at); }

// Bytes of each parameter of a kernel, then 0.
template <class... A>
const unsigned char* shim_sizes(void (*)(A...)) {
  static const unsigned char sizes[] = {sizeof(A)..., 0};
  return sizes;
}

// 0, or 1 with the reason in `error`.
#define METAH_SHIM_ENTRY(name)                                                                                     \
  extern "C" int shim_launch_##name(unsigned x, unsigned y, unsigned threads, uint64_t seed, unsigned os_threads, \
                                    void** arguments, char* error, size_t room) {                                 \
    std::string text = shim::launch_kernel(name, x, y, threads, seed, os_threads, arguments);                     \
    std::snprintf(error, room, "%s", text.c_str());                                                               \
    return !text.empty();                                                                                         \
  }                                                                                                               \
  extern "C" const unsigned char* shim_sizes_##name() { return shim_sizes(name); }
