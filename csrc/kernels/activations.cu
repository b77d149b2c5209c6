// x as the fused linears read it: rows of FP16, or of BF16 for weights of that type, with zeros up to a whole group. One block a row.
//
// FP32 and BF16 reach further than FP16: a row is divided by the power of two that brings its largest magnitude to 2^14 or above,
// below 2^15, and the exponent is kept. Infinities and NaN stay what they are, and don't count as the largest. An FP32 row becomes
// two, of 11 bits of each element's mantissa: the tensor cores take both at once. BF16 reaches as far as FP32, so nothing is divided
// by then; FP16 and FP32 rows become two, of 8 bits of each mantissa.
//
// Many rows are packed, into the order in which the fused linears multiply them.
#include "element.cuh"

// Mirrors `Arguments` of src/ops/cuda/activations.rs.
struct Arguments {
    const void* x;    // rows of `x_stride` elements
    u16* out;         // rows of `padded_cols` elements, PIECES for each of x; or packed
    int* exponents;   // null where nothing is divided
    u64 x_stride;
    u32 cols, padded_cols;
    u32 rows;         // of x; blocks beyond them, where `out` is packed, write zeros
    u32 packed_rows;  // 0: `out` is not packed; else its rows, a multiple of 16
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

// Where `out` has an element, in elements. Packed, 8 of them are what a lane of `mma.m16n8k16` takes at once: the four columns of its
// k-step from a row, and from the row 8 below it. `PackedInput` of fused_linear.cu says the same.
__device__ __forceinline__ u64 place_of(const Arguments& arguments, u32 row, u32 col) {
    if (arguments.packed_rows == 0) return u64(row) * arguments.padded_cols + col;
    const u32 lane = row % 8 * 4 + col % 64 / 16, step = col / 64 * 4 + col % 16 / 4;
    return u64(step * (arguments.packed_rows / 16) + row / 16) * (8 * WARP) + lane * 8 + row / 8 % 2 * 4 + col % 4;
}

// Writes COUNT neighbors of a row of `out`: packed, those of a k-step at a time.
template <class Half, int COUNT>
__device__ __forceinline__ void write(const Arguments& arguments, u32 row, u32 col, const Pack<Half, COUNT>& pack) {
    if constexpr (COUNT == 8) {
        if (arguments.packed_rows > 0) {
#pragma unroll
            for (u32 first = 0; first < COUNT; first += 4) {
                Pack<Half, 4> step;
#pragma unroll
                for (u32 i = 0; i < 4; i++) step.elements[i] = pack.elements[first + i];
                step.store(arguments.out + place_of(arguments, row, col + first));
            }
            return;
        }
    }
    pack.store(arguments.out + place_of(arguments, row, col));
}

template <class E, class Half, bool SCALED, int PIECES, int COUNT>
__device__ __forceinline__ void bring_row(const Arguments& arguments, const typename E::Type* x, u32 cols) {
    const u32 row = blockIdx.x * PIECES;
    const int exponent = SCALED ? row_exponent<E, COUNT>(x, cols) : 0;
    if (SCALED && threadIdx.x == 0 && cols > 0) arguments.exponents[blockIdx.x] = exponent;
    for (u32 col = COUNT * threadIdx.x; col < arguments.padded_cols; col += COUNT * blockDim.x) {
        Pack<Half, COUNT> halves = Pack<Half, COUNT>::zero(), rests = halves;
        if (col < cols) {
            const Pack<E, COUNT> pack = Pack<E, COUNT>::load(x + col);
#pragma unroll
            for (int i = 0; i < COUNT; i++) {
                if constexpr (SCALED || PIECES == 2) {
                    const float value = SCALED ? ldexpf(pack[i], -exponent) : pack[i];
                    halves.set(i, value);
                    if constexpr (!SCALED) {
                        // A BF16 can't round to infinity what is finite.
                        const bool lost = fabsf(value) < infinity() && !(fabsf(halves[i]) < infinity());
                        if (lost) halves.elements[i] = value < 0 ? 0xFF7F : 0x7F7F;
                    }
                    // What is not finite has no rest.
                    if (fabsf(halves[i]) < infinity()) rests.set(i, (value - halves[i]) * SECOND_PIECE<Half>);
                } else {
                    halves.elements[i] = pack.elements[i];
                }
            }
        }
        write<Half, COUNT>(arguments, row, col, halves);
        if (PIECES == 2) write<Half, COUNT>(arguments, row + 1, col, rests);
    }
}

template <class E, class Half, bool SCALED, int PIECES>
__device__ __forceinline__ void activations(const Arguments& arguments) {
    overlap_trigger();
    overlap_wait();
    const bool is_there = blockIdx.x < arguments.rows;
    const u32 cols = is_there ? arguments.cols : 0;
    const typename E::Type* x = is_there ? static_cast<const typename E::Type*>(arguments.x) + blockIdx.x * arguments.x_stride : nullptr;
    // Rows of `out` begin at multiples of 16 bytes: the host sees to it.
    if (cols % 8 == 0 && aligned(x)) {
        bring_row<E, Half, SCALED, PIECES, 8>(arguments, x, cols);
    } else {
        bring_row<E, Half, SCALED, PIECES, 1>(arguments, x, cols);
    }
}

#define ACTIVATIONS(NAME, E, HALF, SCALED, PIECES)                                                             \
    extern "C" __global__ void __launch_bounds__(1024) NAME(const __grid_constant__ Arguments arguments) { \
        activations<E, HALF, SCALED, PIECES>(arguments);                                                       \
    }

ACTIVATIONS(activations_f32, Fp32, Fp16, true, 2)
ACTIVATIONS(activations_f16, Fp16, Fp16, false, 1)
ACTIVATIONS(activations_bf16, Bf16, Fp16, true, 1)
ACTIVATIONS(activations_f32_to_bf16, Fp32, Bf16, false, 2)
ACTIVATIONS(activations_f16_to_bf16, Fp16, Bf16, false, 2)
ACTIVATIONS(activations_bf16_to_bf16, Bf16, Bf16, false, 1)
