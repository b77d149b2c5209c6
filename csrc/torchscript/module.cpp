#include "module.h"

#include <vector>

#include <torch/csrc/jit/serialization/import.h>

#include "../boundary.h"

namespace {

c10::Device device_of(int number) {
  TORCH_CHECK(number >= -1, "device number ", number, ", wanted -1 (the CPU) or a CUDA device");
  return number < 0 ? c10::Device(c10::kCPU) : c10::Device(c10::kCUDA, static_cast<c10::DeviceIndex>(number));
}

} // namespace

char* codecllm_module_load(const char* path, int device, torch::jit::Module** out) {
  return codecllm::guarded(
      [&] { *out = new torch::jit::Module(torch::jit::load(path, device_of(device))); });
}

char* codecllm_module_save(const torch::jit::Module* module, const char* path) {
  return codecllm::guarded([&] { module->save(path); });
}

void codecllm_module_free(torch::jit::Module* module) {
  delete module;
}

char* codecllm_module_to(torch::jit::Module* module, int device) {
  return codecllm::guarded([&] { module->to(device_of(device)); });
}

char* codecllm_module_run(
    const torch::jit::Module* module, const char* method, const c10::IValue* const* arguments, std::size_t count,
    c10::IValue** out) {
  return codecllm::guarded([&] {
    std::vector<c10::IValue> stack;
    for (std::size_t index = 0; index < count; ++index) {
      stack.push_back(*arguments[index]);
    }
    *out = new c10::IValue(module->get_method(method)(std::move(stack)));
  });
}

char* codecllm_module_tensors(
    const torch::jit::Module* module, int which, void (*visit)(void*, const char*, const at::Tensor*), void* context) {
  return codecllm::guarded([&] {
    if (which == CODECLLM_BUFFERS) {
      for (const auto& buffer : module->named_buffers()) {
        visit(context, buffer.name.c_str(), &buffer.value);
      }
      return;
    }
    for (const auto& parameter : module->named_parameters()) {
      visit(context, parameter.name.c_str(), &parameter.value);
    }
  });
}

void codecllm_free_text(char* text) {
  std::free(text);
}
