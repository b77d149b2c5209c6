// One warp decodes one tile and hands its weights to a sink, k-step by k-step.
#pragma once
#include "group.cuh"

// Copies 16 bytes; `wait_async` waits for all such copies of this thread.
__device__ __forceinline__ void copy_async(u32 shared, const void* global) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared), "l"(global) : "memory");
}

__device__ __forceinline__ void wait_async() { asm volatile("cp.async.wait_all;" ::: "memory"); }

// Copies that are committed together can be waited for while later ones are on their way.
__device__ __forceinline__ void commit_async() { asm volatile("cp.async.commit_group;" ::: "memory"); }

__device__ __forceinline__ void wait_async_but_last() { asm volatile("cp.async.wait_group 1;" ::: "memory"); }

// `shared` moved up to where a table of this layout may begin.
template <u32 LAYOUT>
__device__ __forceinline__ u8* align_for_tables(u8* shared) {
    constexpr u32 TABLE_BYTES = 4u << scale_bits(LAYOUT);
    return shared + (TABLE_BYTES - shared_address(shared) % TABLE_BYTES) % TABLE_BYTES;
}

// What a warp has of shared memory.
struct WarpMemory {
    u32 words;        // address of its buffer
    u32 words_bytes;  // a multiple of 16
    u32 tables;       // address of the block's first decode table
};

// What a tile stores for each lane: the state it begins with and its number of words.
struct LaneHead {
    u32 state, length;
};

// A tile whose words are on their way into shared memory.
struct OpenTile {
    Tile tile;
    Sections sections;
    u32 word_count;
    Lane lane;

    // Starts to copy the words, reads the lane's state and finds its first word.
    __device__ __forceinline__ void open(const Weight& weight, const Tile& of, const WarpMemory& memory, u32 lane_index) {
        const LaneHead head = begin(weight, of, memory, lane_index);
        place(head, memory, lane_index);
    }

    // The first half of `open`: what comes back is on its way.
    __device__ __forceinline__ LaneHead begin(const Weight& weight, const Tile& of, const WarpMemory& memory, u32 lane_index) {
        tile = of;
        sections = sections_of(tile, weight.layout);
        // No lane reads the words of the tile before any more.
        __syncwarp();
        if (!sections.valid) return {0, 0};
        // Behind the words, of which there may be none, are the escapes.
        copy_words(weight, memory, lane_index);
        if (!tile.has_symbols()) return {0, 0};
        const u8* heads = weight.payload + tile.begin;
        const u8* lengths = heads + 4 * LANES;
        const u32 state = __ldg(reinterpret_cast<const u32*>(heads) + lane_index);
        if (tile.wide_lengths) return {state, __ldg(reinterpret_cast<const u16*>(lengths) + lane_index)};
        return {state, __ldg(lengths + lane_index)};
    }

    // The second half: a lane's words follow those of the lanes before.
    __device__ __forceinline__ void place(const LaneHead& head, const WarpMemory& memory, u32 lane_index) {
        u32 sum = head.length;
#pragma unroll
        for (u32 distance = 1; distance < LANES; distance *= 2) {
            const u32 below = __shfl_up_sync(~0u, sum, distance);
            if (lane_index >= distance) sum += below;
        }
        word_count = __shfl_sync(~0u, sum, LANES - 1);
        lane.begin(memory.words + min_u32(2 * (sum - head.length), memory.words_bytes));
        lane.state = head.state;
    }

private:
    __device__ __forceinline__ void copy_words(const Weight& weight, const WarpMemory& memory, u32 lane_index) const {
        const u64 available = sections.end - sections.words;
        const u32 bytes = available < memory.words_bytes ? u32(available) : memory.words_bytes;
        const u8* from = weight.payload + sections.words;
        for (u32 at = 16 * lane_index; at < bytes; at += 16 * LANES) copy_async(memory.words + at, from + at);
    }
};

// Takes the first word of each lane, if it has any, once the words and escapes are there.
__device__ __forceinline__ void start_lane(Lane& lane) {
    wait_async();
    // Other lanes copied this lane's words.
    __syncwarp();
    lane.word = load_shared_u16(lane.address);
    lane.address += 2;
}

// Begins to copy a weight's decode tables, `bytes` of them, to an address of shared memory. The block must wait for the copies and
// synchronize before it uses them.
__device__ __forceinline__ void copy_tables(const Weight& weight, u32 bytes, u32 shared) {
    const u8* entries = reinterpret_cast<const u8*>(weight.entries);
    for (u32 at = 16 * threadIdx.x; at < bytes; at += 16 * blockDim.x) copy_async(shared + at, entries + at);
}

// The table of a tile, whose weight's first lies at `tables`.
template <u32 LAYOUT>
__device__ __forceinline__ Table table_of(const Weight& weight, const Tile& tile, u32 tables) {
    const u32 index = tile.has_symbols() ? tile.table : 0;
    Table table = {tables + index * (4u << scale_bits(LAYOUT)), 0};
    if constexpr (!is_grid(LAYOUT)) table.exponent_offset = __ldg(weight.entries + (weight.table_count << scale_bits(LAYOUT)) + index);
    return table;
}

// Copies a weight's decode tables, `bytes` of them, into shared memory. The block must synchronize before it uses them.
__device__ __forceinline__ void load_tables(const Weight& weight, u32 bytes, u8* shared) {
    for (u32 at = 16 * threadIdx.x; at < bytes; at += 16 * blockDim.x) {
        *reinterpret_cast<uint4*>(shared + at) = __ldg(reinterpret_cast<const uint4*>(weight.entries) + at / 16);
    }
}

// Decodes the groups of a stripe from `group` on, one weight at a time. `first`: that is the tile's first.
template <u32 LAYOUT, class Sink>
__device__ __forceinline__ const u8* decode_groups_slowly(const Tile& tile, Lane& lane, bool first, const Table& table, u32 stripe,
                                                          u32 group, const u8* raw, u32 lane_index, Sink& sink) {
    if (first) start_lane(lane);
    sink.begin_groups();
#pragma unroll 1
    for (; group < tile.groups_across(); group++) {
        const AnyGroup<LAYOUT> any = {group_of(tile, stripe, group), tile.raw_bits, tile.has_symbols(), tile.raw_signed(LAYOUT),
                                      table, raw};
        u32 all[LANE_REGISTERS];
        // A copy, so that only it lives in memory and not the lane of the fast loop.
        Lane copy = lane;
        any.decode(copy, lane_index, all);
        lane = copy;
        raw += group_bytes(any.group, any.field_bits());
        sink.begin_group();
#pragma unroll
        for (u32 step = 0; step < 4; step++) {
            u32 registers[4];
            sink.before_step(step);
#pragma unroll
            for (u32 index = 0; index < 4; index++) registers[index] = all[4 * step + index];
            sink.step(step, registers);
        }
        sink.end_group();
    }
    return raw;
}

// Decodes `count` full groups whose R raw bits are known to the compiler. `first`: they are the tile's first. Returns where the
// raw bits of the next group begin.
//
// A sink has begin_groups(), called once or more before the first group of a stripe, then begin_group(), before_step(step),
// step(step, registers) and end_group(), called in order; groups follow each other from the tile's first. Sink::ASKS_EARLY: what
// is asked of the memory for the next group is asked before this one is decoded.
template <u32 LAYOUT, u32 R, class Sink>
__device__ __forceinline__ const u8* decode_full_groups(Lane& lane, bool first, const Table& table, const u8* raw,
                                                        u32 count, u32 lane_index, Sink& sink) {
    typedef GroupDecoder<LAYOUT, R> Decoder;
    typedef typename Decoder::Raw Raw;
    Raw next;
    const u8* ahead = Raw::begin(raw, lane_index);
    next.load(ahead, lane_index);
    if (first) start_lane(lane);
    sink.begin_groups();
    ahead += Raw::GROUP_BYTES;
#pragma unroll 1
    for (u32 group = 0; group < count; group++) {
        const Raw own = next;
        if (group + 1 < count) next.load(ahead, lane_index);
        // Keeps the compiler from moving the loads to the end of the loop, where it has registers to spare for them and all of their
        // latency is waited for.
        if (Sink::ASKS_EARLY) __syncwarp();
        sink.begin_group();
#pragma unroll
        for (u32 step = 0; step < 4; step++) {
            u32 registers[4];
            sink.before_step(step);
            Decoder::step(lane, table, own, step, registers);
            sink.step(step, registers);
        }
        sink.end_group();
        ahead += Raw::GROUP_BYTES;
    }
    return raw + count * Raw::GROUP_BYTES;
}

template <u32 LAYOUT, class Sink>
__device__ __forceinline__ const u8* decode_full_groups_of(u32 raw_bits, Lane& lane, bool first, const Table& table,
                                                           const u8* raw, u32 count, u32 lane_index, Sink& sink) {
#define CASE(R) \
    case R: return decode_full_groups<LAYOUT, R>(lane, first, table, raw, count, lane_index, sink)
    if constexpr (!is_grid(LAYOUT)) {
        return decode_full_groups<LAYOUT, mantissa_bits(LAYOUT)>(lane, first, table, raw, count, lane_index, sink);
    } else if constexpr (LAYOUT == SMALL) {
        switch (raw_bits) {
            CASE(0);
            CASE(1);
            CASE(2);
            default: CASE(3);
        }
    } else {
        switch (raw_bits) {
            CASE(0);
            CASE(1);
            CASE(2);
            CASE(3);
            CASE(4);
            CASE(5);
            CASE(6);
            CASE(7);
            default: CASE(8);
        }
    }
#undef CASE
}

// Decodes one stripe. `raw` is where its raw bits begin; returns where the next stripe's do.
template <u32 LAYOUT, class Sink>
__device__ __forceinline__ const u8* decode_stripe(const Tile& tile, Lane& lane, const Table& table, u32 stripe,
                                                   const u8* raw, u32 lane_index, Sink& sink) {
    const bool whole_rows = tile.rows >= (stripe + 1) * STRIPE_ROWS;
    const u32 full = whole_rows && tile.has_symbols() ? tile.cols / GROUP_COLS : 0;
    if (full > 0) {
        raw = decode_full_groups_of<LAYOUT>(tile.raw_bits, lane, stripe == 0, table, raw, full, lane_index, sink);
    }
    if (full == tile.groups_across()) return raw;
    return decode_groups_slowly<LAYOUT>(tile, lane, stripe == 0 && full == 0, table, stripe, full, raw, lane_index, sink);
}
