// A compressed weight, or a band of its tiles, to a row-major dense matrix. One warp a tile.
#include "dequantize.cuh"

// Mirrors `ScratchArguments` of src/ops/cuda/decode_to_scratch.rs.
struct Arguments {
    Weight weight;
    void* out;        // rows of `cols` elements, from the first row of `first_tile`
    u32 first_tile;   // the leftmost of its band
    u32 tile_count;
    u32 words_bytes;  // of one warp
    u32 padding;
};

template <u32 LAYOUT, u32 ELEMENT>
__device__ __forceinline__ void decode_tile(const Arguments& arguments, u32 index, const WarpMemory& memory, u32 lane) {
    typedef typename ElementOf<ELEMENT>::Type Type;
    const Weight& weight = arguments.weight;
    const Tile tile = tile_at(weight, index / weight.tiles_across, index % weight.tiles_across, load_header(weight, index));
    OpenTile open;
    open.open(weight, tile, memory, lane);
    if (!open.sections.valid) return;
    const Table table = table_of<LAYOUT>(weight, tile, memory.tables);
    const Escapes escapes = escapes_of(weight, tile, open.sections, open.word_count);
    const u32 first_row = arguments.first_tile / weight.tiles_across * weight.tile_rows;
    const u64 stride = weight.cols;
    Type* out = static_cast<Type*>(arguments.out) + u64(tile.row - first_row) * stride + tile.col;
    Lane own = open.lane;
    const u8* raw = weight.payload + open.sections.raw;
#pragma unroll 1
    for (u32 stripe = 0; stripe < tile.stripes(); stripe++) {
        Type* rows = out + u64(stripe) * STRIPE_ROWS * stride;
        if (is_grid(LAYOUT) && tile.left) {
            LeftSink<ELEMENT> sink = {tile, escapes, rows, stride, stripe, lane, 0};
            sink.scales[0].load(weight, tile.row + stripe * STRIPE_ROWS + lane / 4);
            sink.scales[1].load(weight, tile.row + stripe * STRIPE_ROWS + lane / 4 + 8);
            raw = decode_groups_slowly<LAYOUT>(tile, own, stripe == 0, table, stripe, 0, raw, lane, sink);
            continue;
        }
        RowMajorSink<LAYOUT, ELEMENT, true> whole;
        whole.start(weight, tile, stripe, 0, rows, stride, lane);
        const bool whole_rows = tile.rows >= (stripe + 1) * STRIPE_ROWS && rows_are_aligned(rows, stride);
        const u32 full = whole_rows && tile.has_symbols() && whole.scales_are_easy() ? tile.cols / GROUP_COLS : 0;
        if (full > 0) {
            raw = decode_full_groups_of<LAYOUT>(tile.raw_bits, own, stripe == 0, table, raw, full, lane, whole);
        }
        if (full < tile.groups_across()) {
            RowMajorSink<LAYOUT, ELEMENT, false> sink;
            sink.start(weight, tile, stripe, full, rows, stride, lane);
            raw = decode_groups_slowly<LAYOUT>(tile, own, stripe == 0 && full == 0, table, stripe, full, raw, lane, sink);
        }
    }
    __syncwarp();
    if (!tile.left) store_escapes<LAYOUT, ELEMENT>(weight, tile, escapes, 0, tile.rows, out, stride, lane);
}

// Shared memory: tables, the warps' words.
template <u32 LAYOUT, u32 ELEMENT>
__device__ __forceinline__ void decode_to_scratch(const Arguments& arguments) {
    extern __shared__ __align__(16) u8 dynamic[];
    u8* shared = align_for_tables<LAYOUT>(dynamic);
    const u32 lane = threadIdx.x % LANES, warp = threadIdx.x / LANES, warps = blockDim.x / LANES;
    const u32 table_bytes = arguments.weight.table_count * (4u << scale_bits(LAYOUT));
    load_tables(arguments.weight, table_bytes, shared);
    __syncthreads();
    overlap_trigger();
    overlap_wait();
    const u32 base = shared_address(shared);
    const WarpMemory memory = {base + table_bytes + warp * arguments.words_bytes, arguments.words_bytes, base};
    for (u32 tile = blockIdx.x + warp * gridDim.x; tile < arguments.tile_count; tile += warps * gridDim.x) {
        decode_tile<LAYOUT, ELEMENT>(arguments, arguments.first_tile + tile, memory, lane);
    }
}

// A module has one kernel, which its defines name: src/cuda/kernels.rs.
#ifndef KERNEL
#define KERNEL decode_to_scratch_fast_f16
#define KERNEL_LAYOUT FAST
#define KERNEL_ELEMENT F16
#endif

extern "C" __global__ void __launch_bounds__(512, 2) KERNEL(const __grid_constant__ Arguments arguments) {
    decode_to_scratch<KERNEL_LAYOUT, KERNEL_ELEMENT>(arguments);
}
