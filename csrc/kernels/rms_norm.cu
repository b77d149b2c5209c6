// The residual stream takes in a layer's output, and its RMS norm comes out: one block a row.
//
//     hidden += delta                                            (delta may be null: nothing is added)
//     out = hidden / sqrt(mean(hidden^2) + epsilon) * weight
//
// The statistics are FP32; the quotient is rounded to the dtype before the weight is applied, as the model does on the CPU.
#include "element.cuh"

// Packs that a thread keeps in registers: 512 threads keep a row of 8192. A wider row is read again.
constexpr int KEPT = 2;
constexpr int MOST_WARPS = 16;

// The same sum for every thread, added in the same order each time.
__device__ float block_sum(float value) {
    __shared__ float of_warp[MOST_WARPS];
    for (int offset = 16; offset > 0; offset /= 2) value += __shfl_xor_sync(~0u, value, offset);
    if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = value;
    __syncthreads();
    float sum = 0;
    for (u32 warp = 0; warp < blockDim.x / 32; ++warp) sum += of_warp[warp];
    return sum;
}

template <class E, int COUNT>
struct Row {
    typedef Pack<E, COUNT> P;
    typename E::Type* hidden;
    const typename E::Type* delta;
    const typename E::Type* weight;
    typename E::Type* out;

    // Pack i of the sum, stored where there is something to add; its squares are added to `sum`.
    __device__ __forceinline__ P take_in(int i, float& sum) const {
        P pack = P::load(hidden + i * COUNT);
        if (delta != nullptr) {
            const P added = P::load(delta + i * COUNT);
#pragma unroll
            for (int j = 0; j < COUNT; ++j) pack.set(j, pack[j] + added[j]);
            pack.store(hidden + i * COUNT);
        }
#pragma unroll
        for (int j = 0; j < COUNT; ++j) sum += pack[j] * pack[j];
        return pack;
    }

    __device__ __forceinline__ void give_out(int i, P pack, const P& scale, float inverse) const {
#pragma unroll
        for (int j = 0; j < COUNT; ++j) pack.set(j, rounded<E>(pack[j] * inverse) * scale[j]);
        pack.store(out + i * COUNT);
    }

    __device__ __forceinline__ void normalize(int width, float epsilon) const {
        const int packs = width / COUNT, step = blockDim.x, thread = threadIdx.x;
        P kept[KEPT], scale[KEPT];
        // The weight is no other kernel's work: it is fetched while the one before still runs.
#pragma unroll
        for (int k = 0; k < KEPT; ++k) {
            const int i = thread + k * step;
            scale[k] = i < packs ? P::load(weight + i * COUNT) : P::zero();
        }
        overlap_wait();
        overlap_trigger();
        float sum = 0;
#pragma unroll
        for (int k = 0; k < KEPT; ++k) {
            const int i = thread + k * step;
            if (i < packs) kept[k] = take_in(i, sum);
        }
        for (int i = thread + KEPT * step; i < packs; i += step) take_in(i, sum);
        const float inverse = rsqrtf(block_sum(sum) / float(width) + epsilon);
#pragma unroll
        for (int k = 0; k < KEPT; ++k) {
            const int i = thread + k * step;
            if (i < packs) give_out(i, kept[k], scale[k], inverse);
        }
        for (int i = thread + KEPT * step; i < packs; i += step) {
            give_out(i, P::load(hidden + i * COUNT), P::load(weight + i * COUNT), inverse);
        }
    }
};

template <class E>
__device__ __forceinline__ void rms_norm(typename E::Type* hidden,        // [rows, width], rows in gridDim.x
                                         const typename E::Type* delta,   // [rows, width] or null
                                         const typename E::Type* weight,  // [width]
                                         typename E::Type* out,           // [rows, width]
                                         int width, float epsilon) {
    const bool packed = width % 8 == 0 && aligned(hidden, delta, weight, out);
    const size_t at = size_t(blockIdx.x) * width;
    hidden += at;
    out += at;
    if (delta != nullptr) delta += at;
    if (packed) {
        Row<E, 8>{hidden, delta, weight, out}.normalize(width, epsilon);
    } else {
        Row<E, 1>{hidden, delta, weight, out}.normalize(width, epsilon);
    }
}

#define RMS_NORM(name, E)                                                                                              \
    extern "C" __global__ __launch_bounds__(32 * MOST_WARPS) void name(                                                \
        E::Type* hidden, const E::Type* delta, const E::Type* weight, E::Type* out, int width, float epsilon) {        \
        rms_norm<E>(hidden, delta, weight, out, width, epsilon);                                                       \
    }

RMS_NORM(rms_norm_f32, Fp32)
RMS_NORM(rms_norm_f16, Fp16)
RMS_NORM(rms_norm_bf16, Bf16)
