// x as the fused linears read it: rows of FP16, or of BF16 for weights of that type, with zeros up to a whole group. One block a row.
//
// FP32 and BF16 reach further than FP16: a row is divided by the power of two that brings its largest magnitude to 2^14 or above,
// below 2^15, and the exponent is kept. Infinities and NaN stay what they are, and don't count as the largest. An FP32 row becomes
// two, of 11 bits of each element's mantissa: the tensor cores take both at once. BF16 reaches as far as FP32, so nothing is divided
// by then; FP16 and FP32 rows become two, of 8 bits of each mantissa.
//
// Many rows are packed: they come in the order in which the fused linears multiply them. There a block takes some columns of two rows.
#include "element.cuh"

// Mirrors `Arguments` of src/ops/cuda/activations.rs.
struct Arguments {
    const void* x;    // rows of `x_stride` elements
    u16* out;         // rows of `padded_cols` elements, PIECES for each of x; or packed
    int* exponents;   // null where nothing is divided
    u64 x_stride;
    u32 cols, padded_cols;
    u32 rows;         // of x
    u32 packed_rows;  // of `out`, a multiple of 16: those that x lacks are zero
};

constexpr u32 WARP = 32;
constexpr u32 MOST_WARPS = 32;
constexpr u32 INFINITE_BITS = 0x7F800000;
constexpr int LARGEST_EXPONENT = 14;

__device__ __forceinline__ float infinity() { return __uint_as_float(INFINITE_BITS); }

// The largest of the block's values, for all of its threads.
__device__ __forceinline__ u32 block_max(u32 own) {
    __shared__ u32 of_warps[MOST_WARPS];
    own = __reduce_max_sync(~0u, own);
    const u32 lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    if (lane == 0) of_warps[warp] = own;
    __syncthreads();
    own = lane < blockDim.x / WARP ? of_warps[lane] : 0;
    return __reduce_max_sync(~0u, own);
}

// The exponent of a finite magnitude above 0, given as its bits: 2^exponent <= magnitude < 2^(exponent + 1).
__device__ __forceinline__ int exponent_of(u32 bits) {
    return bits >> 23 ? int(bits >> 23) - 127 : 31 - __clz(int(bits)) - 149;
}

// The power of two that a row is divided by. COUNT elements at a time.
template <class E, int COUNT>
__device__ __forceinline__ int row_exponent(const typename E::Type* x, u32 cols) {
    u32 most = 0;
    for (u32 col = COUNT * threadIdx.x; col < cols; col += COUNT * blockDim.x) {
        const Pack<E, COUNT> pack = Pack<E, COUNT>::load(x + col);
#pragma unroll
        for (int i = 0; i < COUNT; i++) {
            const u32 bits = __float_as_uint(pack[i]) & 0x7FFFFFFF;
            most = bits < INFINITE_BITS && bits > most ? bits : most;
        }
    }
    most = block_max(most);
    return most == 0 ? 0 : exponent_of(most) - LARGEST_EXPONENT;
}

// The second piece of an element in FP16 counts for 2^-11 of the first: what an FP16 leaves of an FP32 fits another. BF16 needs no
// such help. `Activations::second` of src/ops/cuda/activations.rs says the same.
template <class Half>
constexpr float SECOND_PIECE = 1.0f;
template <>
constexpr float SECOND_PIECE<Fp16> = 2048.0f;

// The pieces of some neighboring elements of a row.
template <class Half, int COUNT>
struct Pieces {
    Pack<Half, COUNT> halves, rests;

    template <class E, bool SCALED, int PIECES>
    static __device__ __forceinline__ Pieces of(const Pack<E, COUNT>& pack, int exponent) {
        Pieces pieces = {Pack<Half, COUNT>::zero(), Pack<Half, COUNT>::zero()};
#pragma unroll
        for (int i = 0; i < COUNT; i++) {
            if constexpr (SCALED || PIECES == 2) {
                const float value = SCALED ? ldexpf(pack[i], -exponent) : pack[i];
                pieces.halves.set(i, value);
                if constexpr (!SCALED) {
                    // A BF16 can't round to infinity what is finite.
                    const bool lost = fabsf(value) < infinity() && !(fabsf(pieces.halves[i]) < infinity());
                    if (lost) pieces.halves.elements[i] = value < 0 ? 0xFF7F : 0x7F7F;
                }
                // What is not finite has no rest.
                if (fabsf(pieces.halves[i]) < infinity()) pieces.rests.set(i, (value - pieces.halves[i]) * SECOND_PIECE<Half>);
            } else {
                pieces.halves.elements[i] = pack.elements[i];
            }
        }
        return pieces;
    }
};

template <class E, class Half, bool SCALED, int PIECES, int COUNT>
__device__ __forceinline__ void bring_row(const Arguments& arguments, const typename E::Type* x, u16* out) {
    const int exponent = SCALED ? row_exponent<E, COUNT>(x, arguments.cols) : 0;
    if (SCALED && threadIdx.x == 0) arguments.exponents[blockIdx.x] = exponent;
    for (u32 col = COUNT * threadIdx.x; col < arguments.padded_cols; col += COUNT * blockDim.x) {
        Pieces<Half, COUNT> pieces = {Pack<Half, COUNT>::zero(), Pack<Half, COUNT>::zero()};
        if (col < arguments.cols) pieces = Pieces<Half, COUNT>::template of<E, SCALED, PIECES>(Pack<E, COUNT>::load(x + col), exponent);
        pieces.halves.store(out + col);
        if (PIECES == 2) pieces.rests.store(out + arguments.padded_cols + col);
    }
}

template <class E, class Half, bool SCALED, int PIECES>
__device__ __forceinline__ void activations(const Arguments& arguments) {
    overlap_trigger();
    overlap_wait();
    const u32 row = blockIdx.x;
    const typename E::Type* x = static_cast<const typename E::Type*>(arguments.x) + row * arguments.x_stride;
    u16* out = arguments.out + u64(row) * PIECES * arguments.padded_cols;
    // Rows of `out` begin at multiples of 16 bytes: the host sees to it.
    if (arguments.cols % 8 == 0 && aligned(x)) {
        bring_row<E, Half, SCALED, PIECES, 8>(arguments, x, out);
    } else {
        bring_row<E, Half, SCALED, PIECES, 1>(arguments, x, out);
    }
}

// Columns that one load takes where rows are packed: those of a lane in a k-step.
constexpr int STEP_COLS = 4;

// COUNT neighbors of a row of x, as many of them as there are; zero beyond.
template <class E>
__device__ __forceinline__ Pack<E, STEP_COLS> load_step(const typename E::Type* x, u32 col, u32 cols) {
    if (col + STEP_COLS <= cols && aligned(x) && cols % 8 == 0) return Pack<E, STEP_COLS>::load(x + col);
    Pack<E, STEP_COLS> pack = Pack<E, STEP_COLS>::zero();
#pragma unroll
    for (u32 i = 0; i < STEP_COLS; i++) {
        if (col + i < cols) pack.elements[i] = x[col + i];
    }
    return pack;
}

template <class Half>
__device__ __forceinline__ void store_steps(u16* to, const Pack<Half, STEP_COLS>& upper, const Pack<Half, STEP_COLS>& lower) {
    Pack<Half, 2 * STEP_COLS> both;
#pragma unroll
    for (u32 i = 0; i < STEP_COLS; i++) {
        both.elements[i] = upper.elements[i];
        both.elements[STEP_COLS + i] = lower.elements[i];
    }
    both.store(to);
}

// Packs two rows of x and their pieces. Eight elements of `out` are what a lane of `mma.m16n8k16` takes at once: the four columns of its
// k-step from a row and from the row 8 below it. `PackedInput` of fused_linear.cu says the same.
template <class E, class Half, bool SCALED, int PIECES>
__device__ __forceinline__ void pack_rows(const Arguments& arguments) {
    overlap_trigger();
    overlap_wait();
    constexpr u32 HALF_BLOCK = 8 / PIECES;
    const u32 first = blockIdx.x / HALF_BLOCK * (2 * HALF_BLOCK) + blockIdx.x % HALF_BLOCK;
    const typename E::Type* x[2];
    u32 cols[2];
    int exponents[2] = {0, 0};
#pragma unroll
    for (u32 i = 0; i < 2; i++) {
        const u32 row = first + i * HALF_BLOCK;
        const bool is_there = row < arguments.rows;
        cols[i] = is_there ? arguments.cols : 0;
        x[i] = static_cast<const typename E::Type*>(arguments.x) + (is_there ? row * arguments.x_stride : 0);
        if constexpr (SCALED) {
            const bool whole = arguments.cols % 8 == 0 && aligned(x[i]);
            exponents[i] = whole ? row_exponent<E, 8>(x[i], cols[i]) : row_exponent<E, 1>(x[i], cols[i]);
            if (is_there && blockIdx.y == 0 && threadIdx.x == 0) arguments.exponents[row] = exponents[i];
            // The next row's maxima take the place of this one's.
            __syncthreads();
        }
    }
    // Threads that are neighbors write neighbors.
    const u32 unit = blockIdx.y * blockDim.x + threadIdx.x, lane_col = unit % 4, step = unit / 4;
    const u32 col = step / 4 * 64 + lane_col * 16 + step % 4 * STEP_COLS;
    if (col >= arguments.padded_cols) return;
    Pieces<Half, STEP_COLS> pieces[2];
#pragma unroll
    for (u32 i = 0; i < 2; i++) {
        pieces[i] = Pieces<Half, STEP_COLS>::template of<E, SCALED, PIECES>(load_step<E>(x[i], col, cols[i]), exponents[i]);
    }
#pragma unroll
    for (u32 piece = 0; piece < PIECES; piece++) {
        const u32 row = first * PIECES + piece, lane = row % 8 * 4 + lane_col;
        u16* to = arguments.out + (u64(step * (arguments.packed_rows / 16) + row / 16) * WARP + lane) * (2 * STEP_COLS);
        store_steps<Half>(to, piece ? pieces[0].rests : pieces[0].halves, piece ? pieces[1].rests : pieces[1].halves);
    }
}

#define ACTIVATIONS(NAME, E, HALF, SCALED, PIECES)                                                                   \
    extern "C" __global__ void __launch_bounds__(1024) NAME(const __grid_constant__ Arguments arguments) {           \
        activations<E, HALF, SCALED, PIECES>(arguments);                                                             \
    }                                                                                                                \
    extern "C" __global__ void __launch_bounds__(1024) NAME##_packed(const __grid_constant__ Arguments arguments) {  \
        pack_rows<E, HALF, SCALED, PIECES>(arguments);                                                               \
    }

ACTIVATIONS(activations_f32, Fp32, Fp16, true, 2)
ACTIVATIONS(activations_f16, Fp16, Fp16, false, 1)
ACTIVATIONS(activations_bf16, Bf16, Fp16, true, 1)
ACTIVATIONS(activations_f32_to_bf16, Fp32, Bf16, false, 2)
ACTIVATIONS(activations_f16_to_bf16, Fp16, Bf16, false, 2)
ACTIVATIONS(activations_bf16_to_bf16, Bf16, Bf16, false, 1)
