#include "storage.h"

struct codecllm_weak_storage {
  c10::weak_intrusive_ptr<c10::StorageImpl> storage;
};

const void* codecllm_storage(const at::Tensor* tensor) {
  return tensor->has_storage() ? tensor->storage().unsafeGetStorageImpl() : nullptr;
}

codecllm_weak_storage* codecllm_weak_storage_new(const at::Tensor* tensor) {
  if (!tensor->has_storage()) {
    return nullptr;
  }
  return new codecllm_weak_storage{tensor->storage().getWeakStorageImpl()};
}

bool codecllm_weak_storage_expired(const codecllm_weak_storage* storage) {
  return storage->storage.expired();
}

void codecllm_weak_storage_free(codecllm_weak_storage* storage) {
  delete storage;
}
