// Runs a patched TorchScript file from C++: what codecllm patch wrote needs its operators, and nothing else of this project.
//
//   T=.libtorch/torch
//   g++ -std=c++17 -isystem $T/include -isystem $T/include/torch/csrc/api/include examples/run_patched.cpp -o run_patched \
//       -L$T/lib -ltorch_cpu -lc10 -ldl -Wl,-rpath,$PWD/$T/lib
//   codecllm patch .cache/fixtures/torchscript/mlp.pt -o patched.pt
//   ./run_patched target/release/libcodecllm.so patched.pt 4 256
//
//   [4, 250] sum -5.44704
#include <dlfcn.h>

#include <cstdlib>
#include <iomanip>
#include <iostream>

#include <torch/script.h>

int main(int count, char** arguments) {
  if (count != 5) {
    std::cerr << "usage: run_patched LIBCODECLLM.so PATCHED.pt ROWS COLUMNS\n";
    return 2;
  }
  // Before the file is loaded: its code names the operators.
  if (dlopen(arguments[1], RTLD_NOW) == nullptr) {
    std::cerr << "error: " << dlerror() << "\n";
    return 1;
  }
  try {
    auto module = torch::jit::load(arguments[2]);
    const torch::NoGradGuard no_grad;
    // The same numbers everywhere.
    const auto size = std::atoll(arguments[3]) * std::atoll(arguments[4]);
    const auto x = at::linspace(-1, 1, size).view({std::atoll(arguments[3]), std::atoll(arguments[4])});
    const auto y = module.forward({x}).toTensor();
    std::cout << y.sizes() << " sum " << std::setprecision(6) << y.sum().item<double>() << "\n";
    return 0;
  } catch (const std::exception& error) {
    std::cerr << "error: " << error.what() << "\n";
    return 1;
  }
}
