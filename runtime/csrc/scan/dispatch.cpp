// Which kernels this process uses.
#include <cstdlib>
#include <new>
#include <stdexcept>
#include <string>

#include "scan/kernels.h"

namespace metah {

namespace {

struct Choice {
    const Kernels& kernels;
    bool (*runs_here)();
};

// Fastest first.
const Choice kChoices[] = {
#ifdef METAH_X86
    {avx512::kernels,
     [] {
#ifdef METAH_EMULATE_AVX512
         return true;
#else
         return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
                __builtin_cpu_supports("avx512vpopcntdq");
#endif
     }},
    {avx2::kernels,
     [] {
         return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("popcnt") &&
                __builtin_cpu_supports("bmi");
     }},
#endif
    {portable::kernels, [] { return true; }},
};

// A buffer that grows.
struct Scratch {
    unsigned char* data = nullptr;
    size_t size = 0;
    ~Scratch() { std::free(data); }
};

}  // namespace

unsigned char* scratch(size_t bytes) {
    thread_local Scratch buffer;
    if (buffer.size < bytes) {
        size_t size = (bytes + 4095) / 4096 * 4096;
        void* data = std::aligned_alloc(64, size);
        if (!data) throw std::bad_alloc();
        std::free(buffer.data);
        buffer.data = static_cast<unsigned char*>(data);
        buffer.size = size;
    }
    return buffer.data;
}

const Kernels& pick_kernels() {
    const char* wish = std::getenv("METAH_SIMD");
    const std::string name = wish ? wish : "";
    std::string here;
    for (const Choice& choice : kChoices) {
        const bool runs = choice.runs_here();
        if (runs && (name.empty() || name == choice.kernels.name)) return choice.kernels;
        if (!runs && name == choice.kernels.name)
            throw std::runtime_error("METAH_SIMD=" + name +
                                     ": this CPU lacks it; fix: unset METAH_SIMD");
        here += std::string(here.empty() ? "" : ", ") + choice.kernels.name;
    }
    throw std::runtime_error("METAH_SIMD must be one of " + here + ", got '" + name + "'");
}

}  // namespace metah
