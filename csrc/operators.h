// The operators' work, done in Rust (src/nn/operator.rs). Every function returns null, or a message that
// codecllm_free_message frees. Tensors are borrowed for the call; what `out` receives is the caller's to delete.
#pragma once
#include <cstddef>
#include <cstdint>

#include <ATen/core/Tensor.h>

extern "C" {

// `buffers`: header, scales, tables, tiles, payload. `bias` may be null.
// Where it `projects`, the dense weight was [in_features, out_features].
char* codecllm_linear(
    const char* path, bool projects, const at::Tensor* x, const at::Tensor* const* buffers, const at::Tensor* bias, at::Tensor** out);

// Rows in the dtype of `like`.
char* codecllm_embedding(
    const char* path, const at::Tensor* ids, const at::Tensor* const* buffers, const at::Tensor* like, at::Tensor** out);

// `layout` may be null. Five buffers for each of `count` matrices into `out`, which has room for them; empty ones for a matrix that would not get smaller or,
// to be coded exactly, has more bits than BF16 and FP16 have.
char* codecllm_compress(
    std::size_t count, const at::Tensor* const* weights, const char* const* paths, const bool* row_access,
    const char* target, const char* layout, at::Tensor** out);

void codecllm_free_message(char* message);

}
