// Rows of a dense table, by token. A token that the table has no row for gives NaN: it is seen, and nothing is read outside.
#include "element.cuh"

// Blocks in x share a row, y is the sequence.
template <class E>
__device__ __forceinline__ void embedding(const long long* tokens,        // [rows]
                                          const typename E::Type* table,  // [vocab, width]
                                          typename E::Type* out,          // [rows, width]
                                          int vocab, int width) {
    overlap_wait();
    overlap_trigger();
    const long long token = tokens[blockIdx.y];
    const bool known = token >= 0 && token < vocab;
    out += size_t(blockIdx.y) * width;
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < width; i += gridDim.x * blockDim.x) {
        out[i] = known ? table[size_t(token) * width + i] : E::round(__uint_as_float(0x7fc00000));
    }
}

#define EMBEDDING(name, E)                                                                                             \
    extern "C" __global__ __launch_bounds__(256) void name(const long long* tokens, const E::Type* table,              \
                                                           E::Type* out, int vocab, int width) {                       \
        embedding<E>(tokens, table, out, vocab, width);                                                                \
    }

EMBEDDING(embedding_f32, Fp32)
EMBEDDING(embedding_f16, Fp16)
EMBEDDING(embedding_bf16, Bf16)
