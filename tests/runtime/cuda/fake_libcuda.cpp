// A libcuda.so.1 without a GPU: the calls of the CUDA driver's C interface that the search makes, with the simulator
// behind them, so that the real Python libraries can be run. METAH_SIMULATOR names the library with the kernels.
#include <dlfcn.h>

#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <string>
#include <vector>

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
using Clock = std::chrono::steady_clock;
using Work = std::function<int()>;
struct Stream {
  bool recording = false;
  std::vector<Work> graph;
};

// Do it now, or keep it for the graph that the stream records.
int send(void* stream, const Work& work) {
  if (depth <= 0) return invalid_context;
  Stream* s = (Stream*)stream;
  if (!s || !s->recording) return work();
  s->graph.push_back(work);
  return ok;
}
using Launch = int (*)(unsigned, unsigned, unsigned, uint64_t, unsigned, const void*, char*, size_t);

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
  *value = key == 75 ? 9 : key == 76 ? 0 : key == 16 ? 4 : key == 38 ? 50 << 20 : 0;
  return ok;
}
int cuDeviceComputeCapability(int* major, int* minor, int) { return *major = 9, *minor = 0, ok; }
int cuDevicePrimaryCtxRetain(void** out, int) { return *out = &context, ok; }
int cuDevicePrimaryCtxRelease_v2(int) { return ok; }
int cuCtxPushCurrent_v2(void* given) { return depth++, given == &context ? ok : invalid_context; }
int cuCtxPopCurrent_v2(void** out) { return *out = &context, --depth >= 0 ? ok : invalid_context; }
int cuCtxGetCurrent(void** out) { return *out = depth ? &context : nullptr, ok; }
int cuCtxGetDevice(int* device) { return *device = 0, ok; }
int cuCtxSynchronize() { return ok; }
int cuDeviceTotalMem_v2(size_t* size, int) { return *size = ROOM, ok; }
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
int cuMemsetD8Async(uint64_t at, unsigned char value, size_t size, void* stream) {
  return send(stream, [=] { return std::memset((void*)at, value, size), ok; });
}
int cuMemcpyHtoDAsync_v2(uint64_t to, const void* from, size_t size, void* stream) {
  return send(stream, [=] { return std::memcpy((void*)to, from, size), ok; });
}
int cuMemcpyDtoHAsync_v2(void* to, uint64_t from, size_t size, void* stream) {
  return send(stream, [=] { return std::memcpy(to, (const void*)from, size), ok; });
}
int cuMemHostAlloc(void** out, size_t size, unsigned) { return *out = std::malloc(size), ok; }
int cuMemFreeHost(void* memory) { return std::free(memory), ok; }
int cuModuleLoadData(void** out, const void* image) { return *out = (void*)image, depth ? ok : invalid_context; }
int cuModuleLoadDataEx(void** out, const void* image, unsigned, int*, void**) { return cuModuleLoadData(out, image); }
int cuCtxDetach(void*) { return ok; }
int cuModuleUnload(void*) { return ok; }
int cuModuleGetFunction(void** out, void*, const char* name) {
  if (!dlsym(simulator(), (std::string("shim_launch_") + name).c_str())) return not_found;
  return *out = new Kernel{name}, ok;
}
int cuFuncSetBlockShape(void*, int, int, int) { return ok; }
int cuLaunchKernel(void* kernel, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                   unsigned shared, void* stream, void** params, void** extra) {
  if (gz != 1 || by != 1 || bz != 1 || shared) return invalid_value;
  const std::string name = ((Kernel*)kernel)->name;
  auto size = (unsigned (*)())dlsym(simulator(), ("shim_size_" + name).c_str());
  // The one parameter is copied now, as the driver does. pycuda gives a buffer: (1, buffer, 2, its size, 0).
  if (!params && size() != *(size_t*)extra[3]) return invalid_value;
  const char* given = (const char*)(params ? params[0] : extra[1]);
  std::vector<char> own(given, given + size());
  return send(stream, [=]() mutable {
    char error[256] = "";
    auto launch = (Launch)dlsym(simulator(), ("shim_launch_" + name).c_str());
    if (!launch(gx, gy, bx, 1, 1, own.data(), error, sizeof error)) return (int)ok;
    return std::fprintf(stderr, "%s\n", error), (int)launch_failed;
  });
}
int cuStreamCreate(void** out, unsigned) { return *out = new Stream, ok; }
int cuStreamDestroy_v2(void* stream) { return delete (Stream*)stream, ok; }
int cuStreamWaitEvent(void*, void*, unsigned) { return depth ? ok : invalid_context; }
int cuStreamBeginCapture_v2(void* stream, int) {
  if (!stream) return invalid_value;
  return ((Stream*)stream)->recording = true, ok;
}
int cuStreamEndCapture(void* stream, void** out) {
  Stream* s = (Stream*)stream;
  if (!s || !s->recording) return invalid_value;
  *out = new std::vector<Work>(s->graph);
  return s->graph.clear(), s->recording = false, ok;
}
int cuGraphInstantiateWithFlags(void** out, void* graph, uint64_t) {
  return *out = new std::vector<Work>(*(std::vector<Work>*)graph), ok;
}
int cuGraphDestroy(void* graph) { return delete (std::vector<Work>*)graph, ok; }
int cuGraphExecDestroy(void* graph) { return delete (std::vector<Work>*)graph, ok; }
int cuGraphLaunch(void* graph, void* stream) {
  if (!graph) return invalid_value;
  for (const Work& work : *(std::vector<Work>*)graph)
    if (int status = send(stream, work)) return status;
  return ok;
}
int cuStreamSynchronize(void*) { return depth ? ok : invalid_context; }
int cuEventCreate(void** out, unsigned) { return *out = new Clock::time_point, ok; }
int cuEventRecord(void* event, void*) { return *(Clock::time_point*)event = Clock::now(), ok; }
int cuEventSynchronize(void*) { return ok; }
int cuEventDestroy_v2(void* event) { return delete (Clock::time_point*)event, ok; }
int cuEventElapsedTime(float* ms, void* start, void* end) {
  std::chrono::duration<float, std::milli> time = *(Clock::time_point*)end - *(Clock::time_point*)start;
  return *ms = time.count(), ok;
}
int cuEventElapsedTime_v2(float* ms, void* start, void* end) { return cuEventElapsedTime(ms, start, end); }
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
