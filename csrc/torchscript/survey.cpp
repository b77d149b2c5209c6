#include "survey.h"

#include <map>
#include <tuple>

#include <torch/csrc/jit/api/function_impl.h>
#include <torch/csrc/jit/ir/constants.h>

#include "tensors.h"

namespace codecllm {

using torch::jit::Function;
using torch::jit::Node;
using torch::jit::Value;

namespace {

bool is_matrix(const c10::IValue& value) {
  if (!value.isTensor() || !value.toTensor().defined()) {
    return false;
  }
  const at::Tensor& tensor = value.toTensor();
  const auto dtype = tensor.scalar_type();
  const bool is_float = dtype == at::kFloat || dtype == at::kHalf || dtype == at::kBFloat16 || dtype == at::kDouble;
  return is_float && tensor.dim() == 2 && tensor.numel() > 0 && tensor.layout() == c10::kStrided;
}

// A view W^T of a matrix W without gaps: freezing leaves such constants.
bool is_transposed(const at::Tensor& tensor) {
  return !tensor.is_contiguous() && tensor.t().is_contiguous();
}

// The roles of W, from those of W^T.
void transpose_roles(Place& place) {
  std::unordered_set<Role> roles;
  for (const Role role : place.roles) {
    roles.insert(role == Role::Linear ? Role::Projection : role == Role::Projection ? Role::Linear : role);
    if ((role == Role::Embedding || role == Role::Rows) && place.obstacle.empty()) {
      place.obstacle = "is a transposed view whose rows are used";
    }
  }
  place.roles = std::move(roles);
}

// The bytes from the first element of `tensor` to behind its last.
std::pair<std::uintptr_t, std::uintptr_t> extent(const at::Tensor& tensor) {
  std::int64_t last = 0;
  for (std::int64_t dim = 0; dim < tensor.dim(); ++dim) {
    last += (tensor.size(dim) - 1) * tensor.stride(dim);
  }
  const auto begin = reinterpret_cast<std::uintptr_t>(tensor.const_data_ptr());
  return {begin, begin + static_cast<std::uintptr_t>(last + 1) * tensor.element_size()};
}

bool overlap(const at::Tensor& a, const at::Tensor& b) {
  if (a.numel() == 0 || b.numel() == 0 || b.layout() != c10::kStrided) {
    return false;
  }
  const auto [a_begin, a_end] = extent(a);
  const auto [b_begin, b_end] = extent(b);
  return a_begin < b_end && b_begin < a_end;
}

// TorchScript's own pass casts the inputs of the operators that it knows by name.
bool enters_autocast(const Node* node) {
  const auto type = node->output()->type()->cast<c10::ClassType>();
  return type != nullptr && type->name().has_value() && type->name()->name() == "autocast";
}

std::string join(const std::string& path, const std::string& name) {
  return path.empty() ? name : path + "." + name;
}

// The module that `value` is, if an attribute led to it.
ObjectPtr module_at(const std::unordered_map<const Value*, ObjectPtr>& located, const Value* value) {
  const auto found = located.find(value);
  return found == located.end() ? nullptr : found->second;
}

bool is_module(const Value* value) {
  return value->type()->is_module();
}

} // namespace

bool Matrix::has(const std::vector<Place>& all, Role role) const {
  for (const std::size_t place : places) {
    if (all[place].roles.count(role) > 0) {
      return true;
    }
  }
  return false;
}

std::string Matrix::obstacle(const std::vector<Place>& all) const {
  for (const std::size_t place : places) {
    if (!all[place].obstacle.empty()) {
      return all[place].obstacle;
    }
  }
  const bool as_is = has(all, Role::Linear) || has(all, Role::Embedding);
  if (has(all, Role::Projection) && as_is) {
    return "is multiplied both as it is and transposed";
  }
  if (has(all, Role::Projection) && has(all, Role::Rows)) {
    return "its number of rows is asked for, which are its inputs";
  }
  return as_is || has(all, Role::Projection) ? "" : "no linear uses it";
}

std::optional<at::Tensor> matrix_constant(const Node* node) {
  if (node->kind() != torch::jit::prim::Constant || node->outputs().size() != 1) {
    return std::nullopt;
  }
  const auto value = torch::jit::toIValue(node->output());
  return value && is_matrix(*value) ? std::optional(value->toTensor()) : std::nullopt;
}

std::vector<Function*> functions_of(const c10::ClassTypePtr& type) {
  std::vector<Function*> all = type->methods();
  all.insert(all.end(), type->getForwardPreHooks().begin(), type->getForwardPreHooks().end());
  all.insert(all.end(), type->getForwardHooks().begin(), type->getForwardHooks().end());
  return all;
}

Survey::Survey(torch::jit::Module module, std::size_t constant_bytes) : module_(std::move(module)) {
  collect(module_._ivalue(), "");
  // A copy: reading may add places, never objects.
  for (const auto& [object, path] : objects_) {
    read_methods(object, path);
  }
  pin_types();
  check_names();
  group();
  check_constants(constant_bytes);
  check_overlaps();
  for (Place& place : places_) {
    if (!autocast_.empty() && place.obstacle.empty()) {
      place.obstacle = autocast_ + " enters autocast, which casts for libtorch's own operators only";
    }
  }
}

void Survey::check_constants(std::size_t stored) const {
  StorageBytes wanted;
  for (const Matrix& matrix : matrices_) {
    if (places_[matrix.places.front()].method != nullptr) {
      wanted.add(matrix.tensor);
    }
  }
  TORCH_CHECK(
      stored >= wanted.sum(), "its constants have ", stored, " bytes, its index names ", wanted.sum(), " (file damaged?)");
}

void Survey::check_overlaps() {
  std::unordered_map<const void*, std::vector<std::pair<at::Tensor, std::string>>> by_storage;
  const auto add = [&](const at::Tensor& tensor, const std::string& path) {
    by_storage[tensor.storage().unsafeGetStorageImpl()].emplace_back(tensor, path);
  };
  for (const Matrix& matrix : matrices_) {
    add(matrix.tensor, places_[matrix.places.front()].path);
  }
  for (const auto& [tensor, path] : others_) {
    add(tensor, path);
  }
  for (const Matrix& matrix : matrices_) {
    Place& place = places_[matrix.places.front()];
    for (const auto& [tensor, path] : by_storage[matrix.tensor.storage().unsafeGetStorageImpl()]) {
      if (path != place.path && place.obstacle.empty() && overlap(matrix.tensor, tensor)) {
        place.obstacle = "shares its memory with " + path;
      }
    }
  }
}

void Survey::check_names() {
  for (Place& place : places_) {
    const auto type = place.owner->type();
    const auto check = [&](const std::string& name) {
      if (place.obstacle.empty() && (type->hasAttribute(name) || type->hasConstant(name) || type->findMethod(name) != nullptr)) {
        place.obstacle = "its module has an attribute " + name + " already";
      }
    };
    for (const char* suffix : BUFFER_SUFFIXES) {
      check(place.attribute + suffix);
    }
    check(place.attribute + LIKE_SUFFIX);
    check(place.attribute + PATH_SUFFIX);
  }
}

void Survey::collect(const ObjectPtr& object, const std::string& path) {
  if (!seen_.insert(object.get()).second) {
    return;
  }
  objects_.emplace_back(object, path);
  const auto type = object->type();
  for (std::size_t slot = 0; slot < type->numAttributes(); ++slot) {
    const std::string& name = type->getAttributeName(slot);
    const c10::IValue& value = object->getSlot(slot);
    if (value.isModule()) {
      collect(value.toObject(), join(path, name));
    } else if (!is_matrix(value)) {
      for_each_tensor(value, [&](const at::Tensor& tensor) { others_.emplace_back(tensor, join(path, name)); });
    } else {
      by_attribute_[object.get()][name] = places_.size();
      places_.push_back({object, name, join(path, name), nullptr, 0, false, {}, ""});
    }
  }
}

void Survey::read_methods(const ObjectPtr& object, const std::string& path) {
  for (Function* method : functions_of(object->type())) {
    read_graph(object, path, method);
  }
}

const std::shared_ptr<torch::jit::Graph>& Survey::graph_of(Function* method) {
  auto& graph = graphs_[method];
  if (graph == nullptr) {
    graph = transparent_graph(*method);
  }
  return graph;
}

void Survey::read_graph(const ObjectPtr& self, const std::string& path, Function* method) {
  const auto& graph = graph_of(method);
  Reading reading{method, {}};
  if (!graph->inputs().empty()) {
    reading.modules[graph->inputs()[0]] = self;
  }
  if (by_constant_.count(method) == 0) {
    read_constants(self, path, method);
  }
  for_each_node(graph->block(), [&](Node* node) {
    if (node->kind() == torch::jit::prim::CreateObject && enters_autocast(node)) {
      autocast_ = method->name();
    }
    if (patched_.empty() && node->kind().ns() == c10::Symbol::fromQualString("namespaces::codecllm")) {
      patched_ = join(path, method->name());
    }
    if (node->kind() == torch::jit::prim::GetAttr) {
      read_attribute(reading, node);
      return;
    }
    if (node->kind() == torch::jit::prim::SetAttr) {
      note_assignment(reading, node);
    }
    pin_arguments(reading, node);
  });
  pin_results(reading, graph->block());
}

void Survey::read_constants(const ObjectPtr& self, const std::string& path, Function* method) {
  auto& constants = by_constant_[method];
  for_each_node(graph_of(method)->block(), [&](Node* node) {
    if (!matrix_constant(node)) {
      return;
    }
    const std::size_t ordinal = constants.size();
    const std::string attribute = method->name() + "_constant_" + std::to_string(ordinal);
    constants[ordinal] = places_.size();
    places_.push_back({self, attribute, join(path, attribute), method, ordinal, false, {}, ""});
    note_uses(constants[ordinal], node->output(), *method);
  });
}

void Survey::read_attribute(Reading& reading, Node* node) {
  const std::string& name = node->s(torch::jit::attr::name);
  const ObjectPtr owner = module_at(reading.modules, node->input());
  if (owner == nullptr) {
    if (is_module(node->input())) {
      pinned_types_.emplace(node->input()->type(), reading.method->name());
    }
    return;
  }
  const c10::IValue value = owner->getAttr(name);
  if (value.isModule()) {
    reading.modules[node->output()] = value.toObject();
  } else if (const auto place = place_of(owner.get(), name)) {
    note_uses(*place, node->output(), *reading.method);
  }
}

void Survey::note_assignment(const Reading& reading, Node* node) {
  const ObjectPtr owner = module_at(reading.modules, node->input(0));
  const auto place = owner ? place_of(owner.get(), node->s(torch::jit::attr::name)) : std::nullopt;
  if (place) {
    places_[*place].obstacle = "is assigned in " + reading.method->name();
  }
}

void Survey::pin_arguments(const Reading& reading, Node* node) {
  const bool has_self = node->kind() == torch::jit::prim::CallMethod || node->kind() == torch::jit::prim::SetAttr;
  for (std::size_t offset = has_self ? 1 : 0; offset < node->inputs().size(); ++offset) {
    if (const ObjectPtr handed = module_at(reading.modules, node->input(offset))) {
      pin(handed, "its module is handed to " + name_of(node) + " in " + reading.method->name());
    }
  }
}

void Survey::pin_results(const Reading& reading, torch::jit::Block* block) {
  for (Node* node : block->nodes()) {
    for (torch::jit::Block* inner : node->blocks()) {
      pin_results(reading, inner);
    }
  }
  for (const Value* output : block->outputs()) {
    if (const ObjectPtr handed = module_at(reading.modules, output)) {
      pin(handed, "its module is a result in " + reading.method->name());
    }
  }
}

void Survey::note_uses(std::size_t place, Value* value, const Function& method) {
  for (const Use& use : uses_of(value)) {
    places_[place].roles.insert(use.role);
    if (use.role == Role::Other && places_[place].obstacle.empty()) {
      places_[place].obstacle = "is also used by " + name_of(use.node) + " in " + method.name();
    }
  }
}

void Survey::pin(const ObjectPtr& object, const std::string& why) {
  const auto type = object->type();
  for (std::size_t slot = 0; slot < type->numAttributes(); ++slot) {
    const c10::IValue& value = object->getSlot(slot);
    if (value.isModule()) {
      pin(value.toObject(), why);
    } else if (const auto place = place_of(object.get(), type->getAttributeName(slot))) {
      if (places_[*place].obstacle.empty()) {
        places_[*place].obstacle = why;
      }
    }
  }
}

void Survey::pin_types() {
  for (const auto& [object, path] : objects_) {
    const auto pinned = pinned_types_.find(object->type());
    if (pinned != pinned_types_.end()) {
      pin(object, pinned->second + " handles modules of its class as values");
    }
  }
}

void Survey::group() {
  using Key = std::tuple<const void*, std::vector<std::int64_t>, std::vector<std::int64_t>, at::ScalarType>;
  std::map<Key, std::size_t> known;
  for (std::size_t index = 0; index < places_.size(); ++index) {
    const Place& place = places_[index];
    at::Tensor tensor;
    if (place.method == nullptr) {
      tensor = place.owner->getAttr(place.attribute).toTensor();
    } else {
      std::size_t ordinal = 0;
      for_each_node(graphs_.at(place.method)->block(), [&](Node* node) {
        const auto constant = matrix_constant(node);
        if (constant && ordinal++ == place.ordinal) {
          tensor = *constant;
        }
      });
    }
    if (is_transposed(tensor)) {
      tensor = tensor.t();
      places_[index].is_transposed = true;
      transpose_roles(places_[index]);
    }
    Key key{tensor.const_data_ptr(), tensor.sizes().vec(), tensor.strides().vec(), tensor.scalar_type()};
    const auto [found, is_new] = known.emplace(std::move(key), matrices_.size());
    if (is_new) {
      matrices_.push_back({tensor, {}});
    }
    matrices_[found->second].places.push_back(index);
  }
}

std::optional<std::size_t> Survey::place_of(const c10::ivalue::Object* owner, const std::string& attribute) const {
  const auto object = by_attribute_.find(owner);
  if (object == by_attribute_.end()) {
    return std::nullopt;
  }
  const auto found = object->second.find(attribute);
  return found == object->second.end() ? std::nullopt : std::optional(found->second);
}

std::optional<std::size_t> Survey::place_of(const Function* method, std::size_t ordinal) const {
  const auto constants = by_constant_.find(method);
  if (constants == by_constant_.end()) {
    return std::nullopt;
  }
  const auto found = constants->second.find(ordinal);
  return found == constants->second.end() ? std::nullopt : std::optional(found->second);
}

} // namespace codecllm
