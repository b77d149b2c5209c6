#include "module.h"

#include <fstream>
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

// What the index of an archive says.
struct Records {
  torch::jit::ExtraFilesMap extra_files; // with empty contents, for libtorch to fill in
  std::size_t data_bytes = 0; // of all tensors of attributes
  std::size_t constant_bytes = 0; // of all tensors in graphs
};

Records records_of(const std::string& path) {
  Records records;
  caffe2::serialize::PyTorchStreamReader archive(path);
  for (const std::string& record : archive.getAllRecords()) {
    const auto is_in = [&](const std::string& folder) { return record.compare(0, folder.size(), folder) == 0; };
    if (is_in("extra/")) {
      records.extra_files[record.substr(std::string("extra/").size())] = "";
    } else if (is_in("data/")) {
      records.data_bytes += archive.getRecordSize(record);
    } else if (is_in("constants/")) {
      records.constant_bytes += archive.getRecordSize(record);
    }
  }
  return records;
}

// libtorch believes the index about how large a tensor is, not the record with its bytes: it would read behind the end of a shorter
// one.
void check_records(const torch::jit::Module& module, std::size_t stored) {
  for (const auto& submodule : module.modules()) {
    if (submodule.find_method("__setstate__").has_value()) {
      // It makes tensors of its own, which no record holds.
      return;
    }
  }
  codecllm::StorageBytes wanted;
  for (const auto& attribute : module.attributes()) {
    codecllm::for_each_tensor(attribute, [&](const at::Tensor& tensor) { wanted.add(tensor); });
  }
  TORCH_CHECK(
      stored >= wanted.sum(), "its tensors have ", stored, " bytes, its index names ", wanted.sum(), " (file damaged?)");
}

} // namespace

char* codecllm_module_load(const char* path, int device, codecllm_module** out) {
  return codecllm::guarded([&] {
    Records records = records_of(path);
    auto module = torch::jit::load(path, device_of(device), records.extra_files);
    check_records(module, records.data_bytes);
    *out = new codecllm_module{std::move(module), std::move(records.extra_files), records.constant_bytes};
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
