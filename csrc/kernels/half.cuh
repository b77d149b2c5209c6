// Types and conversions that NVRTC, which finds no CUDA headers, lacks; and programmatic dependent launch.
#pragma once

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

__device__ __forceinline__ float half_to_float(u16 half) {
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(half));
    return value;
}

// To the nearest, ties to even; beyond 65504 to infinity.
__device__ __forceinline__ u16 float_to_half(float value) {
    u16 half;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(half) : "f"(value));
    return half;
}

__device__ __forceinline__ float bf16_to_float(u16 bf16) { return __uint_as_float(u32(bf16) << 16); }

// To the nearest, ties to even.
__device__ __forceinline__ u16 float_to_bf16(float value) {
    u16 bf16;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bf16) : "f"(value));
    return bf16;
}

// Waits until the kernels before this one have finished and their writes are seen. A kernel that was launched to overlap with
// its predecessor calls this before it reads what another kernel wrote, and before it writes anything.
__device__ __forceinline__ void overlap_wait() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// Lets the next kernel begin its own preparations.
__device__ __forceinline__ void overlap_trigger() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;");
#endif
}
