// out = silu(gate) * up, from one row that holds both. silu is rounded to the dtype before it is multiplied, as the tensor
// operators do.
#include "element.cuh"

template <class E, int COUNT>
__device__ __forceinline__ void swiglu_pack(const typename E::Type* gate, const typename E::Type* up,
                                            typename E::Type* out) {
    typedef Pack<E, COUNT> P;
    P pack = P::load(gate);
    const P factor = P::load(up);
#pragma unroll
    for (int i = 0; i < COUNT; ++i) {
        const float x = pack[i];
        pack.set(i, rounded<E>(x / (1.0f + expf(-x))) * factor[i]);
    }
    pack.store(out);
}

// Eight elements a thread along x where rows allow it, else the threads share the row singly; one row in y.
template <class E>
__device__ __forceinline__ void swiglu(const typename E::Type* gate_up,  // [rows, 2 * width]: gate, then up
                                       typename E::Type* out,            // [rows, width]
                                       int width) {
    const typename E::Type* gate = gate_up + size_t(blockIdx.y) * 2 * width;
    out += size_t(blockIdx.y) * width;
    const int first = blockIdx.x * blockDim.x + threadIdx.x, step = gridDim.x * blockDim.x;
    overlap_wait();
    overlap_trigger();
    if (width % 8 == 0 && aligned(gate_up, out)) {
        for (int i = first * 8; i < width; i += step * 8) swiglu_pack<E, 8>(gate + i, gate + width + i, out + i);
    } else {
        for (int i = first; i < width; i += step) swiglu_pack<E, 1>(gate + i, gate + width + i, out + i);
    }
}

#define SWIGLU(name, E)                                                                                                \
    extern "C" __global__ __launch_bounds__(128) void name(const E::Type* gate_up, E::Type* out, int width) {          \
        swiglu<E>(gate_up, out, width);                                                                                \
    }

SWIGLU(swiglu_f32, Fp32)
SWIGLU(swiglu_f16, Fp16)
SWIGLU(swiglu_bf16, Bf16)
