// Registers codecllm::linear, projection, embedding and compress with libtorch: what a patched TorchScript module and the
// Python package call.
#include "operators.h"

#include <array>
#include <memory>
#include <vector>

#include <ATen/autocast_mode.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/grad_mode.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

namespace {

using at::Tensor;
using std::optional;

// Throws what Rust reported.
void check(char* message) {
  if (message == nullptr) {
    return;
  }
  std::string text = message;
  codecllm_free_message(message);
  TORCH_CHECK(false, text);
}

// Before Rust sees them: tch knows fewer dtypes than libtorch.
void check_floats(const Tensor& tensor, const char* what, c10::string_view path) {
  const auto dtype = tensor.scalar_type();
  TORCH_CHECK(
      dtype == at::kFloat || dtype == at::kHalf || dtype == at::kBFloat16, "codecllm: ", path, ": ", what, " is ", dtype,
      ", wanted Float, Half or BFloat16");
}

// Bytes, or what a change of dtype made of them.
void check_buffers(const std::array<const Tensor*, 5>& buffers, c10::string_view path) {
  for (const Tensor* buffer : buffers) {
    if (buffer->scalar_type() != at::kByte && buffer->scalar_type() != at::kDouble) {
      check_floats(*buffer, "a buffer of bytes", path);
    }
  }
}

Tensor take(Tensor* owned) {
  std::unique_ptr<Tensor> tensor(owned);
  return std::move(*tensor);
}

// x W^T + bias, or x W + bias for a W that was [in_features, out_features] and is compressed transposed.
template <bool projects>
Tensor linear(
    const Tensor& x, const Tensor& header, const Tensor& scales, const Tensor& tables, const Tensor& tiles,
    const Tensor& payload, const Tensor&, const optional<Tensor>& bias, c10::string_view path) {
  const std::array<const Tensor*, 5> buffers = {&header, &scales, &tables, &tiles, &payload};
  const bool has_bias = bias.has_value() && bias->defined();
  check_buffers(buffers, path);
  check_floats(x, "the input", path);
  if (has_bias) {
    check_floats(*bias, "the bias", path);
  }
  Tensor* out = nullptr;
  check(codecllm_linear(std::string(path).c_str(), projects, &x, buffers.data(), has_bias ? &*bias : nullptr, &out));
  return take(out);
}

Tensor embedding(
    const Tensor& ids, const Tensor& header, const Tensor& scales, const Tensor& tables, const Tensor& tiles,
    const Tensor& payload, const Tensor& like, c10::string_view path) {
  const std::array<const Tensor*, 5> buffers = {&header, &scales, &tables, &tiles, &payload};
  check_buffers(buffers, path);
  check_floats(like, "like", path);
  TORCH_CHECK(
      ids.scalar_type() == at::kLong || ids.scalar_type() == at::kInt, "codecllm: ", path, ": ids are ", ids.scalar_type(),
      ", wanted Long or Int");
  Tensor* out = nullptr;
  check(codecllm_embedding(std::string(path).c_str(), &ids, buffers.data(), &like, &out));
  return take(out);
}

std::vector<Tensor> compress(
    c10::List<Tensor> weights, c10::List<std::string> paths, c10::List<bool> row_access, c10::string_view target,
    optional<c10::string_view> layout) {
  TORCH_CHECK(
      weights.size() == paths.size() && weights.size() == row_access.size(),
      "codecllm::compress: ", weights.size(), " weights, ", paths.size(), " paths and ", row_access.size(),
      " choices of row access, wanted as many of each");
  const std::vector<Tensor> tensors(weights.begin(), weights.end());
  const std::vector<std::string> names(paths.begin(), paths.end());
  std::vector<const Tensor*> pointers;
  std::vector<const char*> texts;
  const std::unique_ptr<bool[]> by_row(new bool[tensors.size()]);
  for (std::size_t index = 0; index < tensors.size(); ++index) {
    check_floats(tensors[index], "the weight", names[index]);
    pointers.push_back(&tensors[index]);
    texts.push_back(names[index].c_str());
    by_row[index] = row_access.get(index);
  }
  std::vector<Tensor*> out(5 * tensors.size(), nullptr);
  check(codecllm_compress(
      tensors.size(), pointers.data(), texts.data(), by_row.get(), std::string(target).c_str(),
      layout ? std::string(*layout).c_str() : nullptr, out.data()));
  std::vector<Tensor> buffers;
  for (Tensor* owned : out) {
    buffers.push_back(take(owned));
  }
  return buffers;
}

// What a tracer sees. `like` is an empty tensor [rows, 0, columns] in the dtype of the weight that it stands for: the bytes of the
// header are not there to be read.
std::vector<c10::SymInt> with_last(const Tensor& x, std::size_t kept, const c10::SymInt& last) {
  const auto sizes = x.sym_sizes();
  std::vector<c10::SymInt> out(sizes.begin(), sizes.begin() + static_cast<std::ptrdiff_t>(kept));
  out.push_back(last);
  return out;
}

void check_meta(const Tensor& input, const Tensor& like, c10::string_view path) {
  TORCH_CHECK(
      input.is_meta(), "codecllm: ", path, " has buffers on the meta device, the input is on ", input.device(),
      " (move the weight to the input's device)");
  TORCH_CHECK(
      like.dim() == 3 && like.sym_size(1) == 0, "codecllm: ", path, ": like has shape ", like.sym_sizes(),
      ", wanted [rows, 0, columns]");
}

Tensor linear_on_meta(
    const Tensor& x, const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor& like,
    const optional<Tensor>&, c10::string_view path) {
  check_meta(x, like, path);
  TORCH_CHECK(
      x.dim() > 0 && x.sym_size(-1) == like.sym_size(2), "codecllm::linear: ", path, ": input has shape ", x.sym_sizes(),
      ", wanted [..., ", like.sym_size(2), "]");
  return x.new_empty_symint(with_last(x, static_cast<std::size_t>(x.dim()) - 1, like.sym_size(0)));
}

Tensor embedding_on_meta(
    const Tensor& ids, const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor& like,
    c10::string_view path) {
  check_meta(ids, like, path);
  return like.new_empty_symint(with_last(ids, static_cast<std::size_t>(ids.dim()), like.sym_size(2)));
}

constexpr const char* NO_GRADIENT =
    ": no gradient flows through a compressed weight (run the model under torch.no_grad(), or train before it is patched)";

template <bool projects>
constexpr const char* NAME = projects ? "codecllm::projection" : "codecllm::linear";

template <bool projects>
Tensor redispatch(
    const Tensor& x, const Tensor& header, const Tensor& scales, const Tensor& tables, const Tensor& tiles,
    const Tensor& payload, const Tensor& like, const optional<Tensor>& bias, c10::string_view path) {
  static const auto op =
      c10::Dispatcher::singleton().findSchemaOrThrow(NAME<projects>, "").template typed<decltype(linear<projects>)>();
  return op.call(x, header, scales, tables, tiles, payload, like, bias, path);
}

// Forward as it is; backward refuses.
template <bool projects>
struct LinearFunction : torch::autograd::Function<LinearFunction<projects>> {
  static Tensor forward(
      torch::autograd::AutogradContext*, const Tensor& x, const Tensor& header, const Tensor& scales, const Tensor& tables,
      const Tensor& tiles, const Tensor& payload, const Tensor& like, const optional<Tensor>& bias,
      std::string path) {
    at::AutoDispatchBelowADInplaceOrView below;
    return redispatch<projects>(x, header, scales, tables, tiles, payload, like, bias, path);
  }
  static torch::autograd::variable_list backward(
      torch::autograd::AutogradContext*, const torch::autograd::variable_list&) {
    TORCH_CHECK_NOT_IMPLEMENTED(false, NAME<projects>, NO_GRADIENT);
  }
};

template <bool projects>
Tensor linear_with_autograd(
    const Tensor& x, const Tensor& header, const Tensor& scales, const Tensor& tables, const Tensor& tiles,
    const Tensor& payload, const Tensor& like, const optional<Tensor>& bias, c10::string_view path) {
  const bool has_bias = bias.has_value() && bias->defined();
  const bool has_tangent = x._fw_grad(/*level=*/0).defined() || (has_bias && bias->_fw_grad(0).defined());
  TORCH_CHECK_NOT_IMPLEMENTED(!has_tangent, NAME<projects>, NO_GRADIENT);
  if (at::GradMode::is_enabled() && (x.requires_grad() || (has_bias && bias->requires_grad()))) {
    return LinearFunction<projects>::apply(x, header, scales, tables, tiles, payload, like, bias, std::string(path));
  }
  at::AutoDispatchBelowADInplaceOrView below;
  return redispatch<projects>(x, header, scales, tables, tiles, payload, like, bias, path);
}

// As a dense linear under autocast: in the lower dtype. What lies below must not cast again.
template <bool projects, c10::DeviceType device>
Tensor linear_with_autocast(
    const Tensor& x, const Tensor& header, const Tensor& scales, const Tensor& tables, const Tensor& tiles,
    const Tensor& payload, const Tensor& like, const optional<Tensor>& bias, c10::string_view path) {
  const c10::impl::ExcludeDispatchKeyGuard below(c10::autocast_dispatch_keyset);
  const auto dtype = at::autocast::get_autocast_dtype(device);
  const auto cast = [&](const Tensor& tensor) { return at::autocast::cached_cast(dtype, tensor, device); };
  const bool has_bias = bias.has_value() && bias->defined();
  const optional<Tensor> cast_bias = has_bias ? optional<Tensor>(cast(*bias)) : std::nullopt;
  return redispatch<projects>(cast(x), header, scales, tables, tiles, payload, like, cast_bias, path);
}

#define CODECLLM_LINEAR_ARGUMENTS \
  "(Tensor x, Tensor header, Tensor scales, Tensor tables, Tensor tiles, Tensor payload, Tensor like, Tensor? bias=None, " \
  "str path='weight') -> Tensor"

constexpr const char* SCHEMAS[] = {
    "linear" CODECLLM_LINEAR_ARGUMENTS,
    "projection" CODECLLM_LINEAR_ARGUMENTS,
    "embedding(Tensor ids, Tensor header, Tensor scales, Tensor tables, Tensor tiles, Tensor payload, Tensor like, "
    "str path='weight') -> Tensor",
    "compress(Tensor[] weights, str[] paths, bool[] row_access, str target='int8', str? layout=None) -> Tensor[]",
};

// Lives as long as the process.
torch::Library* library = nullptr;

template <bool projects>
void register_linear(const char* name) {
  library->impl(name, torch::dispatch(c10::DispatchKey::CPU, TORCH_FN(linear<projects>)));
  library->impl(name, torch::dispatch(c10::DispatchKey::CUDA, TORCH_FN(linear<projects>)));
  library->impl(name, torch::dispatch(c10::DispatchKey::Meta, TORCH_FN(linear_on_meta)));
  library->impl(name, torch::dispatch(c10::DispatchKey::Autograd, TORCH_FN(linear_with_autograd<projects>)));
  library->impl(
      name, torch::dispatch(c10::DispatchKey::AutocastCPU, TORCH_FN((linear_with_autocast<projects, c10::kCPU>))));
  library->impl(
      name, torch::dispatch(c10::DispatchKey::AutocastCUDA, TORCH_FN((linear_with_autocast<projects, c10::kCUDA>))));
}

} // namespace

// Runs when the binary or shared library that holds this file is loaded. Not TORCH_LIBRARY: where a program that contains this
// crate also loads the shared library, the second registration would end the process.
__attribute__((constructor)) static void codecllm_register_operators() {
  if (c10::Dispatcher::singleton().findSchema({"codecllm::linear", ""}).has_value()) {
    return;
  }
  library = new torch::Library(torch::Library::DEF, "codecllm", std::nullopt, __FILE__, __LINE__);
  for (const char* schema : SCHEMAS) {
    library->def(schema, {at::Tag::pt2_compliant_tag});
  }
  register_linear<false>("linear");
  register_linear<true>("projection");
  library->impl("embedding", torch::dispatch(c10::DispatchKey::CPU, TORCH_FN(embedding)));
  library->impl("embedding", torch::dispatch(c10::DispatchKey::CUDA, TORCH_FN(embedding)));
  library->impl("embedding", torch::dispatch(c10::DispatchKey::Meta, TORCH_FN(embedding_on_meta)));
  library->impl("compress", torch::dispatch(c10::DispatchKey::CompositeExplicitAutograd, TORCH_FN(compress)));
}
