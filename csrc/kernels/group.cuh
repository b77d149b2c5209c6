// The weights of one group, decoded into the registers that `mma.m16n8k16` takes as its A operand.
//
// A register holds two weights: of a grid, as FP16 subnormals, the grid value times 2^-24; else their own bits. Four registers make
// one k-step.
#pragma once
#include "rans.cuh"

__device__ __forceinline__ u32 rotate_right(u32 value, u32 by) { return by == 0 ? value : __funnelshift_r(value, value, by); }

__device__ __forceinline__ constexpr u32 both_halves(u32 half) { return half | half << 16; }

// The parts of a raw field of `BITS` bits (docs/format.md, "Raw bits"), widest first: 8, 4, 2, 1.
template <u32 BITS, bool SIGNED>
struct RawField {
    // The bits of a half that the part of width `part` fills.
    static __device__ __forceinline__ constexpr u32 mask(u32 part) {
        const u32 done = BITS & ~(2 * part - 1);
        if (SIGNED && done == 0) return both_halves(0x8000 | ((1u << (part - 1)) - 1));
        return both_halves(((1u << part) - 1) << (done - (SIGNED ? 1 : 0)));
    }
};

// The raw words of one full group for one lane.
template <u32 BITS>
struct RawWords {
    u32 words[BITS > 0 ? BITS : 1];

    static constexpr u32 GROUP_BYTES = BITS * 4 * LANES;

    // Words that a lane has together, of the widest part.
    static constexpr u32 FIRST_RUN = BITS >= 4 ? 4 : BITS >= 2 ? 2 : 1;

    // Where a lane's words begin in the group at `group`.
    static __device__ __forceinline__ const u8* begin(const u8* group, u32 lane) { return group + lane * 4 * FIRST_RUN; }

    // `own` is where this lane's words begin. They are used once: the L1 is left to others.
    __device__ __forceinline__ void load(const u8* own, u32 lane) {
        u32 at = 0;
#pragma unroll
        for (u32 part = 8; part >= 1; part /= 2) {
            if (!(BITS & part)) continue;
            // The lanes' runs of a narrower part lie closer together.
            const u8* from = own - (part < 4 ? lane * 4 * (FIRST_RUN - part) : 0);
#pragma unroll
            for (u32 run = 0; run < part; run += 4) {
                const u8* words_of_run = from + (at + run) * 4 * LANES;
                u32* to = words + at + run;
                if (part >= 4) {
                    asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
                                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3]) : "l"(words_of_run));
                } else if (part == 2) {
                    asm volatile("ld.global.nc.L1::no_allocate.v2.u32 {%0, %1}, [%2];" : "=r"(to[0]), "=r"(to[1]) : "l"(words_of_run));
                } else {
                    asm volatile("ld.global.nc.L1::no_allocate.u32 %0, [%1];" : "=r"(to[0]) : "l"(words_of_run));
                }
            }
            at += part;
        }
    }

    // Adds the raw bits of register `index` to `symbol_bits`.
    template <bool SIGNED>
    __device__ __forceinline__ u32 onto(u32 symbol_bits, u32 index) const {
        u32 value = symbol_bits;
        u32 at = 0;
#pragma unroll
        for (u32 part = 8; part >= 1; part /= 2) {
            if (!(BITS & part)) continue;
            const u32 per_word = LANE_REGISTERS / part;
            const u32 word = words[at + index / per_word];
            value |= rotate_right(word, part * (index % per_word)) & RawField<BITS, SIGNED>::mask(part);
            at += part;
        }
        return value;
    }
};

template <int BY>
__device__ __forceinline__ u32 shift_left(u32 value) {
    return BY >= 0 ? value << (BY >= 0 ? BY : 0) : value >> (BY < 0 ? -BY : 0);
}

// The exponents of a register's two weights where classes are exponents: class 0 is exponent 0, the others lie in the table's window.
template <u32 LAYOUT>
__device__ __forceinline__ u32 exponents_of(u32 entry, const Table& table) {
    const u32 classes = entry & both_halves(15);
    // Bit 4 of each half: its class is not 0. Multiplied rather than shifted, on units that have less to do.
    const u32 some = (classes + both_halves(15)) & both_halves(16);
    return classes * (1u << mantissa_bits(LAYOUT)) + some * table.exponent_offset;
}

// How a full group of a tile with symbols is decoded. R: raw magnitude bits.
template <u32 LAYOUT, u32 R>
struct GroupDecoder {
    static constexpr bool SIGNED = LAYOUT != SMALL;
    static constexpr u32 FIELD_BITS = R + (SIGNED ? 1 : 0);
    typedef RawWords<FIELD_BITS> Raw;

    // The four registers of k-step `step`.
    static __device__ __forceinline__ void step(Lane& lane, const Table& table, const Raw& raw, u32 step, u32 (&registers)[4]) {
        if constexpr (LAYOUT == FAST) {
            constexpr u32 CLASSES = both_halves(3u << R);
#pragma unroll
            for (u32 pair = 0; pair < 4; pair += 2) {
                const u32 entry = lane.pop<LAYOUT>(table);
                registers[pair] = raw.template onto<SIGNED>(shift_left<int(R) - 3>(entry) & CLASSES, 4 * step + pair);
                registers[pair + 1] = raw.template onto<SIGNED>(shift_left<int(R) - 1>(entry) & CLASSES, 4 * step + pair + 1);
            }
        } else if constexpr (LAYOUT == SMALL) {
#pragma unroll
            for (u32 index = 0; index < 4; index++) {
                u32 value = small_half(lane.pop<LAYOUT>(table));
                value |= small_half(lane.pop<LAYOUT>(table)) << 16;
                registers[index] = raw.template onto<SIGNED>(value, 4 * step + index);
            }
        } else {
#pragma unroll
            for (u32 index = 0; index < 4; index++) {
                registers[index] = raw.template onto<SIGNED>(exponents_of<LAYOUT>(lane.pop<LAYOUT>(table), table), 4 * step + index);
            }
        }
    }

    static __device__ __forceinline__ u32 small_half(u32 entry) { return (entry & 0x7F) << R | (entry & 0x80) << 8; }
};

// Where the group has weight `n` of a lane.
__device__ __forceinline__ u32 weight_row(u32 lane, u32 n) { return lane / 4 + 8 * (n / 2 & 1); }
__device__ __forceinline__ u32 weight_col(u32 lane, u32 n) {
    return lane % 4 * LANE_COLS + 4 * (n / 8) + 2 * (n / 4 & 1) + (n & 1);
}

// Any group at all, at the edges of a matrix and in tiles without symbols: one weight at a time.
template <u32 LAYOUT>
struct AnyGroup {
    Group group;
    u32 raw_bits;
    bool has_symbols, raw_signed;
    Table table;
    const u8* raw;

    __device__ __forceinline__ u32 field_bits() const { return raw_bits + raw_signed; }

    __device__ __forceinline__ bool inside(u32 lane, u32 n) const {
        return weight_row(lane, n) < group.rows && weight_col(lane, n) < group.cols;
    }
    __device__ __forceinline__ u32 weights_of(u32 lane) const {
        const u32 rows = (lane / 4 < group.rows) + (lane / 4 + 8 < group.rows);
        const u32 first = lane % 4 * LANE_COLS;
        return rows * (first < group.cols ? min_u32(LANE_COLS, group.cols - first) : 0);
    }

    __device__ __noinline__ void decode(Lane& state, u32 lane, u32 (&registers)[LANE_REGISTERS]) const {
        for (u32 index = 0; index < LANE_REGISTERS; index++) registers[index] = 0;
        if (field_bits() > 0) {
            if (group.lanes_are_whole()) {
                add_whole_lanes(lane, registers);
            } else {
                add_bit_stream(lane, registers);
            }
        }
        if (has_symbols) add_symbols(state, lane, registers);
    }

    __device__ void add_symbols(Lane& state, u32 lane, u32 (&registers)[LANE_REGISTERS]) const {
        constexpr u32 COUNT = LAYOUT == FAST ? 4 : LAYOUT == SMALL ? 1 : 2;
        for (u32 first = 0; first < LANE_WEIGHTS; first += COUNT) {
            bool present = false;
            for (u32 n = first; n < first + COUNT; n++) present |= inside(lane, n);
            if (!present) continue;
            const u32 entry = state.pop<LAYOUT>(table);
            if constexpr (LAYOUT == FAST) {
                const u32 low = entry >> 3 & both_halves(3), high = entry >> 1 & both_halves(3);
                registers[first / 2] |= clip(low << raw_bits, lane, first);
                registers[first / 2 + 1] |= clip(high << raw_bits, lane, first + 2);
            } else if constexpr (LAYOUT == SMALL) {
                const u32 half = (entry & 0x7F) << raw_bits | (entry & 0x80) << 8;
                registers[first / 2] |= half << 16 * (first & 1);
            } else {
                registers[first / 2] |= clip(exponents_of<LAYOUT>(entry, table), lane, first);
            }
        }
    }

    // Without the halves that lie outside the matrix.
    __device__ __forceinline__ u32 clip(u32 value, u32 lane, u32 first) const {
        return (inside(lane, first) ? value & 0xFFFF : 0) | (inside(lane, first + 1) ? value & 0xFFFF0000 : 0);
    }

    __device__ void add_whole_lanes(u32 lane, u32 (&registers)[LANE_REGISTERS]) const {
        const u32 across = group.cols / LANE_COLS;
        if (lane % 4 >= across) return;
        const u32 lanes = 8 * across, rank = lane / 4 * across + lane % 4;
        u32 done = 0;
        for (u32 part = 8; part >= 1; part /= 2) {
            if (!(field_bits() & part)) continue;
            const u32 half = raw_signed && done == 0 ? 0x8000 | ((1u << (part - 1)) - 1)
                                                     : ((1u << part) - 1) << (done - raw_signed);
            for (u32 index = 0; index < LANE_REGISTERS; index++) {
                const u32 word = index / (LANE_REGISTERS / part), run = word / 4 * 4;
                const u32 width = min_u32(4, part - run);
                const u32 at = done * lanes + run * lanes + rank * width + (word - run);
                const u32 packed = __ldg(reinterpret_cast<const u32*>(raw) + at);
                registers[index] |= rotate_right(packed, part * (index % (LANE_REGISTERS / part))) & both_halves(half);
            }
            done += part;
        }
    }

    __device__ void add_bit_stream(u32 lane, u32 (&registers)[LANE_REGISTERS]) const {
        u32 at = 0;
        for (u32 before = 0; before < lane; before++) at += weights_of(before);
        const u32 bits = field_bits();
        at *= bits;
        for (u32 n = 0; n < LANE_WEIGHTS; n++) {
            if (!inside(lane, n)) continue;
            u32 field = 0;
            for (u32 bit = 0; bit < bits; bit++, at++) field |= (__ldg(raw + at / 8) >> (at % 8) & 1u) << bit;
            u32 half = field & ((1u << raw_bits) - 1);
            if (raw_signed) half |= (field >> raw_bits & 1) << 15;
            registers[n / 2] |= half << 16 * (n & 1);
        }
    }
};
