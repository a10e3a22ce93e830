// In front of every CUDA source of the project: types, conversions, sums over a block.
//
// STORAGE and REAL come from the compiler's options (autograd/kernels.py):
//   T     how numbers lie in memory: float, __half, __nv_bfloat16, or double in gradient checks
//   real  what they are calculated in: float, or double if T is
// NVRTC compiles this, nvcc does, and with tests/cuda_host/cuda_host.h in front of it a C++ compiler.
#ifdef __CUDACC__
#include <cuda_fp16.h>
#include <cuda_bf16.h>
#define DYNAMIC_SHARED(type, name) \
    extern __shared__ __align__(16) unsigned char name##_bytes[]; \
    type* name = reinterpret_cast<type*>(name##_bytes)
#define DEVICE __device__ __forceinline__
DEVICE float load(const __nv_bfloat16* p, size_t index) { return __bfloat162float(p[index]); }
DEVICE void store(__nv_bfloat16* p, size_t index, float value) { p[index] = __float2bfloat16_rn(value); }
#endif

typedef STORAGE T;
typedef REAL real;

// p[index] as a number to calculate with, and back again, rounded once to the nearest.
DEVICE float load(const __half* p, size_t index) { return __half2float(p[index]); }
DEVICE float load(const float* p, size_t index) { return p[index]; }
DEVICE double load(const double* p, size_t index) { return p[index]; }
DEVICE void store(__half* p, size_t index, float value) { p[index] = __float2half_rn(value); }
DEVICE void store(float* p, size_t index, float value) { p[index] = value; }
DEVICE void store(double* p, size_t index, double value) { p[index] = value; }

// 16 bytes of T, on an address that is a multiple of 16: the widest single access that there is to memory.
#define PACK int(16 / sizeof(T))
struct alignas(16) Pack {
    T at[PACK];
};

const int WARP = 32;
const unsigned ALL_LANES = 0xffffffffu;

// Sum and maximum of `value` over the lanes of a warp; every lane receives it.
DEVICE real warp_sum(real value) {
    for (int lanes = WARP / 2; lanes > 0; lanes /= 2) value += __shfl_xor_sync(ALL_LANES, value, lanes);
    return value;
}

DEVICE real warp_max(real value) {
    for (int lanes = WARP / 2; lanes > 0; lanes /= 2) {
        real other = __shfl_xor_sync(ALL_LANES, value, lanes);
        value = other > value ? other : value;
    }
    return value;
}

// The same over a block of whole warps, at most 32 of them; every thread must call it, and receives it. The
// order of the sums is that of the threads: the same bits at every run. N sums are taken side by side, in place.
template <int N>
DEVICE void block_sums(real (&values)[N]) {
    __shared__ real of_warps[N][WARP];
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, warps = blockDim.x / WARP;
    for (int n = 0; n < N; n++) values[n] = warp_sum(values[n]);
    __syncthreads();  // the sums of the call before have been read
    if (lane == 0)
        for (int n = 0; n < N; n++) of_warps[n][warp] = values[n];
    __syncthreads();
    for (int n = 0; n < N; n++) values[n] = warp_sum(lane < warps ? of_warps[n][lane] : real(0));
}

DEVICE real block_sum(real value) {
    real values[1] = {value};
    block_sums(values);
    return values[0];
}

DEVICE real block_max(real value) {
    __shared__ real of_warps[WARP];
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, warps = blockDim.x / WARP;
    value = warp_max(value);
    __syncthreads();
    if (lane == 0) of_warps[warp] = value;
    __syncthreads();
    return warp_max(of_warps[lane < warps ? lane : 0]);
}
