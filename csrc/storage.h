// Whose memory a tensor is, without keeping it alive (src/nn/operator/storage.rs).
#pragma once
#include <ATen/core/Tensor.h>

extern "C" {

struct codecllm_weak_storage;

// The storage's address, which identifies it while somebody refers to it, or null where the tensor has none.
const void* codecllm_storage(const at::Tensor* tensor);

// A weak reference, to be freed: the memory may go, but no other storage gets the same address. Null where there is no storage.
codecllm_weak_storage* codecllm_weak_storage_new(const at::Tensor* tensor);
bool codecllm_weak_storage_expired(const codecllm_weak_storage* storage);
void codecllm_weak_storage_free(codecllm_weak_storage* storage);

}
