// Where the parts of a tile lie: docs/format.md, "Geometry" and "Payload of a tile".
#pragma once
#include "half.cuh"

constexpr u32 LANES = 32;
constexpr u32 STRIPE_ROWS = 16;
constexpr u32 GROUP_COLS = 64;
constexpr u32 LANE_COLS = 16;
constexpr u32 LANE_WEIGHTS = 32;
constexpr u32 LANE_REGISTERS = 16;
constexpr u32 NO_TABLE = 255;
constexpr u32 PAYLOAD_UNIT = 16;

enum Layout : u32 { FAST = 0, SMALL = 1, EXACT_BF16 = 2, EXACT_FP16 = 3 };

// Whether a half is a grid value. If not, it is the weight's own bits.
__host__ __device__ constexpr bool is_grid(u32 layout) { return layout <= SMALL; }

// Bits of a half below its exponent.
__host__ __device__ constexpr u32 mantissa_bits(u32 layout) { return layout == EXACT_BF16 ? 7 : 10; }

// One compressed matrix on the device. Mirrors `Weight` of src/ops/cuda/weight.rs.
struct Weight {
    const u8* tiles;
    const u8* payload;
    const u32* entries;  // decode tables, one after the other; behind them a number a table: see `table_of`
    const u16* scales;   // BF16
    u32 rows, cols;
    u32 tile_rows, tile_cols;
    u32 tiles_across;
    u32 payload_units;  // of 16 bytes
    u32 table_count;
    u32 scale_stride;  // 0: one scale for all rows
    u32 layout;
    u32 tile_count;
};

__device__ __forceinline__ u32 min_u32(u32 a, u32 b) { return a < b ? a : b; }

__device__ __forceinline__ u32 div_up(u32 a, u32 b) { return (a + b - 1) / b; }

// a / b for a below 2^21 and b above 0, in a few instructions.
__device__ __forceinline__ u32 divide_small(u32 a, u32 b) {
    // The reciprocal is within 2 units in the last place of 24 bits, so this is within 1 of the quotient.
    u32 quotient = u32(float(a) * __fdividef(1.0f, float(b)));
    if ((quotient + 1) * b <= a) quotient++;
    if (quotient * b > a) quotient--;
    return quotient;
}

__device__ __forceinline__ float scale_of(const Weight& weight, u32 row) {
    return bf16_to_float(__ldg(weight.scales + row * weight.scale_stride));
}

// A tile as its header describes it. Offsets are bytes of the payload buffer and never pass its end.
struct Tile {
    u32 row, col;    // of the matrix
    u32 rows, cols;  // inside the matrix
    u32 table;       // or NO_TABLE
    u32 raw_bits;    // r
    bool left, wide_lengths, wide_escapes;
    u32 escapes;
    u64 begin, end;

    __device__ __forceinline__ u32 stripes() const { return div_up(rows, STRIPE_ROWS); }
    __device__ __forceinline__ u32 groups_across() const { return div_up(cols, GROUP_COLS); }
    __device__ __forceinline__ bool has_symbols() const { return table != NO_TABLE; }
    // Whether the raw bits of a weight have a sign, and how many they are.
    __device__ __forceinline__ bool raw_signed(u32 layout) const {
        return has_symbols() ? layout != SMALL : raw_bits > 0;
    }
    __device__ __forceinline__ u32 field_bits(u32 layout) const { return raw_bits + raw_signed(layout); }
};

// Rows and columns of a group that are inside the matrix.
struct Group {
    u32 rows, cols;

    __device__ __forceinline__ bool full() const { return rows == STRIPE_ROWS && cols == GROUP_COLS; }
    __device__ __forceinline__ bool lanes_are_whole() const { return rows == STRIPE_ROWS && cols % LANE_COLS == 0; }
};

__device__ __forceinline__ Group group_of(const Tile& tile, u32 stripe, u32 group) {
    return {min_u32(STRIPE_ROWS, tile.rows - stripe * STRIPE_ROWS), min_u32(GROUP_COLS, tile.cols - group * GROUP_COLS)};
}

__device__ __forceinline__ u32 group_bytes(const Group& group, u32 field_bits) {
    return (group.rows * group.cols * field_bits + 127) / 128 * 16;
}

// The 8 bytes of a tile's header and the offset that follows it.
struct TileHeader {
    u32 offset, packed, next_offset;
};

__device__ __forceinline__ TileHeader load_header(const Weight& weight, u32 index) {
    const uint2 own = __ldg(reinterpret_cast<const uint2*>(weight.tiles) + index);
    const u32* offsets = reinterpret_cast<const u32*>(weight.tiles);
    const u32 next = index + 1 < weight.tile_count ? __ldg(offsets + 2 * (index + 1)) : weight.payload_units;
    return {own.x, own.y, next};
}

// What a tile header says, within what its layout allows.
__device__ __forceinline__ u32 raw_bits_of(u32 layout, u32 said, bool has_symbols) {
    if (!is_grid(layout)) return has_symbols ? mantissa_bits(layout) : 0;
    return min_u32(said, !has_symbols ? 10 : layout == FAST ? 8 : 3);
}

// The tile in row `down` and column `across` of the grid. The host has checked the header; bounds are enforced again, because a
// decoder must not leave its buffers whatever they hold by now.
__device__ __forceinline__ Tile tile_at(const Weight& weight, u32 down, u32 across, const TileHeader& header) {
    Tile tile;
    tile.row = down * weight.tile_rows;
    tile.col = across * weight.tile_cols;
    tile.rows = min_u32(weight.tile_rows, weight.rows - tile.row);
    tile.cols = min_u32(weight.tile_cols, weight.cols - tile.col);
    tile.table = header.packed & 255;
    if (tile.table != NO_TABLE) tile.table = min_u32(tile.table, weight.table_count - 1);
    const u32 flags = header.packed >> 8;
    tile.raw_bits = raw_bits_of(weight.layout, flags & 15, tile.table != NO_TABLE);
    tile.left = is_grid(weight.layout) && (flags >> 4 & 1);
    tile.wide_lengths = flags >> 5 & 1;
    tile.wide_escapes = flags >> 6 & 1;
    tile.escapes = header.packed >> 16;
    const u32 end = min_u32(header.next_offset, weight.payload_units);
    tile.begin = u64(min_u32(header.offset, end)) * PAYLOAD_UNIT;
    tile.end = u64(end) * PAYLOAD_UNIT;
    return tile;
}

// Byte offsets of a tile's sections in the payload buffer.
struct Sections {
    u64 raw, words, end;
    bool valid;  // they fit between the tile's begin and end
};

__device__ __forceinline__ u32 raw_section_bytes(const Tile& tile, u32 field_bits) {
    if (tile.rows % STRIPE_ROWS == 0 && tile.cols % GROUP_COLS == 0) return tile.rows * tile.cols / 8 * field_bits;
    const u32 stripes = tile.stripes(), across = tile.groups_across();
    const Group inner = {STRIPE_ROWS, GROUP_COLS};
    const Group corner = group_of(tile, stripes - 1, across - 1);
    const Group right = {stripes > 1 ? STRIPE_ROWS : corner.rows, corner.cols};
    const Group bottom = {corner.rows, across > 1 ? GROUP_COLS : corner.cols};
    const u32 upper = (across - 1) * group_bytes(inner, field_bits) + group_bytes(right, field_bits);
    return (stripes - 1) * upper + (across - 1) * group_bytes(bottom, field_bits) + group_bytes(corner, field_bits);
}

__device__ __forceinline__ Sections sections_of(const Tile& tile, u32 layout) {
    Sections sections;
    const u32 heads = tile.has_symbols() ? 4 * LANES + LANES * (tile.wide_lengths ? 2 : 1) : 0;
    sections.raw = tile.begin + heads;
    sections.words = sections.raw + raw_section_bytes(tile, tile.field_bits(layout));
    sections.end = tile.end;
    sections.valid = sections.words <= tile.end;
    return sections;
}

// Escapes of a tile in the payload: positions, then values.
struct Escapes {
    const u8* positions;
    const u8* values;
    u32 count;
    bool wide;

    __device__ __forceinline__ u32 position(u32 index) const {
        return u32(__ldg(positions + 2 * index)) | u32(__ldg(positions + 2 * index + 1)) << 8;
    }
    __device__ __forceinline__ int value(u32 index) const {
        if (!wide) return static_cast<signed char>(__ldg(values + index));
        return static_cast<short>(u32(__ldg(values + 2 * index)) | u32(__ldg(values + 2 * index + 1)) << 8);
    }
};

// `word_count` is the sum of the lanes' lengths. None where they would pass the end of the payload.
__device__ __forceinline__ Escapes escapes_of(const Weight& weight, const Tile& tile, const Sections& sections, u32 word_count) {
    const u64 positions = sections.words + 2 * u64(word_count);
    const u64 values = positions + 2 * u64(tile.escapes);
    const bool fits = sections.valid && values + u64(tile.escapes) * (tile.wide_escapes ? 2 : 1) <= sections.end;
    return {weight.payload + positions, weight.payload + values, fits ? tile.escapes : 0, tile.wide_escapes};
}
