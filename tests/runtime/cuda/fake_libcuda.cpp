// A libcuda.so.1 without a GPU: the calls of the CUDA driver's C interface that the search makes, with the simulator
// behind them, so that the real Python libraries can be run. METAH_SIMULATOR names the library with the kernels.
#include <dlfcn.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>

namespace {

enum { ok = 0, invalid_value = 1, out_of_memory = 2, not_initialized = 3, invalid_context = 201, not_found = 500,
       launch_failed = 719 };
constexpr uint64_t ROOM = 1ull << 28;

bool started = false;
int depth = 0;  // of the context stack
uint64_t used = 0;
int context;    // its address is the primary context
struct Kernel {
  std::string name;
};
using Launch = int (*)(unsigned, unsigned, unsigned, uint64_t, unsigned, void**, char*, size_t);

void* simulator() {
  static void* library = dlopen(std::getenv("METAH_SIMULATOR"), RTLD_NOW);
  return library;
}

}  // namespace

extern "C" {

int cuInit(unsigned) { return started = true, ok; }
int cuDriverGetVersion(int* version) { return *version = 13000, ok; }
int cuDeviceGetCount(int* count) { return *count = 1, started ? ok : not_initialized; }
int cuDeviceGet(int* device, int number) { return *device = number, number == 0 ? ok : invalid_value; }
int cuDeviceGetName(char* name, int length, int) { return std::snprintf(name, length, "NVIDIA Fake"), ok; }
int cuDeviceGetAttribute(int* value, int key, int) {
  *value = key == 75 ? 9 : key == 76 ? 0 : key == 16 ? 4 : 0;
  return ok;
}
int cuDevicePrimaryCtxRetain(void** out, int) { return *out = &context, ok; }
int cuDevicePrimaryCtxRelease_v2(int) { return ok; }
int cuCtxPushCurrent_v2(void* given) { return depth++, given == &context ? ok : invalid_context; }
int cuCtxPopCurrent_v2(void** out) { return *out = &context, --depth >= 0 ? ok : invalid_context; }
int cuCtxGetCurrent(void** out) { return *out = depth ? &context : nullptr, ok; }
int cuCtxGetDevice(int* device) { return *device = 0, ok; }
int cuCtxSynchronize() { return ok; }
int cuMemGetInfo_v2(size_t* free, size_t* total) {
  return *free = ROOM - used, *total = ROOM, depth ? ok : invalid_context;
}
int cuMemAlloc_v2(uint64_t* out, size_t size) {
  if (depth <= 0) return invalid_context;
  if (used + size > ROOM) return out_of_memory;
  char* memory = (char*)std::aligned_alloc(64, (size + 127) / 64 * 64);
  std::memcpy(memory, &size, sizeof size);  // its size before it
  uint64_t at = (uint64_t)(memory + 64);
  std::memset((void*)at, 0xEE, size);
  used += size;
  return *out = at, ok;
}
int cuMemFree_v2(uint64_t at) {
  if (depth <= 0) return invalid_context;
  void* memory = (void*)(at - 64);
  used -= *(size_t*)memory;
  std::free(memory);
  return ok;
}
int cuMemsetD8Async(uint64_t at, unsigned char value, size_t size, void*) {
  return std::memset((void*)at, value, size), depth ? ok : invalid_context;
}
int cuMemcpyHtoDAsync_v2(uint64_t to, const void* from, size_t size, void*) {
  return std::memcpy((void*)to, from, size), depth ? ok : invalid_context;
}
int cuMemcpyDtoHAsync_v2(void* to, uint64_t from, size_t size, void*) {
  return std::memcpy(to, (const void*)from, size), depth ? ok : invalid_context;
}
int cuModuleLoadData(void** out, const void* image) { return *out = (void*)image, depth ? ok : invalid_context; }
int cuModuleLoadDataEx(void** out, const void* image, unsigned, int*, void**) { return cuModuleLoadData(out, image); }
int cuModuleUnload(void*) { return ok; }
int cuModuleGetFunction(void** out, void*, const char* name) {
  if (!dlsym(simulator(), (std::string("shim_launch_") + name).c_str())) return not_found;
  return *out = new Kernel{name}, ok;
}
int cuLaunchKernel(void* kernel, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                   unsigned shared, void*, void** params, void** extra) {
  if (depth <= 0) return invalid_context;
  if (gz != 1 || by != 1 || bz != 1 || shared) return invalid_value;
  const std::string& name = ((Kernel*)kernel)->name;
  void* unpacked[16];
  if (!params) {  // pycuda: all arguments in one buffer, as (1, buffer, 2, address of its size, 0)
    auto sizes = (const unsigned char* (*)())dlsym(simulator(), ("shim_sizes_" + name).c_str());
    uint64_t at = 0, given = *(size_t*)extra[3];
    params = unpacked;
    for (const unsigned char* size = sizes(); *size; size++) {
      at = (at + *size - 1) / *size * *size;
      *params++ = (char*)extra[1] + at;
      at += *size;
    }
    if (at != given) return invalid_value;
    params = unpacked;
  }
  char error[256] = "";
  auto launch = (Launch)dlsym(simulator(), ("shim_launch_" + name).c_str());
  if (launch(gx, gy, bx, 1, 1, params, error, sizeof error)) return std::fprintf(stderr, "%s\n", error), launch_failed;
  return ok;
}
int cuStreamSynchronize(void*) { return depth ? ok : invalid_context; }
int cuEventCreate(void** out, unsigned) { return *out = &context, ok; }
int cuEventRecord(void*, void*) { return ok; }
int cuEventSynchronize(void*) { return ok; }
int cuEventElapsedTime(float* ms, void*, void*) { return *ms = 1.5f, ok; }
int cuEventElapsedTime_v2(float* ms, void*, void*) { return *ms = 1.5f, ok; }
int cuGetErrorString(int status, const char** text) {
  return *text = status == out_of_memory ? "out of memory" : "an error", ok;
}
int cuGetErrorName(int status, const char** text) { return cuGetErrorString(status, text); }

// The libraries ask for every function by name; they want the newest of its versions.
int cuGetProcAddress_v2(const char* name, void** out, int, uint64_t, int* found) {
  for (const char* suffix : {"_v2", ""}) {
    *out = dlsym(RTLD_DEFAULT, (std::string(name) + suffix).c_str());
    static Dl_info own, other;
    dladdr((void*)&cuInit, &own);
    if (*out && dladdr(*out, &other) && other.dli_fbase == own.dli_fbase) {
      if (found) *found = 0;
      return ok;
    }
  }
  *out = nullptr;
  if (found) *found = 1;
  return not_found;
}
int cuGetProcAddress(const char* name, void** out, int version, uint64_t flags) {
  return cuGetProcAddress_v2(name, out, version, flags, nullptr);
}

}
