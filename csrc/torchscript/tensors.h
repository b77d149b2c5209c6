// The tensors within a value.
#pragma once
#include <functional>
#include <unordered_map>

#include <ATen/core/ivalue.h>

namespace codecllm {

// Calls `visit` with the tensor that `value` is, or with those in lists, tuples and dicts. (IValue's own visitors throw at a device.)
inline void for_each_tensor(const c10::IValue& value, const std::function<void(const at::Tensor&)>& visit) {
  if (value.isTensor()) {
    if (value.toTensor().defined() && value.toTensor().has_storage()) {
      visit(value.toTensor());
    }
  } else if (value.isList()) {
    for (const c10::IValue& element : value.toListRef()) {
      for_each_tensor(element, visit);
    }
  } else if (value.isTuple()) {
    for (const c10::IValue& element : value.toTupleRef().elements()) {
      for_each_tensor(element, visit);
    }
  } else if (value.isGenericDict()) {
    for (const auto& entry : value.toGenericDict()) {
      for_each_tensor(entry.value(), visit);
    }
  }
}

// Bytes of the storages of tensors; what several tensors share counts once.
class StorageBytes {
 public:
  void add(const at::Tensor& tensor) {
    bytes_[tensor.storage().unsafeGetStorageImpl()] = tensor.storage().nbytes();
  }

  std::size_t sum() const {
    std::size_t sum = 0;
    for (const auto& [storage, bytes] : bytes_) {
      sum += bytes;
    }
    return sum;
  }

 private:
  std::unordered_map<const void*, std::size_t> bytes_;
};

} // namespace codecllm
