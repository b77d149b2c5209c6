// The end of a step: each sequence's likeliest token, and the sequence is one token longer.
//
// Of equal logits the lowest token wins. Where a logit is NaN, or the largest is not finite, the token is -1: no answer can be
// right then.
#include "element.cuh"

struct Best {
    float logit;
    int token;  // -1: none yet

    __device__ __forceinline__ void take(float other_logit, int other_token) {
        if (other_token < 0) return;
        const bool better = token < 0 || other_logit > logit || (other_logit == logit && other_token < token);
        if (better) {
            logit = other_logit;
            token = other_token;
        }
    }
};

constexpr int MOST_WARPS = 32;

template <class E, int COUNT>
__device__ __forceinline__ void scan(const typename E::Type* row, int vocab, Best& best, bool& damaged) {
#pragma unroll 4
    for (int i = threadIdx.x * COUNT; i < vocab; i += blockDim.x * COUNT) {
        const Pack<E, COUNT> pack = Pack<E, COUNT>::load(row + i);
#pragma unroll
        for (int j = 0; j < COUNT; ++j) {
            const float logit = pack[j];
            damaged |= logit != logit;
            // A thread sees its tokens in rising order: the first of equals stays.
            if (best.token < 0 || logit > best.logit) best = Best{logit, i + j};
        }
    }
}

// One block a sequence. `lengths` may be null: they are left alone then.
template <class E>
__device__ __forceinline__ void argmax(const typename E::Type* logits,  // [batch, vocab]
                                       long long* tokens,               // [batch]
                                       int* lengths,                    // [batch], or null
                                       int vocab) {
    __shared__ Best of_warp[MOST_WARPS];
    const typename E::Type* row = logits + size_t(blockIdx.x) * vocab;
    Best best{0.0f, -1};
    bool damaged = false;
    overlap_wait();
    overlap_trigger();
    if (vocab % 8 == 0 && aligned(logits)) {
        scan<E, 8>(row, vocab, best, damaged);
    } else {
        scan<E, 1>(row, vocab, best, damaged);
    }
    for (int offset = 16; offset > 0; offset /= 2) {
        const float logit = __shfl_xor_sync(~0u, best.logit, offset);
        const int token = __shfl_xor_sync(~0u, best.token, offset);
        best.take(logit, token);
    }
    if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = best;
    damaged = __syncthreads_or(damaged);
    if (threadIdx.x != 0) return;
    for (u32 warp = 1; warp < blockDim.x / 32; ++warp) best.take(of_warp[warp].logit, of_warp[warp].token);
    const bool finite = fabsf(best.logit) <= 3.4028234663852886e38f;
    tokens[blockIdx.x] = damaged || !finite ? -1 : best.token;
    if (lengths != nullptr) lengths[blockIdx.x] += 1;
}

#define ARGMAX(name, E)                                                                                                \
    extern "C" __global__ __launch_bounds__(32 * MOST_WARPS) void name(const E::Type* logits, long long* tokens,       \
                                                                       int* lengths, int vocab) {                      \
        argmax<E>(logits, tokens, lengths, vocab);                                                                     \
    }

ARGMAX(argmax_f32, Fp32)
ARGMAX(argmax_f16, Fp16)
ARGMAX(argmax_bf16, Bf16)
