// Where the slots of sequences lie in a layer's keys and values.
//
// Keys and values are rows of head_dim elements. A sequence's slots are cut into pages of 1 << shift slots; the rows of one
// key head in one page lie one behind the other. A cache that gives each sequence one page for all its slots needs no table:
// the page is then the sequence's number.
#pragma once
#include "half.cuh"

struct Pages {
    const int* table;   // [batch, per_sequence]: each sequence's pages in order; may be null
    int per_sequence;
    int count;          // pages there are; no other is touched
    int shift;
    int capacity;       // slots of a sequence
    long long page_rows;  // from a page to the next
    long long head_rows;  // from a key head to the next

    // The page of a slot below the capacity, as the table has it.
    __device__ __forceinline__ int of(int sequence, int slot) const {
        return table == nullptr ? sequence : table[size_t(sequence) * per_sequence + (slot >> shift)];
    }

    __device__ __forceinline__ bool has(int page) const { return u32(page) < u32(count); }

    // The row that `slot` has if all slots of its sequence were to lie as those of `page` do: add the slot for its own. A page
    // that is not there is another's, not a wild address.
    __device__ __forceinline__ long long origin(int page, int kv_head, int slot) const {
        const u32 there = min(u32(page), u32(count - 1));
        return there * page_rows + kv_head * head_rows - ((long long)(slot >> shift) << shift);
    }
};
