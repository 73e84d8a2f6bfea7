// Rates that decide the design, in a few seconds: nvcc -O3 -gencode=arch=compute_90a,code=sm_90a
// rates.cu -o rates
#include <cuda_runtime.h>
#include <cstdint>
#include <cstdio>
#define CHECK(x)                                                                               \
    do {                                                                                       \
        cudaError_t error_ = (x);                                                              \
        if (error_) {                                                                          \
            printf("{\"failed\": \"%s\", \"why\": \"%s\"}\n", #x, cudaGetErrorString(error_)); \
            return 1;                                                                          \
        }                                                                                      \
    } while (0)
constexpr int LOOPS = 2000;

__device__ __forceinline__ void bmma(int (&d)[4], const int (&a)[2], int b) {
    asm volatile(
        "mma.sync.aligned.m16n8k128.row.col.s32.b1.b1.s32.and.popc {%0,%1,%2,%3}, {%4,%5}, {%6}, "
        "{%0,%1,%2,%3};"
        : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(b));
}
__device__ __forceinline__ void bmma2(int (&d)[4], const int (&a)[4], const int (&b)[2]) {
    asm volatile(
        "mma.sync.aligned.m16n8k256.row.col.s32.b1.b1.s32.and.popc {%0,%1,%2,%3}, {%4,%5,%6,%7}, "
        "{%8,%9}, {%0,%1,%2,%3};"
        : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
template <int K>
__global__ void k_bmma(int* out, long long* t) {
    int d[8][4], a[8][4], b[2] = {(int)threadIdx.x * 7, (int)threadIdx.x * 13};
    for (int i = 0; i < 8; i++)
        for (int j = 0; j < 4; j++) d[i][j] = 0, a[i][j] = threadIdx.x * (i * 4 + j + 3);
    __syncthreads();
    long long s = clock64();
    for (int n = 0; n < LOOPS; n++)
#pragma unroll
        for (int i = 0; i < 8; i++) {
            if constexpr (K == 128) {
                int two[2] = {a[i][0], a[i][1]};
                bmma(d[i], two, b[0]);
            } else
                bmma2(d[i], a[i], b);
        }
    __syncthreads();
    if (threadIdx.x == 0) t[blockIdx.x] = clock64() - s;
    int x = 0;
    for (int i = 0; i < 8; i++)
        for (int j = 0; j < 4; j++) x ^= d[i][j];
    out[blockIdx.x * blockDim.x + threadIdx.x] = x;
}
enum { POPC, LOP3, MIN3, MIN2, MIN16 };
template <int OP>
__global__ void k_alu(int* out, long long* t) {
    int x[8];
    for (int i = 0; i < 8; i++) x[i] = threadIdx.x * (i + 77);
    int y = threadIdx.x * 99, z = threadIdx.x * 3 + 1;
    __syncthreads();
    long long s = clock64();
    for (int n = 0; n < LOOPS; n++)
#pragma unroll
        for (int i = 0; i < 8; i++) {
            if constexpr (OP == POPC) asm volatile("popc.b32 %0, %0;" : "+r"(x[i]));
            if constexpr (OP == LOP3)
                asm volatile("lop3.b32 %0, %0, %1, %2, 0x96;" : "+r"(x[i]) : "r"(y), "r"(z));
            if constexpr (OP == MIN3)
                asm volatile("{.reg .s32 q; min.s32 q, %0, %1; min.s32 %0, q, %2;}"
                             : "+r"(x[i])
                             : "r"(y + n), "r"(z));
            if constexpr (OP == MIN2) asm volatile("min.s32 %0, %0, %1;" : "+r"(x[i]) : "r"(y + n));
            if constexpr (OP == MIN16) x[i] = __vimin3_s16x2(x[i], y + n, z);
        }
    __syncthreads();
    if (threadIdx.x == 0) t[blockIdx.x] = clock64() - s;
    int r = 0;
    for (int i = 0; i < 8; i++) r ^= x[i];
    out[blockIdx.x * blockDim.x + threadIdx.x] = r;
}
// The shape of the scan's hot loop: 8 products, 16 three-way minima (MIN) or ORs, no memory.
template <int MIN>
__global__ void __launch_bounds__(256, 3) k_mix(int* out, long long* t) {
    int a[8][2], b = threadIdx.x * 7, c[4] = {-1, -2, -1, -2}, acc = 0, bcc = 0;
    for (int i = 0; i < 8; i++) a[i][0] = threadIdx.x * (i + 3), a[i][1] = threadIdx.x * (i + 31);
    __syncthreads();
    long long s = clock64();
    for (int n = 0; n < LOOPS / 4; n++) {
#pragma unroll
        for (int i = 0; i < 8; i++) {
            int d[4];
            asm volatile(
                "mma.sync.aligned.m16n8k128.row.col.s32.b1.b1.s32.and.popc {%0,%1,%2,%3}, {%4,%5}, "
                "{%6}, {%7,%8,%9,%10};"
                : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
                : "r"(a[i][0]), "r"(a[i][1]), "r"(b), "r"(c[0]), "r"(c[1]), "r"(c[2]), "r"(c[3]));
            if constexpr (MIN)
                acc = min(acc, min(d[0], d[2])), bcc = min(bcc, min(d[1], d[3]));
            else
                acc |= d[0] | d[1], bcc |= d[2] | d[3];
        }
        b += 13;
    }
    __syncthreads();
    if (threadIdx.x == 0) t[blockIdx.x] = clock64() - s;
    out[blockIdx.x * blockDim.x + threadIdx.x] = acc ^ bcc;
}
#define R8(x, o)                                                                                \
    "+r"(x[o]), "+r"(x[o + 1]), "+r"(x[o + 2]), "+r"(x[o + 3]), "+r"(x[o + 4]), "+r"(x[o + 5]), \
        "+r"(x[o + 6]), "+r"(x[o + 7])
#define R64(x) R8(x, 0), R8(x, 8), R8(x, 16), R8(x, 24), R8(x, 32), R8(x, 40), R8(x, 48), R8(x, 56)
#define P64                                                                                        \
    "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%" \
    "25,%26,%27,%28,%29,%30,%31,%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%" \
    "48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63}"
enum { GB1, GS8, GE4 };
template <int KIND>
__global__ void __launch_bounds__(128) k_wgmma(int* out, long long* t) {  // m64n128
    __shared__ __align__(1024) uint32_t memory[8192];
    for (int i = threadIdx.x; i < 8192; i += 128) memory[i] = i * 2654435761u & 0x38383838u;
    asm volatile("fence.proxy.async.shared::cta;");
    __syncthreads();
    uint64_t base = (uint32_t)__cvta_generic_to_shared(memory) & 0x3ffff;
    uint64_t a = base >> 4 | 8ull << 16 | 16ull << 32,
             b = (base + 8192) >> 4 | 8ull << 16 | 16ull << 32;
    int d[64];
    for (int i = 0; i < 64; i++) d[i] = 0;
    __syncthreads();
    long long s = clock64();
    for (int n = 0; n < LOOPS / 4; n++) {
        asm volatile("wgmma.fence.sync.aligned;");
#pragma unroll
        for (int i = 0; i < 4; i++) {
            if constexpr (KIND == GB1)
                asm volatile("wgmma.mma_async.sync.aligned.m64n128k256.s32.b1.b1.and.popc " P64
                             ", %64, %65, 1;"
                             : R64(d)
                             : "l"(a), "l"(b));
            if constexpr (KIND == GS8)
                asm volatile("wgmma.mma_async.sync.aligned.m64n128k32.s32.s8.s8 " P64
                             ", %64, %65, 1;"
                             : R64(d)
                             : "l"(a), "l"(b));
            if constexpr (KIND == GE4)
                asm volatile("wgmma.mma_async.sync.aligned.m64n128k32.f32.e4m3.e4m3 " P64
                             ", %64, %65, 1, 1, 1;"
                             : R64(d)
                             : "l"(a), "l"(b));
        }
        asm volatile("wgmma.commit_group.sync.aligned;");
        asm volatile("wgmma.wait_group.sync.aligned 0;");
    }
    __syncthreads();
    if (threadIdx.x == 0) t[blockIdx.x] = clock64() - s;
    int r = 0;
    for (int i = 0; i < 64; i++) r ^= d[i];
    out[blockIdx.x * blockDim.x + threadIdx.x] = r;
}
__global__ void __launch_bounds__(256)
    k_read(const uint4* __restrict__ p, uint64_t n, int* out) {  // 64 bytes a thread, as scan_w2
    uint64_t i = (uint64_t)blockIdx.x * 1024 + threadIdx.x;
    uint4 v[4];
    int x = 0;
#pragma unroll
    for (int j = 0; j < 4; j++)
        v[j] = i + j * 256 < n ? __ldcs(p + i + j * 256) : uint4{0, 0, 0, 0};
#pragma unroll
    for (int j = 0; j < 4; j++) x |= v[j].x & v[j].y & v[j].z & v[j].w;
    if (x == 0x12345678) out[0] = x;
}
__global__ void k_empty() {}
template <class F>
float time_ms(F f, int n) {
    cudaEvent_t a, b;
    cudaEventCreate(&a);
    cudaEventCreate(&b);
    f();
    cudaEventRecord(a);
    for (int i = 0; i < n; i++) f();
    cudaEventRecord(b);
    cudaEventSynchronize(b);
    float ms;
    cudaEventElapsedTime(&ms, a, b);
    return ms / n;
}
int main() {
    cudaDeviceProp p;
    CHECK(cudaGetDeviceProperties(&p, 0));
    int sms = p.multiProcessorCount;
    int* out;
    long long *t, h[1024];
    CHECK(cudaMalloc(&out, 4 << 20));
    CHECK(cudaMalloc(&t, 8 * 1024));
    printf("{\"card\": \"%s\", \"sms\": %d, \"l2\": %d}\n", p.name, sms, p.l2CacheSize);
    auto show = [&](const char* name, int blocks_sm, double per_block, const char* unit) {
        if (cudaError_t e = cudaDeviceSynchronize()) {
            printf("{\"rate\": \"%s\", \"failed\": \"%s\"}\n", name, cudaGetErrorString(e));
            fflush(stdout);
            return;
        }
        cudaMemcpy(h, t, 8 * sms * blocks_sm, cudaMemcpyDeviceToHost);
        double worst = 0;
        for (int i = 0; i < sms * blocks_sm; i++) worst = h[i] > worst ? h[i] : worst;
        printf("{\"rate\": \"%s\", \"per_clock_and_sm\": %.2f, \"unit\": \"%s\"}\n", name,
               per_block * blocks_sm / worst, unit);
        fflush(stdout);
    };
#define RUN(kernel, blocks, threads, work, unit) \
    kernel<<<sms * blocks, threads>>>(out, t);   \
    show(#kernel, blocks, work, unit)
    for (int i = 0; i < 2; i++) {  // the first time warms the clocks up
        RUN(k_bmma<128>, 2, 256, 8.0 * 8 * LOOPS * 128, "pairs (k128)");
        RUN(k_bmma<256>, 2, 256, 8.0 * 8 * LOOPS * 128, "pairs (k256)");
    }
    RUN(k_mix<1>, 3, 256, 8.0 * 8 * (LOOPS / 4) * 128, "pairs, k128 + min3");
    RUN(k_mix<0>, 3, 256, 8.0 * 8 * (LOOPS / 4) * 128, "pairs, k128 + or");
    RUN(k_alu<POPC>, 4, 256, 256.0 * 8 * LOOPS, "lanes");
    RUN(k_alu<LOP3>, 4, 256, 256.0 * 8 * LOOPS, "lanes");
    RUN(k_alu<MIN3>, 4, 256, 256.0 * 8 * LOOPS, "lanes");
    RUN(k_alu<MIN2>, 4, 256, 256.0 * 8 * LOOPS, "lanes");
    RUN(k_alu<MIN16>, 4, 256, 256.0 * 8 * LOOPS, "lanes");
    RUN(k_wgmma<GB1>, 3, 128, 4.0 * (LOOPS / 4) * 64 * 128, "pairs (wgmma b1 k256)");
    RUN(k_wgmma<GS8>, 3, 128, 4.0 * (LOOPS / 4) * 64 * 128 / 2,
        "pairs (wgmma s8, 64 bits = 2 x k32)");
    RUN(k_wgmma<GE4>, 3, 128, 4.0 * (LOOPS / 4) * 64 * 128 / 2,
        "pairs (wgmma e4m3, 64 bits = 2 x k32)");
    uint4* big;
    CHECK(cudaMalloc(&big, 8ull << 30));
    CHECK(cudaMemset(big, 0x5a, 8ull << 30));
    for (uint64_t mb : {40, 80, 800, 8000}) {
        uint64_t n = mb * 1000000 / 16, copies = mb <= 80 ? 16 : 1;
        float warm = time_ms([&] { k_read<<<(n + 1023) / 1024, 256>>>(big, n, out); }, 20);
        uint64_t turn = 0;
        float cold = time_ms(
            [&] { k_read<<<(n + 1023) / 1024, 256>>>(big + (turn++ % copies) * n, n, out); }, 32);
        printf("{\"read_mb\": %d, \"same_buffer_TBs\": %.2f, \"rotating_TBs\": %.2f}\n", (int)mb,
               mb / warm / 1e3, mb / cold / 1e3);
        fflush(stdout);
    }
    cudaStream_t s;
    cudaStreamCreateWithFlags(&s, cudaStreamNonBlocking);
    cudaGraph_t g;
    cudaGraphExec_t e;
    CHECK(cudaStreamBeginCapture(s, cudaStreamCaptureModeThreadLocal));
    for (int i = 0; i < 100; i++) k_empty<<<1, 32, 0, s>>>();
    CHECK(cudaStreamEndCapture(s, &g));
    CHECK(cudaGraphInstantiate(&e, g, 0));
    float ms = time_ms([&] { cudaGraphLaunch(e, 0); }, 20);
    printf("{\"graph_us_per_empty_kernel\": %.2f}\n", 10 * ms);
    CHECK(cudaDeviceSynchronize());
}
