// Elements of a model's dtype, computed with as FP32: alone, or eight at a time (16 bytes of FP16 or BF16, 32 of FP32).
#pragma once
#include "half.cuh"

struct Fp32 {
    typedef float Type;
    static __device__ __forceinline__ float load(float element) { return element; }
    static __device__ __forceinline__ float round(float value) { return value; }
};

struct Fp16 {
    typedef u16 Type;
    static __device__ __forceinline__ float load(u16 element) { return half_to_float(element); }
    static __device__ __forceinline__ u16 round(float value) { return float_to_half(value); }
};

struct Bf16 {
    typedef u16 Type;
    static __device__ __forceinline__ float load(u16 element) { return bf16_to_float(element); }
    static __device__ __forceinline__ u16 round(float value) { return float_to_bf16(value); }
};

// What is left of a value in the dtype.
template <class E>
__device__ __forceinline__ float rounded(float value) {
    return E::load(E::round(value));
}

// COUNT elements that lie together, in memory and in registers.
template <class E, int COUNT>
struct Elements {
    typename E::Type elements[COUNT];

    __device__ __forceinline__ void load_from(const typename E::Type* from) {
#pragma unroll
        for (int i = 0; i < COUNT; ++i) elements[i] = from[i];
    }

    __device__ __forceinline__ void store_to(typename E::Type* to) const {
#pragma unroll
        for (int i = 0; i < COUNT; ++i) to[i] = elements[i];
    }
};

// Eight are loaded and stored in pieces of 16 bytes, and are aligned to that.
template <class E>
struct Elements<E, 8> {
    static constexpr int PIECES = sizeof(typename E::Type) / 2;
    union {
        typename E::Type elements[8];
        uint4 pieces[PIECES];
    };

    __device__ __forceinline__ void load_from(const typename E::Type* from) {
#pragma unroll
        for (int i = 0; i < PIECES; ++i) pieces[i] = reinterpret_cast<const uint4*>(from)[i];
    }

    __device__ __forceinline__ void store_to(typename E::Type* to) const {
#pragma unroll
        for (int i = 0; i < PIECES; ++i) reinterpret_cast<uint4*>(to)[i] = pieces[i];
    }
};

// Elements read and written as FP32.
template <class E, int COUNT>
struct Pack : Elements<E, COUNT> {
    __device__ __forceinline__ float operator[](int i) const { return E::load(this->elements[i]); }
    __device__ __forceinline__ void set(int i, float value) { this->elements[i] = E::round(value); }
    __device__ __forceinline__ void store(typename E::Type* to) const { this->store_to(to); }

    static __device__ __forceinline__ Pack load(const typename E::Type* from) {
        Pack pack;
        pack.load_from(from);
        return pack;
    }

    static __device__ __forceinline__ Pack zero() {
        Pack pack;
#pragma unroll
        for (int i = 0; i < COUNT; ++i) pack.elements[i] = 0;
        return pack;
    }
};

// Whether all of these start on 16 bytes. A null pointer does.
__device__ __forceinline__ bool aligned(const void* a, const void* b = nullptr, const void* c = nullptr,
                                        const void* d = nullptr) {
    return ((u64(a) | u64(b) | u64(c) | u64(d)) & 15) == 0;
}
