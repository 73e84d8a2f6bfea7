// Which kernels this process uses.
#include <cstdlib>
#include <new>
#include <stdexcept>
#include <string>

#include "kernel.h"

namespace metah {

void scan_portable(const Scan&);
void probe_portable(const Probe&);
void tally_portable(const Scan&, uint32_t*);
int64_t* drain_portable(uint64_t*, size_t, int64_t*, int64_t*);
void scan_avx2(const Scan&);
void probe_avx2(const Probe&);
void tally_avx2(const Scan&, uint32_t*);
int64_t* drain_avx2(uint64_t*, size_t, int64_t*, int64_t*);
void scan_avx512(const Scan&);
void probe_avx512(const Probe&);
void tally_avx512(const Scan&, uint32_t*);
int64_t* drain_avx512(uint64_t*, size_t, int64_t*, int64_t*);

namespace {

struct Choice {
    Kernels kernels;
    bool (*runs_here)();
};

// Fastest first.
const Choice kChoices[] = {
#ifdef METAH_X86
    {{"avx512", scan_avx512, probe_avx512, tally_avx512, drain_avx512},
     [] {
#ifdef METAH_EMULATE_AVX512
         return true;
#else
         return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
                __builtin_cpu_supports("avx512vpopcntdq");
#endif
     }},
    {{"avx2", scan_avx2, probe_avx2, tally_avx2, drain_avx2},
     [] {
         return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("popcnt") &&
                __builtin_cpu_supports("bmi");
     }},
#endif
    {{"portable", scan_portable, probe_portable, tally_portable, drain_portable}, [] { return true; }},
};

struct Buffer {
    unsigned char* data = nullptr;
    size_t size = 0;
    ~Buffer() { std::free(data); }
};

}  // namespace

unsigned char* scratch(size_t bytes) {
    thread_local Buffer buffer;
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
