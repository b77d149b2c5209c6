// The rotary embedding of one new token a sequence, and its way into the key-value cache.
//
// Slot `lengths[sequence]` of the cache is the new token's; its position is that less the sequence's left padding.
#include "element.cuh"
#include "pages.cuh"

// Cosines and sines of the step's positions, shared by all layers. Angles are FP64: a position times a frequency needs more
// than 24 bits. One block a sequence.
extern "C" __global__ __launch_bounds__(128) void rope_angles(float2* angles,             // [batch, half]: cosine, sine
                                                              const double* frequencies,  // [half] radians a position
                                                              const int* lengths,         // [batch]
                                                              const int* padding,         // [batch]
                                                              int half) {
    overlap_wait();
    overlap_trigger();
    const double position = lengths[blockIdx.x] - padding[blockIdx.x];
    for (int i = threadIdx.x; i < half; i += blockDim.x) {
        double sine, cosine;
        sincos(position * frequencies[i], &sine, &cosine);
        angles[size_t(blockIdx.x) * half + i] = make_float2(float(cosine), float(sine));
    }
}

// Rotates elements i and i + half of a head with the roundings of the tensor operators: cosine and sine to the dtype, then
// the product with the cosine, then the sum.
template <class E>
__device__ __forceinline__ void rotate(const typename E::Type* from, typename E::Type* to, const float2* angles,
                                       int half) {
    for (int i = threadIdx.x; i < half; i += blockDim.x) {
        const float cosine = rounded<E>(angles[i].x), sine = rounded<E>(angles[i].y);
        const float a = E::load(from[i]), b = E::load(from[i + half]);
        to[i] = E::round(rounded<E>(a * cosine) - b * sine);
        to[i + half] = E::round(rounded<E>(b * cosine) + a * sine);
    }
}

// One block a head and sequence: queries are rotated in place, keys on their way into the cache, values copied.
template <class E>
__device__ __forceinline__ void rope_cache(typename E::Type* qkv,     // [batch, (heads + 2 * kv_heads) * head_dim]
                                           typename E::Type* keys,    // rows of head_dim, where `pages` says
                                           typename E::Type* values,  // likewise
                                           const float2* angles,      // [batch, head_dim / 2]
                                           const int* lengths,        // [batch]
                                           Pages pages, int heads, int kv_heads, int head_dim) {
    const int head = blockIdx.x, sequence = blockIdx.y, half = head_dim / 2;
    overlap_wait();
    overlap_trigger();
    const int slot = lengths[sequence];
    typename E::Type* from = qkv + (size_t(sequence) * (heads + 2 * kv_heads) + head) * head_dim;
    const float2* angle = angles + size_t(sequence) * half;
    if (head < heads) {
        rotate<E>(from, from, angle, half);
        return;
    }
    // The host refuses a step behind the last slot, and has no page that is not there; memory is safe without it.
    if (slot < 0 || slot >= pages.capacity) return;
    const int page = pages.of(sequence, slot);
    if (!pages.has(page)) return;
    const bool is_key = head < heads + kv_heads;
    const int kv_head = head - heads - (is_key ? 0 : kv_heads);
    const long long at = (pages.origin(page, kv_head, slot) + slot) * head_dim;
    if (is_key) {
        rotate<E>(from, keys + at, angle, half);
    } else {
        for (int i = threadIdx.x; i < head_dim; i += blockDim.x) values[at + i] = from[i];
    }
}

#define ROPE_CACHE(name, E)                                                                                            \
    extern "C" __global__ __launch_bounds__(128) void name(E::Type* qkv, E::Type* keys, E::Type* values,               \
                                                           const float2* angles, const int* lengths, Pages pages,      \
                                                           int heads, int kv_heads, int head_dim) {                    \
        rope_cache<E>(qkv, keys, values, angles, lengths, pages, heads, kv_heads, head_dim);                           \
    }

ROPE_CACHE(rope_cache_f32, Fp32)
ROPE_CACHE(rope_cache_f16, Fp16)
ROPE_CACHE(rope_cache_bf16, Bf16)
