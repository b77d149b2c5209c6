// y = x W^T + bias, multiplied on the tensor cores while the weights are decoded.
//
// A thread block owns whole bands (rows of tiles) and its warps take their tiles in order. A warp sums over the columns of its
// tile in registers; the sums of a band's tiles are added from left to right, so that the result does not depend on which warp was
// faster, on the launch, or on the other rows of x. Either each tile leaves its sums in shared memory, and the last warp of a band to come
// adds all of them; or, where those of many bands have no room, each tile in its turn adds its own to those before.
#include "decode.cuh"

constexpr u32 MOST_WEIGHTS = 3;
constexpr u32 MMA_COLS = 8;

// One of the weights that share x. Mirrors `Part` of src/ops/cuda/fused_linear.rs.
struct Part {
    Weight weight;
    void* y;            // rows of `y_stride` elements
    const float* bias;  // or null
    u32 bands;
    u32 first_table;    // in shared memory
};

// Mirrors `Arguments` of src/ops/cuda/fused_linear.rs.
struct Arguments {
    Part parts[MOST_WEIGHTS];
    u32 part_count;
    u32 bands;         // of all parts
    u32 tiles_across;  // the most of any part
    u32 batch;               // rows of `x`
    const u16* x;            // BF16 if the weights are, else FP16, zero from `cols` to the end of a group: rows of `x_stride` elements, or
                             // packed, see `PackedInput`
    const int* x_exponents;  // a row of x was divided by 2 to this power; null: it was not
    u32 x_stride;
    u32 y_stride;
    u32 y_type;        // 0: FP32, 1: FP16, 2: BF16
    u32 table_bytes;   // of all parts
    u32 words_bytes;   // of one warp
    u32 slots;         // bands in flight
    u32 set;           // bands whose tiles are taken column by column, before those of the next set
    u32 places;        // tiles whose sums a band in flight has room for: all, or one where they add theirs in turn
    u32 x_pieces;      // rows of `x` for one of y: 2 where the second's product is added to the first's ...
    float x_second;    // ... times this
};

#define MULTIPLY(TYPE)                                                                                                       \
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32." TYPE "." TYPE                                                      \
                 ".f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"                                      \
                 : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])                                                \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1))

// A k-step of a tile of this layout.
template <u32 LAYOUT>
__device__ __forceinline__ void multiply(float (&sums)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    if constexpr (LAYOUT == EXACT_BF16) {
        MULTIPLY("bf16");
    } else {
        MULTIPLY("f16");
    }
}
#undef MULTIPLY

// Where x comes in rows: this lane's columns of a group. A lane whose row is beyond the batch reads the last row: its products are
// columns of the result that nobody looks at.
template <u32 NB>
struct RowInput {
    const u16* rows[NB];
    uint4 low[NB], high[NB];

    __device__ __forceinline__ void start(const Arguments& arguments, u32 first_col, u32 lane) {
#pragma unroll
        for (u32 b = 0; b < NB; b++) {
            const u32 row = min_u32(b * MMA_COLS + lane / 4, arguments.batch - 1);
            rows[b] = arguments.x + u64(row) * arguments.x_stride + first_col + lane % 4 * LANE_COLS;
        }
    }

    __device__ __forceinline__ void begin_group() {
#pragma unroll
        for (u32 b = 0; b < NB; b++) {
            low[b] = reinterpret_cast<const uint4*>(rows[b])[0];
            high[b] = reinterpret_cast<const uint4*>(rows[b])[1];
        }
    }

    __device__ __forceinline__ void before_step(u32) {}

    // What block `b` is multiplied with in a k-step.
    __device__ __forceinline__ uint2 of(u32 step, u32 b) const {
        const uint4 own = step < 2 ? low[b] : high[b];
        return step & 1 ? make_uint2(own.z, own.w) : make_uint2(own.x, own.y);
    }

    __device__ __forceinline__ void end_group() {
#pragma unroll
        for (u32 b = 0; b < NB; b++) rows[b] += GROUP_COLS;
    }

    // Where the elements of a block's row `row` begin, and where the one of this column lies from there on.
    static __device__ __forceinline__ const u16* begin_row(const Arguments& arguments, u32 row, u32 b) {
        return arguments.x + u64(min_u32(b * MMA_COLS + row, arguments.batch - 1)) * arguments.x_stride;
    }
    static __device__ __forceinline__ u32 offset(u32, u32 col) { return col; }
};

// Where x is packed, in the order in which it is multiplied: for each k-step what each lane takes of two blocks, 16 bytes a lane; the
// two blocks' neighbors follow, then the next k-step. There are rows for all blocks. `pack_rows` of activations.cu writes it.
template <u32 NB>
struct PackedInput {
    static constexpr u32 PAIRS = NB / 2;
    static constexpr u32 STEP = PAIRS * LANES;  // in units of 16 bytes
    const uint4* packed;
    uint4 own[PAIRS];

    __device__ __forceinline__ void start(const Arguments& arguments, u32 first_col, u32 lane) {
        packed = reinterpret_cast<const uint4*>(arguments.x) + first_col / GROUP_COLS * (4 * STEP) + lane;
    }

    __device__ __forceinline__ void begin_group() {}

    // One k-step; the compiler loads ahead what it has registers for.
    __device__ __forceinline__ void before_step(u32 step) {
#pragma unroll
        for (u32 pair = 0; pair < PAIRS; pair++) own[pair] = packed[step * STEP + pair * LANES];
    }

    __device__ __forceinline__ uint2 of(u32, u32 b) const {
        const uint4 both = own[b / 2];
        return b & 1 ? make_uint2(both.z, both.w) : make_uint2(both.x, both.y);
    }

    __device__ __forceinline__ void end_group() { packed += 4 * STEP; }

    // As for rows as they are: `begin_row` tells the blocks apart, `offset` the rows of a block.
    static __device__ __forceinline__ const u16* begin_row(const Arguments& arguments, u32, u32 b) {
        return arguments.x + b / 2 * (LANES * 8) + b % 2 * 4;
    }
    static __device__ __forceinline__ u32 offset(u32 row, u32 col) {
        const u32 lane = row * 4 + col % GROUP_COLS / LANE_COLS, step = col / GROUP_COLS * 4 + col % LANE_COLS / 4;
        return (step * STEP + lane) * 8 + col % 4;
    }
};

template <u32 NB>
struct InputOf {
    typedef PackedInput<NB> Type;
};
template <>
struct InputOf<1> {
    typedef RowInput<1> Type;
};

// Multiplies the k-steps of a tile with NB blocks of 8 rows of x.
template <u32 LAYOUT, u32 NB>
struct MultiplySink {
    typename InputOf<NB>::Type x;
    float sums[NB][4];
    static constexpr bool ASKS_EARLY = true;

    __device__ __forceinline__ void start(const Arguments& arguments, u32 first_col, u32 lane) { x.start(arguments, first_col, lane); }

    __device__ __forceinline__ void clear() {
#pragma unroll
        for (u32 b = 0; b < NB; b++)
#pragma unroll
            for (u32 i = 0; i < 4; i++) sums[b][i] = 0;
    }

    // The first thing that another kernel wrote is x.
    __device__ __forceinline__ void begin_groups() { overlap_wait(); }
    __device__ __forceinline__ void begin_group() { x.begin_group(); }
    __device__ __forceinline__ void before_step(u32 step) { x.before_step(step); }

    __device__ __forceinline__ void step(u32 step, const u32 (&registers)[4]) {
#pragma unroll
        for (u32 b = 0; b < NB; b++) {
            const uint2 own = x.of(step, b);
            multiply<LAYOUT>(sums[b], registers, own.x, own.y);
        }
    }

    __device__ __forceinline__ void end_group() { x.end_group(); }
};

// The escapes of a tile where its words are, in shared memory: positions, then values.
struct SharedEscapes {
    u32 positions, values;  // addresses
    u32 count;
    bool wide;

    __device__ __forceinline__ u32 position(u32 index) const { return load_shared_u16(positions + 2 * index); }
    template <bool WIDE>
    __device__ __forceinline__ int value(u32 index) const {
        if (!WIDE) return static_cast<signed char>(load_shared_u8(values + index));
        return static_cast<short>(load_shared_u16(values + 2 * index));
    }
};

// An escape as the halves of up to two weights that add up to it. The bits of an FP16 below 2048 times 2^-24 are that number; what
// is wide has more bits than that.
struct EscapeHalves {
    u32 low, high;

    template <u32 LAYOUT, bool WIDE>
    static __device__ __forceinline__ EscapeHalves of(int value) {
        if (!is_grid(LAYOUT)) return {u32(value) & 0xFFFF, 0};
        if (!WIDE) return {value < 0 ? u32(-value) | 0x8000 : u32(value), 0};
        const int low = value & 31;
        return {u32(low), float_to_half(float(value - low) * 5.9604644775390625e-8f)};
    }
};

// A lane's sums of a stripe: of NB blocks of 8 rows of x.
template <u32 NB>
struct Sums {
    float of[NB][4];
};

// `sums` with the escapes of one stripe: 16 of them are the columns of a k-step. Not inlined: few tiles have any.
template <u32 LAYOUT, u32 NB, bool WIDE>
__device__ __noinline__ Sums<NB> with_escapes(const Arguments& arguments, SharedEscapes escapes, u32 tile_col, u32 tile_cols, u32 stripe,
                                              Sums<NB> sums) {
    const u32 lane = threadIdx.x % LANES, row = lane / 4, first = 2 * (lane % 4);
    for (u32 base = 0; base < escapes.count; base += 16) {
        u32 whole[4] = {0, 0, 0, 0}, high[4] = {0, 0, 0, 0}, offsets[4];
        bool used[4];
#pragma unroll
        for (u32 k = 0; k < 4; k++) {
            const u32 index = base + first + (k & 1) + 8 * (k >> 1);
            offsets[k] = 0;
            used[k] = false;
            if (index >= escapes.count) continue;
            const u32 position = escapes.position(index);
            const u32 tile_row = divide_small(position, tile_cols);
            const u32 own_row = tile_row - stripe * STRIPE_ROWS;
            offsets[k] = InputOf<NB>::Type::offset(row, tile_col + position - tile_row * tile_cols);
            used[k] = own_row < STRIPE_ROWS;
            const EscapeHalves halves = EscapeHalves::of<LAYOUT, WIDE>(escapes.value<WIDE>(index));
            const u32 register_index = 2 * (k >> 1), shift = 16 * (k & 1);
            if (own_row == row) whole[register_index] |= halves.low << shift, high[register_index] |= halves.high << shift;
            if (own_row == row + 8) whole[register_index + 1] |= halves.low << shift, high[register_index + 1] |= halves.high << shift;
        }
#pragma unroll
        for (u32 b = 0; b < NB; b++) {
            u32 x[4];
            const u16* own = InputOf<NB>::Type::begin_row(arguments, row, b);
#pragma unroll
            for (u32 k = 0; k < 4; k++) x[k] = used[k] ? own[offsets[k]] : 0;
            multiply<LAYOUT>(sums.of[b], whole, x[0] | x[1] << 16, x[2] | x[3] << 16);
            if (WIDE && is_grid(LAYOUT)) multiply<LAYOUT>(sums.of[b], high, x[0] | x[1] << 16, x[2] | x[3] << 16);
        }
    }
    return sums;
}

__device__ __forceinline__ u32 load_acquire(u32 address) {
    u32 value;
    asm volatile("ld.acquire.cta.shared.u32 %0, [%1];" : "=r"(value) : "r"(address) : "memory");
    return value;
}

__device__ __forceinline__ void store_release(u32 address, u32 value) {
    asm volatile("st.release.cta.shared.u32 [%0], %1;" ::"r"(address), "r"(value) : "memory");
}

// What was there before.
__device__ __forceinline__ u32 add_acquire_release(u32 address, u32 value) {
    u32 before;
    asm volatile("atom.acq_rel.cta.shared.add.u32 %0, [%1], %2;" : "=r"(before) : "r"(address), "r"(value) : "memory");
    return before;
}

// A tile of this block's share, in the order in which warps take them.
struct Task {
    u32 ordinal;  // the band's number in this block
    u32 part, band, tile;
    bool none;   // there are no more
    bool empty;  // the last set has fewer bands, or this part is narrower than another: its bands have fewer tiles
};

// Sets of bands follow each other. In a set the tiles of the first column come first, so that warps that work at the same time read
// the same columns of x, and all but one of them find it in the L1. Few rows have no sets: each band is one.
template <bool SETS>
__device__ __forceinline__ Task task_at(const Arguments& arguments, u32 index) {
    Task task;
    if constexpr (SETS) {
        const u32 first = divide_small(index, arguments.set * arguments.tiles_across) * arguments.set;
        const u32 of_set = index - first * arguments.tiles_across;
        task.tile = divide_small(of_set, arguments.set);
        task.ordinal = first + of_set - task.tile * arguments.set;
        task.none = blockIdx.x + first * gridDim.x >= arguments.bands;
    } else {
        task.ordinal = divide_small(index, arguments.tiles_across);
        task.tile = index - task.ordinal * arguments.tiles_across;
    }
    task.band = blockIdx.x + task.ordinal * gridDim.x;
    const bool missing = task.band >= arguments.bands;
    if (!SETS) task.none = missing;
    task.part = 0;
    if (arguments.part_count > 1 && task.band >= arguments.parts[0].bands) {
        task.part = 1;
        task.band -= arguments.parts[0].bands;
        if (arguments.part_count > 2 && task.band >= arguments.parts[1].bands) {
            task.part = 2;
            task.band -= arguments.parts[1].bands;
        }
    }
    task.empty = missing || task.tile >= arguments.parts[task.part].weight.tiles_across;
    return task;
}

// Where the sums of a band's tiles are added, from left to right: each tile leaves its own, and the last to come adds all of them; or,
// where there is one place for all, each adds its own to those before when it is its turn.
template <u32 NB>
struct Meeting {
    float* sums;  // [slots][places][NB][4][32]
    u32 counts;   // address of one a slot: in the low half the tiles of its present band that came, above it the bands that it has had
    u32 slots, places;

    // True for one of the band's tiles, which gets the total.
    __device__ __forceinline__ bool join(const Task& task, u32 tile_count, u32 lane, Sums<NB>& own) const {
        // It does not count as a band of its slot, so the host puts the weights that have such bands last.
        if (tile_count == 1) return true;
        const u32 bands_before = divide_small(task.ordinal, slots), slot = task.ordinal - bands_before * slots;
        const u32 count = counts + 4 * slot;
        float* band = sums + slot * places * (NB * 4 * LANES) + lane;
        if (NB > 1 && places == 1) return take_turn(band, count, bands_before & 0xFFFF, task.tile, tile_count, lane, own);
        // Bands begin in order, but this one may have come this far while one long before it still waits for a tile.
        while (load_acquire(count) >> 16 != (bands_before & 0xFFFF)) __nanosleep(100);
        float* mine = band + task.tile * (NB * 4 * LANES);
#pragma unroll
        for (u32 b = 0; b < NB; b++)
#pragma unroll
            for (u32 i = 0; i < 4; i++) mine[(b * 4 + i) * LANES] = own.of[b][i];
        __syncwarp();
        u32 before = 0;
        if (lane == 0) before = add_acquire_release(count, 1);
        before = __shfl_sync(~0u, before, 0) & 0xFFFF;
        if (before + 1 < tile_count) return false;
        // Lane 0 acquired for all.
        __syncwarp();
        add_up(band, tile_count, own);
        __syncwarp();
        if (lane == 0) store_release(count, (bands_before + 1) << 16);
        return true;
    }

private:
    static __device__ __forceinline__ void add_up(const float* band, u32 tile_count, Sums<NB>& total) {
#pragma unroll
        for (u32 b = 0; b < NB; b++)
#pragma unroll
            for (u32 i = 0; i < 4; i++) total.of[b][i] = band[(b * 4 + i) * LANES];
        for (u32 tile = 1; tile < tile_count; tile++) {
            band += NB * 4 * LANES;
#pragma unroll
            for (u32 b = 0; b < NB; b++)
#pragma unroll
                for (u32 i = 0; i < 4; i++) total.of[b][i] += band[(b * 4 + i) * LANES];
        }
    }

    // True for the last tile.
    static __device__ __forceinline__ bool take_turn(float* total, u32 count, u32 bands_before, u32 tile, u32 tile_count, u32 lane,
                                                     Sums<NB>& own) {
        // The tiles that this waits for were begun before, and wait for none that was begun after.
        while (load_acquire(count) != (bands_before << 16 | tile)) __nanosleep(50);
        const bool last = tile + 1 == tile_count;
#pragma unroll
        for (u32 b = 0; b < NB; b++)
#pragma unroll
            for (u32 i = 0; i < 4; i++) {
                float& before = total[(b * 4 + i) * LANES];
                if (tile > 0) own.of[b][i] = before + own.of[b][i];
                if (!last) before = own.of[b][i];
            }
        __syncwarp();
        if (lane == 0) store_release(count, last ? (bands_before + 1) << 16 : bands_before << 16 | (tile + 1));
        return last;
    }
};

__device__ __forceinline__ void store_element(void* y, u32 type, u64 at, float value) {
    if (type == 0) {
        static_cast<float*>(y)[at] = value;
    } else {
        static_cast<u16*>(y)[at] = type == 1 ? float_to_half(value) : float_to_bf16(value);
    }
}

// The scale and the bias of this lane's two rows of a stripe.
struct RowFactors {
    float scales[2], biases[2];

    __device__ __forceinline__ void load(const Part& part, u32 stripe_row, u32 lane) {
#pragma unroll
        for (u32 half = 0; half < 2; half++) {
            const u32 row = min_u32(stripe_row + lane / 4 + 8 * half, part.weight.rows - 1);
            scales[half] = scale_of(part.weight, row);
            biases[half] = part.bias ? __ldg(part.bias + row) : 0;
        }
    }
};

template <u32 LAYOUT>
__device__ __forceinline__ void write_sum(const Arguments& arguments, const Part& part, const RowFactors& factors, u32 half, u32 row,
                                          u32 n, u32 batch, float sum) {
    if (n >= batch) return;
    // Of a grid, the registers hold its values times 2^-24.
    float value = is_grid(LAYOUT) ? sum * 16777216.0f * factors.scales[half] : sum;
    if (arguments.x_exponents) value = ldexpf(value, arguments.x_exponents[n]);
    store_element(part.y, arguments.y_type, u64(n) * arguments.y_stride + row, value + factors.biases[half]);
}

template <u32 LAYOUT, u32 NB>
__device__ __forceinline__ void write_stripe(const Arguments& arguments, const Part& part, const RowFactors& factors, u32 stripe_row,
                                             u32 lane, const Sums<NB>& sums) {
#pragma unroll
    for (u32 half = 0; half < 2; half++) {
        const u32 row = stripe_row + lane / 4 + 8 * half;
        if (row >= part.weight.rows) continue;
#pragma unroll
        for (u32 b = 0; b < NB; b++) {
            const float first = sums.of[b][2 * half], second = sums.of[b][2 * half + 1];
            const u32 n = b * MMA_COLS + 2 * (lane % 4);
            if (arguments.x_pieces == 2) {
                // An infinite weight makes both infinite, or the second NaN.
                const float both = fabsf(first) < __uint_as_float(0x7F800000) ? first + second * arguments.x_second : first;
                write_sum<LAYOUT>(arguments, part, factors, half, row, n / 2, arguments.batch / 2, both);
            } else {
                write_sum<LAYOUT>(arguments, part, factors, half, row, n, arguments.batch, first);
                write_sum<LAYOUT>(arguments, part, factors, half, row, n + 1, arguments.batch, second);
            }
        }
    }
}

// What is kept of a tile that is opened, in shared memory: whatever lived on through the loop over the groups would take registers
// from it, and to find it anew takes long.
struct Record {
    u32 address;  // of two times 16 bytes

    static constexpr u32 BYTES = 32;

    // What the loop over the groups begins with ...
    __device__ __forceinline__ void store(const OpenTile& open, const Task& task) const {
        const Tile& tile = open.tile;
        const u32 flags = tile.table | tile.raw_bits << 8 | u32(open.sections.valid) << 12 | u32(tile.wide_escapes) << 13;
        const u32 raw_units = u32(open.sections.raw / PAYLOAD_UNIT);
        asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(address), "r"(raw_units), "r"(tile.col),
                     "r"(tile.rows << 16 | tile.cols), "r"(tile.escapes << 16 | flags) : "memory");
        asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(address + 16), "r"(task.part), "r"(task.band),
                     "r"(task.ordinal), "r"(task.tile) : "memory");
    }

    __device__ __forceinline__ Task task() const {
        const uint4 words = load_shared_u128(address + 16);
        return {words.z, words.x, words.y, words.w, false, false};
    }

    // ... but for where the tile begins and ends, and its row.
    __device__ __forceinline__ OpenTile open() const {
        const uint4 words = load_shared_u128(address);
        OpenTile open;
        open.sections = {u64(words.x) * PAYLOAD_UNIT, 0, 0, (words.w >> 12 & 1) != 0};
        Tile& tile = open.tile;
        tile.row = 0;
        tile.col = words.y;
        tile.rows = words.z >> 16;
        tile.cols = words.z & 0xFFFF;
        tile.table = words.w & 255;
        tile.raw_bits = words.w >> 8 & 15;
        tile.left = tile.wide_lengths = false;
        tile.wide_escapes = words.w >> 13 & 1;
        tile.escapes = words.w >> 16;
        return open;
    }
};

// What follows a stripe's last group: the sum over the band's tiles, the result. Not inlined, and given only what names the tile:
// whatever lived on through the loop over the groups would take registers from it.
template <u32 LAYOUT, u32 NB>
__device__ __noinline__ void finish_stripe(const Arguments& arguments, const Meeting<NB> meeting, Record record, u32 stripe, Sums<NB> sums) {
    const u32 lane = threadIdx.x % LANES;
    const Task task = record.task();
    const Part& part = arguments.parts[task.part];
    if (!meeting.join(task, part.weight.tiles_across, lane, sums)) return;
    const u32 stripe_row = task.band * part.weight.tile_rows + stripe * STRIPE_ROWS;
    // A damaged tile has not waited yet, and the bias may be another kernel's.
    overlap_wait();
    RowFactors factors;
    factors.load(part, stripe_row, lane);
    write_stripe<LAYOUT, NB>(arguments, part, factors, stripe_row, lane, sums);
}

// The escapes behind the words of an open tile. The host makes room for all of a tile's; whatever passes it is left out.
__device__ __forceinline__ SharedEscapes shared_escapes(const OpenTile& open, const WarpMemory& memory) {
    const Tile& tile = open.tile;
    const u32 positions = 2 * open.word_count, values = positions + 2 * tile.escapes;
    const bool fits = open.sections.valid && values + tile.escapes * (tile.wide_escapes ? 2 : 1) <= memory.words_bytes;
    return {memory.words + positions, memory.words + values, fits ? tile.escapes : 0, tile.wide_escapes};
}

// A tile whose words are on their way, or why there is none.
struct Opened {
    bool none, empty;
    LaneHead head;
};

// Opens the task of this number. All of this is of the weights alone, which no kernel writes.
template <bool SETS>
__device__ __forceinline__ Opened open_task(const Arguments& arguments, u32 task_index, const WarpMemory& memory, Record record, u32 lane) {
    const Task task = task_at<SETS>(arguments, task_index);
    if (task.empty) return {task.none, true, {0, 0}};
    const Weight& weight = arguments.parts[task.part].weight;
    const Tile tile = tile_at(weight, task.band, task.tile, load_header(weight, task.band * weight.tiles_across + task.tile));
    OpenTile open;
    const LaneHead head = open.begin(weight, tile, memory, lane);
    if (lane == 0) record.store(open, task);
    return {false, false, head};
}

__device__ __forceinline__ u32 claim_task(u32* next_task, u32 lane) {
    u32 index = 0;
    if (lane == 0) index = atomicAdd(next_task, 1);
    return __shfl_sync(~0u, index, 0);
}

// Decodes and multiplies an opened tile, and opens the next one: for up to 8 rows as soon as the words of this are used up, so that
// they are on their way while the sums meet those of other tiles. More rows have no registers to spare for that.
template <u32 LAYOUT, u32 NB>
__device__ __forceinline__ Opened run_task(const Arguments& arguments, const Opened& opened, const WarpMemory& memory, Record record,
                                           Record next_record, const Meeting<NB>& meeting, u32* next_task, u32 lane) {
    // Lane 0 wrote the record.
    __syncwarp();
    OpenTile open = record.open();
    open.place(opened.head, memory, lane);
    const Tile& tile = open.tile;
    const bool valid = open.sections.valid;
    const Part& part = arguments.parts[record.task().part];
    const Table table = table_of<LAYOUT>(part.weight, tile, memory.tables + part.first_table * (4u << scale_bits(LAYOUT)));
    const u8* raw = part.weight.payload + open.sections.raw;
    const SharedEscapes escapes = shared_escapes(open, memory);
    Lane own = open.lane;
    MultiplySink<LAYOUT, NB> sink;
    Opened next = {};
#pragma unroll 1
    for (u32 stripe = 0; stripe < tile.stripes(); stripe++) {
        sink.start(arguments, tile.col, lane);
        sink.clear();
        if (valid) raw = decode_stripe<LAYOUT>(tile, own, table, stripe, raw, lane, sink);
        Sums<NB> sums;
#pragma unroll
        for (u32 b = 0; b < NB; b++)
#pragma unroll
            for (u32 i = 0; i < 4; i++) sums.of[b][i] = sink.sums[b][i];
        if (escapes.count > 0) {
            sums = escapes.wide ? with_escapes<LAYOUT, NB, true>(arguments, escapes, tile.col, tile.cols, stripe, sums)
                                : with_escapes<LAYOUT, NB, false>(arguments, escapes, tile.col, tile.cols, stripe, sums);
        }
        const bool last = stripe + 1 == tile.stripes();
        if (NB == 1 && last) next = open_task<(NB > 1)>(arguments, claim_task(next_task, lane), memory, next_record, lane);
        finish_stripe<LAYOUT, NB>(arguments, meeting, record, stripe, sums);
    }
    if (NB > 1) next = open_task<(NB > 1)>(arguments, claim_task(next_task, lane), memory, next_record, lane);
    return next;
}

// Shared memory: tables, the warps' words and two records each, sums and counts of the bands in flight, the next task.
template <u32 LAYOUT, u32 NB>
__device__ __forceinline__ void fused_linear(const Arguments& arguments) {
    extern __shared__ __align__(16) u8 dynamic[];
    u8* shared = align_for_tables<LAYOUT>(dynamic);
    const u32 lane = threadIdx.x % LANES, warp = threadIdx.x / LANES, warps = blockDim.x / LANES;
    const u32 base = shared_address(shared);
    const u32 warp_bytes = arguments.words_bytes + 2 * Record::BYTES;
    float* sums = reinterpret_cast<float*>(shared + arguments.table_bytes + warps * warp_bytes);
    u32* counts = reinterpret_cast<u32*>(sums + arguments.slots * arguments.places * (NB * 4 * LANES));
    u32* next_task = counts + arguments.slots;
    for (u32 part = 0; part < arguments.part_count; part++) {
        const Part& own = arguments.parts[part];
        copy_tables(own.weight, own.weight.table_count * (4u << scale_bits(LAYOUT)), base + own.first_table * (4u << scale_bits(LAYOUT)));
    }
    commit_async();
    // What the first tiles ask of the memory is on its way before the tables are here.
    const WarpMemory memory = {base + arguments.table_bytes + warp * warp_bytes, arguments.words_bytes, base};
    Record record = {memory.words + arguments.words_bytes}, other = {record.address + Record::BYTES};
    Opened opened = open_task<(NB > 1)>(arguments, warp, memory, record, lane);
    commit_async();
    for (u32 slot = threadIdx.x; slot < arguments.slots; slot += blockDim.x) counts[slot] = 0;
    if (threadIdx.x == 0) *next_task = warps;
    wait_async_but_last();
    __syncthreads();
    overlap_trigger();
    const Meeting<NB> meeting = {sums, shared_address(counts), arguments.slots, arguments.places};
    while (!opened.none) {
        if (opened.empty) {
            opened = open_task<(NB > 1)>(arguments, claim_task(next_task, lane), memory, record, lane);
            continue;
        }
        opened = run_task<LAYOUT, NB>(arguments, opened, memory, record, other, meeting, next_task, lane);
        const Record done = record;
        record = other;
        other = done;
    }
}

// A module has one kernel, which its defines name: src/cuda/kernels.rs.
#ifndef KERNEL
#define KERNEL fused_linear_fast_8
#define KERNEL_LAYOUT FAST
#define KERNEL_ROWS 8
#define KERNEL_WARPS 32
#endif

// Of a block with fewer warps each has more registers.
extern "C" __global__ void __launch_bounds__(KERNEL_WARPS * LANES, 1) KERNEL(const __grid_constant__ Arguments arguments) {
    fused_linear<KERNEL_LAYOUT, KERNEL_ROWS / MMA_COLS>(arguments);
}
