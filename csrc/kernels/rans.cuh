// One rANS lane of a warp: its state, its words, and the decode tables in shared memory.
#pragma once
#include "tile.cuh"

// An entry of a decode table, one a slot. The reference is src/rans/decoder.rs; entries are made by src/ops/cuda/tables.rs.
//
//   fast   [31:23] frequency, below 512   [15:7] bias   [20:19] [4:3] classes of the first register's two weights
//                                                      [18:17] [2:1] classes of the second register's
//   small  [31:20] frequency, below 4096  [19:8] bias   [7:0] symbol
//   exact  [31:20] frequency, below 4096  [15:4] bias   [19:16] [3:0] classes of the register's two weights
constexpr u32 FAST_SCALE_BITS = 11;
constexpr u32 OTHER_SCALE_BITS = 12;

__host__ __device__ constexpr u32 scale_bits(u32 layout) { return layout == FAST ? FAST_SCALE_BITS : OTHER_SCALE_BITS; }

__device__ __forceinline__ u32 shared_address(const void* pointer) {
    return static_cast<u32>(__cvta_generic_to_shared(pointer));
}

__device__ __forceinline__ u32 load_shared_u32(u32 address) {
    u32 value;
    asm volatile("ld.shared.u32 %0, [%1];" : "=r"(value) : "r"(address));
    return value;
}

__device__ __forceinline__ u32 load_shared_u16(u32 address) {
    u32 value;
    asm volatile("{.reg .u16 h; ld.shared.u16 h, [%1]; cvt.u32.u16 %0, h;}" : "=r"(value) : "r"(address));
    return value;
}

__device__ __forceinline__ uint4 load_shared_u128(u32 address) {
    uint4 value;
    asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w) : "r"(address));
    return value;
}

__device__ __forceinline__ u32 load_shared_u8(u32 address) {
    u32 value;
    asm volatile("{.reg .u16 h; ld.shared.u8 h, [%1]; cvt.u32.u16 %0, h;}" : "=r"(value) : "r"(address));
    return value;
}

// A decode table. Its address is a multiple of its size.
struct Table {
    u32 address;
    // Where classes are exponents: what a class above 0 adds to itself, at a half's exponent, over 16.
    u32 exponent_offset;
};

struct Lane {
    u32 state;
    u32 word;     // the next one, loaded ahead
    u32 address;  // of the word after it
    // 1 and 2^16, from a source that the compiler can't see through: it would make shifts and additions of these multiplications,
    // which run beside the integer units, the busiest ones here.
    u32 one, word_scale;

    __device__ __forceinline__ void begin(u32 words_address) {
        state = word = 0;
        address = words_address;
        one = blockDim.y;
        word_scale = blockDim.y << 16;
    }

    // Moves one word into a state below 2^16. Predicated by hand: the compiler makes a branch of it.
    __device__ __forceinline__ void renormalize() {
        asm volatile(
            "{.reg .pred p;"
            "setp.lt.u32 p, %0, 65536;"
            "@p mad.lo.u32 %0, %0, %3, %1;"
            "@p ld.shared.u16 %1, [%2];"
            "@p mad.lo.u32 %2, %4, 2, %2;}"
            : "+r"(state), "+r"(word), "+r"(address)
            : "r"(word_scale), "r"(one));
    }

    // Pops one symbol and returns its entry.
    template <u32 LAYOUT>
    __device__ __forceinline__ u32 pop(const Table& table) {
        constexpr u32 BITS = scale_bits(LAYOUT);
        u32 slot_address;
        // shl becomes an IMAD, which leaves one integer instruction for the address.
        asm("{.reg .u32 t; shl.b32 t, %1, 2; lop3.b32 %0, t, %2, %3, 0xEA;}"
            : "=r"(slot_address) : "r"(state), "n"(((1 << BITS) - 1) * 4), "r"(table.address));
        const u32 entry = load_shared_u32(slot_address);
        u32 bias;
        if (LAYOUT == FAST) {
            // Likewise: 9 bits from the middle cost one integer instruction.
            asm("{.reg .u32 t; mul.lo.u32 t, %1, 65536; shr.u32 %0, t, 23;}" : "=r"(bias) : "r"(entry));
            state = (entry >> 23) * (state >> BITS) + bias;
        } else if (!is_grid(LAYOUT)) {
            asm("{.reg .u32 t; mul.lo.u32 t, %1, 65536; shr.u32 %0, t, 20;}" : "=r"(bias) : "r"(entry));
            state = (entry >> 20) * (state >> BITS) + bias;
        } else {
            bias = entry >> 8 & 0xFFF;
            state = (entry >> 20) * (state >> BITS) + bias;
        }
        renormalize();
        return entry;
    }
};
