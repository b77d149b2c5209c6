// Attention of one query a sequence over the key-value cache, grouped-query: flash decoding.
//
// A block takes one key head, up to GROUP of its query heads and a part of the slots, so that each key and value is read
// once for the whole group and one sequence fills the GPU. LANES lanes of a warp share a slot, eight dimensions each. Each
// LANES lanes keep a softmax of their own slots (FP32, base 2); they are joined in a fixed order: lanes, then warps, then
// the parts, these by the block that finishes last. Which block that is changes nothing.
#include "element.cuh"
#include "pages.cuh"

constexpr int WARPS = 8;
// A part has no fewer slots than this, so that short contexts are not cut into crumbs.
constexpr int LEAST_SLOTS = 64;
// Of the launch; the weights of all parts lie in shared memory.
constexpr int MOST_PARTS = 64;
#define MINUS_INFINITY (-__uint_as_float(0x7f800000u))

// Sum of l_i = 2^(score_i - m), and where the maximum m may be minus infinity: nothing seen yet.
struct Softmax {
    float m, l;
};

// What to subtract from a score: never minus infinity, so that no difference is NaN.
__device__ __forceinline__ float finite(float m) { return m == MINUS_INFINITY ? 0.0f : m; }

struct Shape {
    int heads, kv_heads, head_dim;
};

// Where a block's part of the slots lies: [begin, end), and how many parts have any.
struct Part {
    int begin, end, parts;

    // Parts are cut at multiples of `step` behind the padding: what a warp takes in at once. Without padding that lies in one
    // page, whose slots are a multiple of it.
    __device__ Part(int length, int padding, int capacity, int step) {
        // The newest token is in slot `length`. Padding sees itself alone.
        const int last = min(max(length, 0), capacity - 1), first = min(max(padding, 0), last), count = last + 1 - first;
        const int even = (count + int(gridDim.x) - 1) / int(gridDim.x);
        const int slots = max((even + step - 1) / step * step, LEAST_SLOTS);
        parts = (count + slots - 1) / slots;
        begin = first + blockIdx.x * slots;
        end = min(begin + slots, last + 1);
    }
};

template <class E, int LANES, int GROUP>
struct Attend {
    // Slots whose keys and values a lane has in flight at once.
    static constexpr int UNROLL = sizeof(typename E::Type) == 2 ? 4 : 2;
    static constexpr int SLOTS = 32 / LANES;  // side by side in a warp
    typedef Pack<E, 8> P;

    float query[GROUP][8];  // times the scale and log2(e)
    float sum[GROUP][8];    // of 2^(score - m) * value
    Softmax softmax[GROUP];

    __device__ __forceinline__ void begin(const typename E::Type* queries, int count, bool inside, int head_dim,
                                          float scale) {
#pragma unroll
        for (int g = 0; g < GROUP; ++g) {
            const P pack = g < count && inside ? P::load(queries + g * head_dim) : P::zero();
#pragma unroll
            for (int i = 0; i < 8; ++i) {
                query[g][i] = pack[i] * scale;
                sum[g][i] = 0;
            }
            softmax[g] = Softmax{MINUS_INFINITY, 0};
        }
    }

    // Takes in UNROLL slots from `slot` on, SLOTS apart; those at `end` and behind count for nothing.
    __device__ __forceinline__ void take(const typename E::Type* keys, const typename E::Type* values, int slot, int end,
                                         bool inside, int head_dim) {
        P key[UNROLL], value[UNROLL];
        float score[GROUP][UNROLL];
#pragma unroll
        for (int u = 0; u < UNROLL; ++u) {
            const bool there = inside && slot + u * SLOTS < end;
            const size_t at = size_t(slot + u * SLOTS) * head_dim;
            key[u] = there ? P::load(keys + at) : P::zero();
            value[u] = there ? P::load(values + at) : P::zero();
        }
#pragma unroll
        for (int u = 0; u < UNROLL; ++u) {
            const bool there = slot + u * SLOTS < end;
#pragma unroll
            for (int g = 0; g < GROUP; ++g) {
                float dot = 0;
#pragma unroll
                for (int i = 0; i < 8; ++i) dot += query[g][i] * key[u][i];
#pragma unroll
                for (int offset = LANES / 2; offset > 0; offset /= 2) dot += __shfl_xor_sync(~0u, dot, offset);
                score[g][u] = there ? dot : MINUS_INFINITY;
            }
        }
#pragma unroll
        for (int g = 0; g < GROUP; ++g) {
            float m = softmax[g].m;
#pragma unroll
            for (int u = 0; u < UNROLL; ++u) m = fmaxf(m, score[g][u]);
            const float shrink = exp2f(softmax[g].m - finite(m));
            softmax[g].m = m;
            softmax[g].l *= shrink;
#pragma unroll
            for (int i = 0; i < 8; ++i) sum[g][i] *= shrink;
#pragma unroll
            for (int u = 0; u < UNROLL; ++u) {
                score[g][u] = exp2f(score[g][u] - finite(m));
                softmax[g].l += score[g][u];
            }
        }
#pragma unroll
        for (int u = 0; u < UNROLL; ++u) {
#pragma unroll
            for (int i = 0; i < 8; ++i) {
                const float element = value[u][i];
#pragma unroll
                for (int g = 0; g < GROUP; ++g) sum[g][i] += score[g][u] * element;
            }
        }
    }

    // Joins the slots side by side in the warp. Lanes below LANES have the result.
    __device__ __forceinline__ void join_lanes() {
#pragma unroll
        for (int g = 0; g < GROUP; ++g) {
#pragma unroll
            for (int offset = 16; offset >= LANES; offset /= 2) {
                const float other_m = __shfl_xor_sync(~0u, softmax[g].m, offset);
                const float other_l = __shfl_xor_sync(~0u, softmax[g].l, offset);
                const float m = fmaxf(softmax[g].m, other_m);
                const float mine = exp2f(softmax[g].m - finite(m)), others = exp2f(other_m - finite(m));
                softmax[g] = Softmax{m, softmax[g].l * mine + other_l * others};
#pragma unroll
                for (int i = 0; i < 8; ++i) {
                    const float other_sum = __shfl_xor_sync(~0u, sum[g][i], offset);
                    sum[g][i] = sum[g][i] * mine + other_sum * others;
                }
            }
        }
    }
};

// Weights of `count` softmaxes that join into one: weights[i] = 2^(m_i - m), and their joint sum. One warp; count may be 0.
__device__ __forceinline__ Softmax join_weights(const Softmax* softmaxes, float* weights, int count) {
    const int lane = threadIdx.x % 32;
    float m = MINUS_INFINITY, l = 0;
    for (int i = lane; i < count; i += 32) m = fmaxf(m, softmaxes[i].m);
    for (int offset = 16; offset > 0; offset /= 2) m = fmaxf(m, __shfl_xor_sync(~0u, m, offset));
    for (int i = lane; i < count; i += 32) {
        weights[i] = exp2f(softmaxes[i].m - finite(m));
        l += softmaxes[i].l * weights[i];
    }
    for (int offset = 16; offset > 0; offset /= 2) l += __shfl_xor_sync(~0u, l, offset);
    return Softmax{m, l};
}

// The partial results of all parts, in device memory.
struct Partials {
    float* sums;         // [batch, heads, parts, head_dim]
    Softmax* softmaxes;  // [batch, heads, parts]
    u32* tickets;        // [batch, gridDim.y], zero between launches
};

// Whether this block is the last of its `parts` to arrive here; what the others wrote before is then seen.
__device__ __forceinline__ bool arrives_last(u32* ticket, int parts) {
    __shared__ bool last;
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) {
        last = atomicAdd(ticket, 1u) == u32(parts - 1);
        if (last) *ticket = 0;
    }
    __syncthreads();
    __threadfence();
    return last;
}

template <class E, int LANES, int GROUP>
__device__ __forceinline__ void attention(typename E::Type* out,           // [batch, heads * head_dim]
                                          const typename E::Type* qkv,     // [batch, (heads + 2 * kv_heads) * head_dim]
                                          const typename E::Type* keys,    // rows of head_dim, where `pages` says
                                          const typename E::Type* values,  // likewise
                                          Partials partials,
                                          const int* lengths,  // [batch]: the slot of the newest token
                                          const int* padding,  // [batch]; not read where a sequence has several pages
                                          Pages pages, Shape shape, float scale) {
    constexpr int WIDTH = LANES * 8;
    __shared__ float sums[WARPS][GROUP][WIDTH];
    __shared__ Softmax softmaxes[GROUP][WARPS];
    __shared__ float weights[GROUP][MOST_PARTS];
    __shared__ float totals[GROUP];
    const int head_dim = shape.head_dim, group = shape.heads / shape.kv_heads;
    const int passes = (group + GROUP - 1) / GROUP;
    const int kv_head = blockIdx.y / passes, pass = blockIdx.y % passes, sequence = blockIdx.z;
    const int head = kv_head * group + pass * GROUP, count = min(GROUP, group - pass * GROUP);
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int dim = lane % LANES * 8;
    overlap_wait();
    overlap_trigger();
    typedef Attend<E, LANES, GROUP> A;
    constexpr int STEP = A::SLOTS * A::UNROLL;
    static_assert(LEAST_SLOTS % STEP == 0, "parts are cut at multiples of a step");
    // Steps behind a padding would cross from one page into another.
    const int own_padding = pages.table == nullptr ? padding[sequence] : 0;
    const Part part(lengths[sequence], own_padding, pages.capacity, STEP);
    if (int(blockIdx.x) >= part.parts) return;

    const size_t row = (size_t(sequence) * (shape.heads + 2 * shape.kv_heads) + head) * head_dim + dim;
    A attend;
    attend.begin(qkv + row, count, dim < head_dim, head_dim, scale);
    for (int slot = part.begin + warp * STEP; slot < part.end; slot += WARPS * STEP) {
        const long long plane = pages.origin(pages.of(sequence, slot), kv_head, slot) * head_dim + dim;
        attend.take(keys + plane, values + plane, slot + lane / LANES, part.end, dim < head_dim, head_dim);
    }
    attend.join_lanes();
    if (lane < LANES) {
#pragma unroll
        for (int g = 0; g < GROUP; ++g) {
#pragma unroll
            for (int i = 0; i < 8; ++i) sums[warp][g][dim + i] = attend.sum[g][i];
            if (lane == 0) softmaxes[g][warp] = attend.softmax[g];
        }
    }
    __syncthreads();
    if (warp < count) {
        const Softmax joint = join_weights(softmaxes[warp], weights[warp], WARPS);
        if (lane == 0) {
            totals[warp] = joint.l;
            const size_t at = (size_t(sequence) * shape.heads + head + warp) * gridDim.x + blockIdx.x;
            if (part.parts > 1) partials.softmaxes[at] = joint;
        }
    }
    __syncthreads();
    const size_t first_out = (size_t(sequence) * shape.heads + head) * head_dim;
    for (int i = threadIdx.x; i < count * head_dim; i += 32 * WARPS) {
        const int g = i / head_dim, d = i % head_dim;
        float sum = 0;
#pragma unroll
        for (int w = 0; w < WARPS; ++w) sum += sums[w][g][d] * weights[g][w];
        if (part.parts == 1) {
            out[first_out + i] = E::round(sum / totals[g]);
        } else {
            const size_t at = (size_t(sequence) * shape.heads + head + g) * gridDim.x + blockIdx.x;
            partials.sums[at * head_dim + d] = sum;
        }
    }
    if (part.parts == 1 || !arrives_last(partials.tickets + sequence * gridDim.y + blockIdx.y, part.parts)) return;

    const size_t first_part = (size_t(sequence) * shape.heads + head) * gridDim.x;
    if (warp < count) {
        const Softmax joint = join_weights(partials.softmaxes + first_part + warp * gridDim.x, weights[warp], part.parts);
        if (lane == 0) totals[warp] = joint.l;
    }
    __syncthreads();
    for (int i = threadIdx.x; i < count * head_dim; i += 32 * WARPS) {
        const int g = i / head_dim, d = i % head_dim;
        const float* parts = partials.sums + (first_part + g * gridDim.x) * head_dim + d;
        float sum = 0;
#pragma unroll 8
        for (int p = 0; p < part.parts; ++p) sum += parts[size_t(p) * head_dim] * weights[g][p];
        out[first_out + i] = E::round(sum / totals[g]);
    }
}

// A module has one kernel, which its defines name: src/cuda/kernels.rs. By the widest head it takes, and the query heads that share
// a block.
#ifndef KERNEL
#define KERNEL attention_f16_128_4
#define KERNEL_ELEMENT Fp16
#define KERNEL_WIDTH 128
#define KERNEL_GROUP 4
#endif

// Two blocks of 256 threads fit a multiprocessor: 128 registers a thread.
extern "C" __global__ __launch_bounds__(32 * WARPS, 2) void KERNEL(
    KERNEL_ELEMENT::Type* out, const KERNEL_ELEMENT::Type* qkv, const KERNEL_ELEMENT::Type* keys, const KERNEL_ELEMENT::Type* values,
    Partials partials, const int* lengths, const int* padding, Pages pages, Shape shape, float scale) {
    attention<KERNEL_ELEMENT, KERNEL_WIDTH / 8, KERNEL_GROUP>(out, qkv, keys, values, partials, lengths, padding, pages, shape,
                                                              scale);
}
