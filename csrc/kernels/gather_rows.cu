// Rows of a compressed matrix by their index, for an embedding. One warp for what one tile has of a row: it decodes the tile's
// stripes down to the row's own.
#include "dequantize.cuh"

// Mirrors `Arguments` of src/ops/cuda/gather_rows.rs.
struct Arguments {
    Weight weight;
    const long long* indices;
    void* out;        // rows of `out_stride` elements
    u64 out_stride;
    u32 count;        // of indices
    u32 words_bytes;  // of one warp
    u32 element;      // an Element
    u32 padding;
};

// A row's part in one tile. Its elements' type is known only at run time: a third of the code, and its stores are few.
struct OutputRow {
    void* elements;
    u32 element;

    __device__ __forceinline__ void store(u32 at, float value) const {
        if (element == F32) {
            static_cast<float*>(elements)[at] = value;
        } else {
            static_cast<u16*>(elements)[at] = element == F16 ? float_to_half(value) : float_to_bf16(value);
        }
    }

    // The weight of a half in a row of this scale.
    template <u32 LAYOUT>
    __device__ __forceinline__ void store_half(u32 at, u32 half, float scale) const {
        if (element == F32) {
            static_cast<float*>(elements)[at] = element_of<LAYOUT, F32>(half, scale);
        } else {
            static_cast<u16*>(elements)[at] =
                element == F16 ? element_of<LAYOUT, F16>(half, scale) : element_of<LAYOUT, BF16>(half, scale);
        }
    }

    __device__ __forceinline__ void fill_with_nan(u32 cols, u32 lane) const {
        for (u32 col = lane; col < cols; col += LANES) store(col, __uint_as_float(QUIET_NAN));
    }
};

// The one row of a tile that is wanted.
struct WantedRow {
    u32 row;  // in the tile

    __device__ __forceinline__ u32 stripe() const { return row / STRIPE_ROWS; }
    // Which of a lane's two rows it is, and whether the lane has it.
    __device__ __forceinline__ u32 half() const { return row % STRIPE_ROWS / 8; }
    __device__ __forceinline__ bool belongs_to(u32 lane) const { return row % 8 == lane / 4; }
};

// What a lane has of a row in one group.
struct LaneRow {
    u32 registers[LANE_COLS / 2];
};

// `col` is the lane's first. Not inlined: the loop over the groups is there once for each number of raw bits.
template <u32 LAYOUT>
__device__ __noinline__ void store_lane_row(OutputRow out, u32 col, u32 cols, float scale, LaneRow row) {
#pragma unroll
    for (u32 n = 0; n < LANE_COLS; n++) {
        const u32 pair = row.registers[n / 2];
        if (col + n < cols) out.store_half<LAYOUT>(col + n, pair >> 16 * (n & 1) & 0xFFFF, scale);
    }
}

// Stores one row of a stripe.
template <u32 LAYOUT>
struct RowSink {
    OutputRow out;
    u32 col;   // of this lane's first in the current group
    u32 cols;  // of the tile; 0 where the lane has none of the row
    bool upper;  // the row is the second of the lane's two
    float scale;
    LaneRow row;

    static constexpr bool ASKS_EARLY = false;

    __device__ __forceinline__ void begin_groups() {}
    __device__ __forceinline__ void begin_group() {}
    __device__ __forceinline__ void before_step(u32) {}

    __device__ __forceinline__ void step(u32 step, const u32 (&registers)[4]) {
        row.registers[2 * step] = upper ? registers[1] : registers[0];
        row.registers[2 * step + 1] = upper ? registers[3] : registers[2];
    }

    __device__ __forceinline__ void end_group() {
        if (cols > 0) store_lane_row<LAYOUT>(out, col, cols, scale, row);
        col += GROUP_COLS;
    }
};

// Stores one row of a stripe that codes differences to the left.
struct LeftRowSink {
    const Tile& tile;
    const Escapes& escapes;
    OutputRow out;
    WantedRow wanted;
    u32 lane;
    bool active;  // the lane has the row, and this is its stripe
    float scale;
    u32 group;
    u32 all[LANE_REGISTERS];

    static constexpr bool ASKS_EARLY = false;

    __device__ __forceinline__ void begin_groups() {}
    __device__ __forceinline__ void begin_group() {}
    __device__ __forceinline__ void before_step(u32) {}
    __device__ __forceinline__ void step(u32 step, const u32 (&registers)[4]) {
        for (u32 index = 0; index < 4; index++) all[4 * step + index] = registers[index];
    }

    __device__ __noinline__ void end_group() {
        short left = 0;
        // Registers run through the 16 columns of both rows: see `weight_row`.
        for (u32 n = 0; active && n < LANE_WEIGHTS; n++) {
            const u32 col = group * GROUP_COLS + weight_col(lane, n);
            if ((n / 2 & 1) != wanted.half() || col >= tile.cols) continue;
            const u32 bits = all[n / 2] >> 16 * (n & 1) & 0xFFFF;
            const int coded = bits & 0x8000 ? -int(bits & 0x7FFF) : int(bits);
            left = static_cast<short>(left + coded + escape_at(escapes, wanted.row * tile.cols + col));
            out.store(col, float(left) * scale);
        }
        group++;
    }
};

template <u32 LAYOUT>
__device__ __forceinline__ void gather_from_tile(const Weight& weight, const OpenTile& open, WantedRow wanted,
                                                 const WarpMemory& memory, const OutputRow& out, u32 lane) {
    const Tile& tile = open.tile;
    const Table table = table_of<LAYOUT>(weight, tile, memory.tables);
    const Escapes escapes = escapes_of(weight, tile, open.sections, open.word_count);
    const float scale = scale_of(weight, tile.row + wanted.row);
    Lane own = open.lane;
    const u8* raw = weight.payload + open.sections.raw;
#pragma unroll 1
    for (u32 stripe = 0; stripe <= wanted.stripe(); stripe++) {
        const bool active = stripe == wanted.stripe() && wanted.belongs_to(lane);
        if (is_grid(LAYOUT) && tile.left) {
            LeftRowSink sink = {tile, escapes, out, wanted, lane, active, scale, 0};
            raw = decode_groups_slowly<LAYOUT>(tile, own, stripe == 0, table, stripe, 0, raw, lane, sink);
            continue;
        }
        RowSink<LAYOUT> sink = {out, lane % 4 * LANE_COLS, active ? tile.cols : 0, wanted.half() == 1, scale};
        raw = decode_stripe<LAYOUT>(tile, own, table, stripe, raw, lane, sink);
    }
    if (tile.left) return;
    // Zeros were stored at the places of the escapes, by other lanes.
    __syncwarp();
    const u32 first = wanted.row * tile.cols;
    for (u32 index = lane; index < escapes.count; index += LANES) {
        const u32 col = escapes.position(index) - first;
        if (col >= tile.cols) continue;
        if constexpr (is_grid(LAYOUT)) {
            out.store(col, float(escapes.value(index)) * scale);
        } else {
            out.store_half<LAYOUT>(col, u32(escapes.value(index)) & 0xFFFF, scale);
        }
    }
}

// `task`: an index and a tile of its row's band.
template <u32 LAYOUT>
__device__ __forceinline__ void gather_task(const Arguments& arguments, u32 task, const WarpMemory& memory, u32 lane) {
    const Weight& weight = arguments.weight;
    const u32 place = task / weight.tiles_across, across = task % weight.tiles_across;
    const long long index = arguments.indices[place];
    const u32 col = across * weight.tile_cols;
    const u64 at = place * arguments.out_stride + col;
    const OutputRow out = {static_cast<u8*>(arguments.out) + at * (arguments.element == F32 ? 4 : 2), arguments.element};
    if (index < 0 || index >= weight.rows) {
        out.fill_with_nan(min_u32(weight.tile_cols, weight.cols - col), lane);
        return;
    }
    const u32 down = u32(index) / weight.tile_rows;
    const Tile tile = tile_at(weight, down, across, load_header(weight, down * weight.tiles_across + across));
    OpenTile open;
    open.open(weight, tile, memory, lane);
    if (open.sections.valid) {
        gather_from_tile<LAYOUT>(weight, open, {u32(index) - tile.row}, memory, out, lane);
    } else {
        out.fill_with_nan(tile.cols, lane);
    }
}

// Shared memory: tables, the warps' words.
template <u32 LAYOUT>
__device__ __forceinline__ void gather_rows(const Arguments& arguments) {
    extern __shared__ __align__(16) u8 dynamic[];
    u8* shared = align_for_tables<LAYOUT>(dynamic);
    const u32 lane = threadIdx.x % LANES, warp = threadIdx.x / LANES, warps = blockDim.x / LANES;
    const u32 table_bytes = arguments.weight.table_count * (4u << scale_bits(LAYOUT));
    load_tables(arguments.weight, table_bytes, shared);
    __syncthreads();
    overlap_trigger();
    overlap_wait();
    const WarpMemory memory = {shared_address(shared) + table_bytes + warp * arguments.words_bytes, arguments.words_bytes, shared_address(shared)};
    const u32 tasks = arguments.count * arguments.weight.tiles_across;
    for (u32 task = blockIdx.x + warp * gridDim.x; task < tasks; task += warps * gridDim.x) {
        gather_task<LAYOUT>(arguments, task, memory, lane);
    }
}

// A module has one kernel, which its defines name: src/cuda/kernels.rs.
#ifndef KERNEL
#define KERNEL gather_rows_fast
#define KERNEL_LAYOUT FAST
#endif

extern "C" __global__ void __launch_bounds__(512, 2) KERNEL(const __grid_constant__ Arguments arguments) {
    gather_rows<KERNEL_LAYOUT>(arguments);
}
