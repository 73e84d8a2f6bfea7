// The C interface of the simulated device: memory, and two entries for each kernel (METAH_SHIM_ENTRY).
#pragma once
#include "cuda_shim.h"

extern "C" void* shim_alloc(uint64_t size) { return std::malloc(size ? size : 1); }
extern "C" void shim_free(void* at) { std::free(at); }

// Bytes of a kernel's one parameter.
template <class P>
constexpr unsigned shim_size(void (*)(P)) {
  return sizeof(P);
}

// 0, or 1 with the reason in `error`.
#define METAH_SHIM_ENTRY(name)                                                                                     \
  extern "C" int shim_launch_##name(unsigned x, unsigned y, unsigned threads, uint64_t seed, unsigned os_threads, \
                                    const void* params, char* error, size_t room) {                                 \
    std::string text = shim::launch_kernel(name, x, y, threads, seed, os_threads, params);                        \
    std::snprintf(error, room, "%s", text.c_str());                                                               \
    return !text.empty();                                                                                         \
  }                                                                                                               \
  extern "C" unsigned shim_size_##name() { return shim_size(name); }
