#include "module.h"

#include <fstream>
#include <vector>

#include <caffe2/serialize/inline_container.h>
#include <torch/csrc/jit/serialization/import.h>

#include "../boundary.h"

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

} // namespace

char* codecllm_module_load(const char* path, int device, codecllm_module** out) {
  return codecllm::guarded([&] {
    torch::jit::ExtraFilesMap extra_files = names_of_extra_files(path);
    auto module = torch::jit::load(path, device_of(device), extra_files);
    *out = new codecllm_module{std::move(module), std::move(extra_files)};
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
