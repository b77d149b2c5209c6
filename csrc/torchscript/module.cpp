#include "module.h"

#include <fstream>
#include <unordered_map>
#include <vector>

#include <caffe2/serialize/inline_container.h>
#include <torch/csrc/jit/serialization/import.h>

#include "../boundary.h"
#include "tensors.h"

namespace {

c10::Device device_of(int number) {
  TORCH_CHECK(number >= -1, "device number ", number, ", wanted -1 (the CPU) or a CUDA device");
  return number < 0 ? c10::Device(c10::kCPU) : c10::Device(c10::kCUDA, static_cast<c10::DeviceIndex>(number));
}

// With empty contents, for libtorch to fill in.
torch::jit::ExtraFilesMap names_of_extra_files(const std::string& path) {
  const std::string folder = "extra/";
  torch::jit::ExtraFilesMap extra_files;
  caffe2::serialize::PyTorchStreamReader archive(path);
  for (const std::string& record : archive.getAllRecords()) {
    if (record.compare(0, folder.size(), folder) == 0) {
      extra_files[record.substr(folder.size())] = "";
    }
  }
  return extra_files;
}

// Bytes of all records in a folder of the archive.
std::size_t bytes_in(const std::string& path, const std::string& folder) {
  caffe2::serialize::PyTorchStreamReader archive(path);
  std::size_t bytes = 0;
  for (const std::string& record : archive.getAllRecords()) {
    if (record.compare(0, folder.size(), folder) == 0) {
      bytes += archive.getRecordSize(record);
    }
  }
  return bytes;
}

// libtorch believes the index about how large a tensor is, not the record with its bytes: it would read behind the end of a shorter
// one.
void check_records(const torch::jit::Module& module, std::size_t stored) {
  std::unordered_map<const void*, std::size_t> storages;
  for (const auto& submodule : module.modules()) {
    if (submodule.find_method("__setstate__").has_value()) {
      // It makes tensors of its own, which no record holds.
      return;
    }
  }
  for (const auto& attribute : module.attributes()) {
    codecllm::for_each_tensor(attribute, [&](const at::Tensor& tensor) {
      storages[tensor.storage().unsafeGetStorageImpl()] = tensor.storage().nbytes();
    });
  }
  std::size_t wanted = 0;
  for (const auto& [storage, bytes] : storages) {
    wanted += bytes;
  }
  TORCH_CHECK(stored >= wanted, "its tensors have ", stored, " bytes, its index names ", wanted, " (file damaged?)");
}

} // namespace

char* codecllm_module_load(const char* path, int device, codecllm_module** out) {
  return codecllm::guarded([&] {
    torch::jit::ExtraFilesMap extra_files = names_of_extra_files(path);
    auto module = torch::jit::load(path, device_of(device), extra_files);
    check_records(module, bytes_in(path, "data/"));
    *out = new codecllm_module{std::move(module), std::move(extra_files), bytes_in(path, "constants/")};
  });
}

char* codecllm_module_save(const codecllm_module* module, const char* path) {
  return codecllm::guarded([&] {
    // Not by name: that would put the name of the file, a temporary one, into the archive.
    std::ofstream file;
    file.exceptions(std::ios::badbit | std::ios::failbit);
    file.open(path, std::ios::binary | std::ios::trunc);
    module->module.save(file, module->extra_files);
    file.close();
  });
}

void codecllm_module_free(codecllm_module* module) {
  delete module;
}

char* codecllm_module_to(codecllm_module* module, int device) {
  return codecllm::guarded([&] { module->module.to(device_of(device)); });
}

char* codecllm_module_run(
    const codecllm_module* module, const char* method, const c10::IValue* const* arguments, std::size_t count,
    c10::IValue** out) {
  return codecllm::guarded([&] {
    std::vector<c10::IValue> stack;
    for (std::size_t index = 0; index < count; ++index) {
      stack.push_back(*arguments[index]);
    }
    if (std::string(method) == "forward") {
      // With its hooks.
      torch::jit::Module handle = module->module;
      *out = new c10::IValue(handle(std::move(stack)));
      return;
    }
    *out = new c10::IValue(module->module.get_method(method)(std::move(stack)));
  });
}

char* codecllm_module_tensors(
    const codecllm_module* module, int which, void (*visit)(void*, const char*, const at::Tensor*), void* context) {
  return codecllm::guarded([&] {
    if (which == CODECLLM_BUFFERS) {
      for (const auto& buffer : module->module.named_buffers()) {
        visit(context, buffer.name.c_str(), &buffer.value);
      }
      return;
    }
    for (const auto& parameter : module->module.named_parameters()) {
      visit(context, parameter.name.c_str(), &parameter.value);
    }
  });
}

void codecllm_free_text(char* text) {
  std::free(text);
}
