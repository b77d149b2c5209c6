// TorchScript modules for Rust (src/torchscript/module.rs). Every function that can fail returns null, or a message that
// codecllm_free_text frees. Devices are numbered as tch does: -1 is the CPU, 0 and up are CUDA devices.
#pragma once
#include <cstddef>

#include <torch/csrc/jit/api/module.h>

// A module, and the files beside it in its archive (a config, a vocabulary).
struct codecllm_module {
  torch::jit::Module module;
  torch::jit::ExtraFilesMap extra_files;
  std::size_t constant_bytes; // of the tensors that the archive holds for constants in graphs
};

extern "C" {

char* codecllm_module_load(const char* path, int device, codecllm_module** out);
char* codecllm_module_save(const codecllm_module* module, const char* path);
void codecllm_module_free(codecllm_module* module);

// Moves parameters and buffers; no dtype changes.
char* codecllm_module_to(codecllm_module* module, int device);

// Calls `method` with `count` arguments. `*out` is the caller's, to be freed as tch's IValues are.
char* codecllm_module_run(
    const codecllm_module* module, const char* method, const c10::IValue* const* arguments, std::size_t count,
    c10::IValue** out);

enum { CODECLLM_PARAMETERS = 0, CODECLLM_BUFFERS = 1 };

// Calls `visit` with each tensor's full name; the tensor is borrowed for the call.
char* codecllm_module_tensors(
    const codecllm_module* module, int which, void (*visit)(void*, const char*, const at::Tensor*), void* context);

void codecllm_free_text(char* text);

}
