// Registers of a group to rows of a dense matrix, bit for bit what src/ops/decode_to_scratch.rs gives: grid value times scale in
// FP32, rounded to nearest even. Where there is no grid, the weight's bits, rounded only to another type.
#pragma once
#include "decode.cuh"

enum Element : u32 { F32 = 0, F16 = 1, BF16 = 2 };

template <u32 ELEMENT>
struct ElementOf {
    typedef u16 Type;
};
template <>
struct ElementOf<F32> {
    typedef float Type;
};

template <u32 ELEMENT>
__device__ __forceinline__ typename ElementOf<ELEMENT>::Type round_to(float value) {
    if constexpr (ELEMENT == F32) {
        return value;
    } else {
        return ELEMENT == F16 ? float_to_half(value) : float_to_bf16(value);
    }
}

__device__ __forceinline__ u32 multiply_halves(u32 a, u32 b) {
    u32 product;
    asm("mul.rn.f16x2 %0, %1, %2;" : "=r"(product) : "r"(a), "r"(b));
    return product;
}

constexpr u32 QUIET_NAN = 0x7FC00000;

__device__ __forceinline__ bool is_nan(u32 bits) { return (bits & 0x7FFFFFFF) > 0x7F800000; }

// An FP16 as FP32. The conversion of the hardware would lose a NaN's payload.
__device__ __forceinline__ float widen_half(u16 half) {
    if ((half & 0x7FFF) <= 0x7C00) return half_to_float(half);
    return __uint_as_float((half & 0x8000u) << 16 | 0x7F800000 | (half & 0x3FFu) << 13);
}

// The weight of a half, but for the row's scale.
template <u32 LAYOUT>
__device__ __forceinline__ float value_of(u32 half) {
    if constexpr (LAYOUT == EXACT_BF16) {
        return bf16_to_float(u16(half));
    } else if constexpr (LAYOUT == EXACT_FP16) {
        return widen_half(u16(half));
    } else {
        // A half read as FP16 is the grid value times 2^-24.
        return half_to_float(u16(half)) * 16777216.0f;
    }
}

// As the CPU rounds: a NaN keeps what there is room for of its payload.
template <u32 ELEMENT>
__device__ __forceinline__ typename ElementOf<ELEMENT>::Type round_with_nan(float value) {
    const u32 bits = __float_as_uint(value);
    if (ELEMENT == F32 || !is_nan(bits)) return round_to<ELEMENT>(value);
    if (ELEMENT == BF16) return bits >> 16 | 0x40;
    return (bits >> 16 & 0x8000) | 0x7E00 | (bits >> 13 & 0x3FF);
}

// Whether a register's halves are elements already.
template <u32 LAYOUT, u32 ELEMENT>
__device__ __forceinline__ constexpr bool is_native() {
    return (LAYOUT == EXACT_BF16 && ELEMENT == BF16) || (LAYOUT == EXACT_FP16 && ELEMENT == F16);
}

// The weight of a half in a row of this scale, as an element.
template <u32 LAYOUT, u32 ELEMENT>
__device__ __forceinline__ typename ElementOf<ELEMENT>::Type element_of(u32 half, float scale) {
    if constexpr (is_native<LAYOUT, ELEMENT>()) {
        return u16(half);
    } else if constexpr (is_grid(LAYOUT)) {
        return round_to<ELEMENT>(value_of<LAYOUT>(half) * scale);
    } else {
        return round_with_nan<ELEMENT>(value_of<LAYOUT>(half));
    }
}

// The same of an escape.
template <u32 LAYOUT, u32 ELEMENT>
__device__ __forceinline__ typename ElementOf<ELEMENT>::Type escaped_element(int value, float scale) {
    if constexpr (is_grid(LAYOUT)) {
        return round_to<ELEMENT>(float(value) * scale);
    } else {
        return element_of<LAYOUT, ELEMENT>(u32(value) & 0xFFFF, scale);
    }
}

// A row's scale, as FP32 and, where FP16 holds it exactly, as two halves of scale * 2^10.
struct RowScale {
    float scale;
    u32 halves;
    bool fits;

    __device__ __forceinline__ void load(const Weight& weight, u32 row) {
        scale = row < weight.rows ? scale_of(weight, row) : 0;
        const float size = fabsf(scale);
        // A BF16 scale has 8 bits, so it is exact wherever scale * 2^10 is a normal half.
        fits = size == 0 || (size >= 5.9604644775390625e-8f && size < 32.0f);
        halves = both_halves(float_to_half(scale * 1024.0f));
    }

    // Two weights of a register in FP16, packed. One rounding: the first product is exact.
    __device__ __forceinline__ u32 halves_of(u32 pair) const {
        constexpr u32 TWO_TO_14 = 0x74007400;
        return multiply_halves(multiply_halves(pair, TWO_TO_14), halves);
    }

    // The two weights of a register as elements of 16 bits.
    template <u32 LAYOUT, u32 ELEMENT>
    __device__ __forceinline__ u32 packed(u32 pair) const {
        if constexpr (is_native<LAYOUT, ELEMENT>()) return pair;
        if (is_grid(LAYOUT) && ELEMENT == F16 && fits) return halves_of(pair);
        return u32(element_of<LAYOUT, ELEMENT>(pair & 0xFFFF, scale)) | u32(element_of<LAYOUT, ELEMENT>(pair >> 16, scale)) << 16;
    }
};

// Whether rows of a matrix can be stored 16 bytes at a time.
template <class Type>
__device__ __forceinline__ bool rows_are_aligned(const Type* out, u64 stride) {
    return (reinterpret_cast<u64>(out) | stride * sizeof(Type)) % 16 == 0;
}

// Stores the rows of one stripe in a row-major matrix. WHOLE: all groups are full, the rows aligned and the scales easy, so that
// the loops over them, one for each number of raw bits, need no branches.
template <u32 LAYOUT, u32 ELEMENT, bool WHOLE>
struct RowMajorSink {
    typedef typename ElementOf<ELEMENT>::Type Type;
    Type* rows[2];  // this lane's two rows in the current group, at its first column
    u32 cols;       // inside the matrix, from this lane's first in the current group
    bool inside[2];
    bool aligned;
    RowScale scales[2];
    u32 packed[2][8];

    // `out` is where the tile's stripe begins, its rows `stride` elements apart; `group` is the first.
    __device__ __forceinline__ void start(const Weight& weight, const Tile& tile, u32 stripe, u32 group, Type* out, u64 stride, u32 lane) {
        const u32 first = group * GROUP_COLS + lane % 4 * LANE_COLS;
        cols = tile.cols > first ? tile.cols - first : 0;
        aligned = rows_are_aligned(out, stride);
#pragma unroll
        for (u32 half = 0; half < 2; half++) {
            const u32 row = lane / 4 + 8 * half;
            rows[half] = out + row * stride + first;
            inside[half] = stripe * STRIPE_ROWS + row < tile.rows;
            scales[half].load(weight, tile.row + stripe * STRIPE_ROWS + row);
        }
    }

    // Whether the products of all lanes' rows can be taken in the element's own type; for all lanes of the warp.
    __device__ __forceinline__ bool scales_are_easy() const {
        return ELEMENT != F16 || !is_grid(LAYOUT) || __all_sync(~0u, scales[0].fits && scales[1].fits);
    }

    // Measured: BF16 and FP32, which take more instructions to convert, are slower so.
    static constexpr bool ASKS_EARLY = ELEMENT == F16;

    __device__ __forceinline__ void begin_groups() {}
    __device__ __forceinline__ void begin_group() {}
    __device__ __forceinline__ void before_step(u32) {}

    __device__ __forceinline__ void step(u32 step, const u32 (&registers)[4]) {
        if constexpr (ELEMENT == F32) {
#pragma unroll
            for (u32 half = 0; half < 2; half++) store4(half, step, registers[half], registers[half + 2]);
        } else {
#pragma unroll
            for (u32 half = 0; half < 2; half++) {
                packed[half][2 * (step & 3)] = pack(half, registers[half]);
                packed[half][2 * (step & 3) + 1] = pack(half, registers[half + 2]);
            }
        }
    }

    __device__ __forceinline__ void end_group() {
        if constexpr (ELEMENT != F32) {
#pragma unroll
            for (u32 half = 0; half < 2; half++) store16(half);
        }
#pragma unroll
        for (u32 half = 0; half < 2; half++) rows[half] += GROUP_COLS;
        cols = cols > GROUP_COLS ? cols - GROUP_COLS : 0;
    }

private:
    __device__ __forceinline__ u32 pack(u32 half, u32 pair) const {
        if (WHOLE && ELEMENT == F16 && is_grid(LAYOUT)) return scales[half].halves_of(pair);
        return scales[half].template packed<LAYOUT, ELEMENT>(pair);
    }
    __device__ __forceinline__ bool has_row(u32 half) const { return WHOLE || inside[half]; }
    __device__ __forceinline__ bool lane_is_whole() const { return WHOLE || (aligned && cols >= LANE_COLS); }

    __device__ __forceinline__ void store4(u32 half, u32 step, u32 low, u32 high) {
        if (!has_row(half)) return;
        const float scale = scales[half].scale;
        const float values[4] = {element_of<LAYOUT, F32>(low & 0xFFFF, scale), element_of<LAYOUT, F32>(low >> 16, scale),
                                 element_of<LAYOUT, F32>(high & 0xFFFF, scale), element_of<LAYOUT, F32>(high >> 16, scale)};
        Type* to = rows[half] + 4 * step;
        if (lane_is_whole()) {
            // Kept in the L2, where the four pieces of a lane's 64 bytes meet before they go to memory.
            *reinterpret_cast<float4*>(to) = make_float4(values[0], values[1], values[2], values[3]);
            return;
        }
#pragma unroll
        for (u32 n = 0; n < 4; n++) {
            if (4 * step + n < cols) to[n] = Type(values[n]);
        }
    }

    __device__ __forceinline__ void store16(u32 half) {
        if (!has_row(half)) return;
        if (lane_is_whole()) {
            uint4* to = reinterpret_cast<uint4*>(rows[half]);
            __stcs(to, make_uint4(packed[half][0], packed[half][1], packed[half][2], packed[half][3]));
            __stcs(to + 1, make_uint4(packed[half][4], packed[half][5], packed[half][6], packed[half][7]));
            return;
        }
#pragma unroll
        for (u32 n = 0; n < LANE_COLS; n++) {
            if (n < cols) rows[half][n] = Type(packed[half][n / 2] >> 16 * (n & 1) & 0xFFFF);
        }
    }
};

// The escape at `position`, or 0: positions ascend.
__device__ __forceinline__ int escape_at(const Escapes& escapes, u32 position) {
    u32 low = 0, high = escapes.count;
    while (low < high) {
        const u32 middle = (low + high) / 2;
        if (escapes.position(middle) < position) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return low < escapes.count && escapes.position(low) == position ? escapes.value(low) : 0;
}

// A stripe of a tile that codes differences to the left: escapes belong to the sums, so they are looked up weight by weight.
template <u32 ELEMENT>
struct LeftSink {
    typedef typename ElementOf<ELEMENT>::Type Type;
    const Tile& tile;
    const Escapes& escapes;
    Type* out;
    u64 stride;
    u32 stripe, lane, group;
    RowScale scales[2];
    u32 all[LANE_REGISTERS];

    static constexpr bool ASKS_EARLY = false;

    __device__ __forceinline__ void begin_groups() {}
    __device__ __forceinline__ void begin_group() {}
    __device__ __forceinline__ void before_step(u32) {}
    __device__ __forceinline__ void step(u32 step, const u32 (&registers)[4]) {
        for (u32 index = 0; index < 4; index++) all[4 * step + index] = registers[index];
    }

    __device__ __noinline__ void end_group() {
        short left[2] = {0, 0};
        // Registers run through the 16 columns of both rows: see `weight_row`.
        for (u32 n = 0; n < LANE_WEIGHTS; n++) {
            const u32 half = n / 2 & 1, row = stripe * STRIPE_ROWS + weight_row(lane, n);
            const u32 col = group * GROUP_COLS + weight_col(lane, n);
            if (row >= tile.rows || col >= tile.cols) continue;
            const u32 bits = all[n / 2] >> 16 * (n & 1) & 0xFFFF;
            const int coded = bits & 0x8000 ? -int(bits & 0x7FFF) : int(bits);
            left[half] = static_cast<short>(left[half] + coded + escape_at(escapes, row * tile.cols + col));
            out[(row - stripe * STRIPE_ROWS) * stride + col] = round_to<ELEMENT>(float(left[half]) * scales[half].scale);
        }
        group++;
    }
};

// Writes the escapes of a tile over what stands at their places. `out` is where the tile begins. Only rows from `first_row` on,
// `row_count` of them, counted in the tile.
template <u32 LAYOUT, u32 ELEMENT>
__device__ __forceinline__ void store_escapes(const Weight& weight, const Tile& tile, const Escapes& escapes, u32 first_row,
                                              u32 row_count, typename ElementOf<ELEMENT>::Type* out, u64 stride, u32 lane) {
    for (u32 index = lane; index < escapes.count; index += LANES) {
        const u32 position = escapes.position(index);
        const u32 row = position / tile.cols, col = position % tile.cols;
        if (row - first_row >= row_count || row >= tile.rows) continue;
        out[(row - first_row) * stride + col] = escaped_element<LAYOUT, ELEMENT>(escapes.value(index), scale_of(weight, tile.row + row));
    }
}
