#include "patch.h"

#include <map>
#include <sstream>

#include <ATen/ops/empty.h>
#include <torch/csrc/jit/api/compilation_unit.h>
#include <torch/csrc/jit/api/function_impl.h>
#include <torch/csrc/jit/passes/dead_code_elimination.h>
#include <torch/csrc/jit/serialization/import.h>

namespace codecllm {

using c10::ClassTypePtr;
using torch::jit::Function;
using torch::jit::Graph;
using torch::jit::Node;
using torch::jit::Value;

namespace {

// The attributes that replace one matrix.
struct Replacement {
  Buffers buffers;
  at::Tensor like; // empty, [rows, 0, columns]
  std::string path;
};

bool is_patched(const ClassTypePtr& type, const std::string& attribute) {
  return type->hasAttribute(attribute + BUFFER_SUFFIXES[0]);
}

void declare(const ClassTypePtr& type, const std::string& attribute) {
  for (const char* suffix : BUFFER_SUFFIXES) {
    type->addAttribute(attribute + suffix, c10::TensorType::get(), /*is_parameter=*/false, /*is_buffer=*/true);
  }
  type->addAttribute(attribute + LIKE_SUFFIX, c10::TensorType::get(), /*is_parameter=*/false, /*is_buffer=*/true);
  type->addAttribute(attribute + PATH_SUFFIX, c10::StringType::get());
}

void assign(const ObjectPtr& object, const std::string& attribute, const Replacement& replacement) {
  for (std::size_t index = 0; index < BUFFER_SUFFIXES.size(); ++index) {
    object->setAttr(attribute + BUFFER_SUFFIXES[index], replacement.buffers[index]);
  }
  object->setAttr(attribute + LIKE_SUFFIX, replacement.like);
  object->setAttr(attribute + PATH_SUFFIX, replacement.path);
}

// Puts operators on buffers in the place of what a graph does with the matrix `attribute` of the module `owner`.
class Rewriter {
 public:
  Rewriter(Graph& graph, Value* owner, const std::string& attribute, bool is_transposed)
      : graph_(graph), owner_(owner), attribute_(attribute), is_transposed_(is_transposed) {}

  void replace_uses(Value* matrix) {
    for (const Use& use : uses_of(matrix)) {
      torch::jit::WithInsertPoint before(use.node);
      if (use.role == Role::Kind || use.role == Role::Rows) {
        use.node->replaceInput(0, get(LIKE_SUFFIX));
        continue;
      }
      Value* result = use.role == Role::Embedding ? embedding(use.node) : linear(use.node, use.role);
      // The node dies with the dead code: a walk may stand on it.
      use.node->output()->replaceAllUsesWith(result);
    }
  }

 private:
  Value* get(const std::string& suffix) { return graph_.insertGetAttr(owner_, attribute_ + suffix); }

  Value* none() { return graph_.insertConstant(c10::IValue()); }

  Value* linear(Node* node, Role role) {
    // aten::linear(x, W, bias), aten::addmm(bias, x, W, ...), aten::matmul(x, W)
    const bool adds = node->kind() == c10::Symbol::aten("addmm");
    Value* bias = node->kind() == c10::Symbol::aten("linear") ? node->input(2) : none();
    // Both give the same product; each adds in the order in which the dense one did.
    const bool projects = (role == Role::Projection) != is_transposed_;
    const char* op = projects ? "codecllm::projection" : "codecllm::linear";
    Value* product = call(op, node, node->input(adds ? 1 : 0), bias);
    // TorchScript runs an addmm as mm and add.
    return adds ? graph_.insert(c10::Symbol::aten("add"), {product, node->input(0)}) : product;
  }

  Value* embedding(Node* node) { return call("codecllm::embedding", node, node->input(1), nullptr); }

  Value* call(const char* op, Node* replaced, Value* input, Value* bias) {
    std::vector<Value*> inputs = {input};
    for (const char* suffix : BUFFER_SUFFIXES) {
      inputs.push_back(get(suffix));
    }
    inputs.push_back(get(LIKE_SUFFIX));
    if (bias != nullptr) {
      inputs.push_back(bias);
    }
    inputs.push_back(get(PATH_SUFFIX));
    Node* node = graph_.insertNode(graph_.create(c10::Symbol::fromQualString(op), inputs));
    node->copyMetadata(replaced);
    node->output()->setType(replaced->output()->type());
    return node->output();
  }

  Graph& graph_;
  Value* owner_;
  std::string attribute_;
  bool is_transposed_;
};

class Rebuilder {
 public:
  Rebuilder(Survey& survey, const std::unordered_map<std::size_t, Buffers>& buffers) : survey_(survey) {
    for (const auto& [index, own] : buffers) {
      const Matrix& matrix = survey.matrices().at(index);
      const bool projects = matrix.has(survey.places(), Role::Projection);
      const auto sizes = matrix.tensor.sizes();
      const at::Tensor like = at::empty({sizes[projects ? 1 : 0], 0, sizes[projects ? 0 : 1]}, matrix.tensor.options());
      for (const std::size_t place : matrix.places) {
        replacements_.emplace(place, Replacement{own, like, survey.places()[place].path});
      }
    }
  }

  ObjectPtr rebuild(const ObjectPtr& object);

 private:
  // What of `object` is replaced: its attributes' names, and of constants in its methods.
  std::vector<std::pair<std::string, const Replacement*>> patches_of(const ObjectPtr& object) const;
  const Replacement* patch_of(const c10::ivalue::Object* object, const std::string& attribute) const;
  ClassTypePtr type_for(
      const ObjectPtr& object, const std::vector<ObjectPtr>& children, const std::vector<std::string>& patched_names);
  void add_functions(const ClassTypePtr& from, const ClassTypePtr& to);
  Function* add_function(Function* function, const ClassTypePtr& from, const ClassTypePtr& to);
  void rewrite(const std::shared_ptr<Graph>& graph, const Function* function, const ClassTypePtr& self);

  Survey& survey_;
  std::unordered_map<std::size_t, Replacement> replacements_; // by place
  std::unordered_map<const c10::ivalue::Object*, ObjectPtr> rebuilt_;
  // By old type, types of the children, and names of what is patched: modules that are alike go on sharing a type.
  std::map<std::tuple<const c10::Type*, std::vector<const c10::Type*>, std::vector<std::string>>, ClassTypePtr> types_;
};

const Replacement* Rebuilder::patch_of(const c10::ivalue::Object* object, const std::string& attribute) const {
  const auto place = survey_.place_of(object, attribute);
  const auto found = place ? replacements_.find(*place) : replacements_.end();
  return found == replacements_.end() ? nullptr : &found->second;
}

std::vector<std::pair<std::string, const Replacement*>> Rebuilder::patches_of(const ObjectPtr& object) const {
  std::vector<std::pair<std::string, const Replacement*>> patches;
  const auto type = object->type();
  for (std::size_t slot = 0; slot < type->numAttributes(); ++slot) {
    const std::string& name = type->getAttributeName(slot);
    if (const Replacement* replacement = patch_of(object.get(), name)) {
      patches.emplace_back(name, replacement);
    }
  }
  for (const Function* function : functions_of(type)) {
    std::optional<std::size_t> place;
    for (std::size_t ordinal = 0; (place = survey_.place_of(function, ordinal)); ++ordinal) {
      const auto found = replacements_.find(*place);
      if (found != replacements_.end()) {
        patches.emplace_back(survey_.places()[*place].attribute, &found->second);
      }
    }
  }
  return patches;
}

ObjectPtr Rebuilder::rebuild(const ObjectPtr& object) {
  const auto known = rebuilt_.find(object.get());
  if (known != rebuilt_.end()) {
    return known->second;
  }
  const auto type = object->type();
  const auto patches = patches_of(object);
  bool changed = !patches.empty();
  std::vector<ObjectPtr> children(type->numAttributes());
  for (std::size_t slot = 0; slot < children.size(); ++slot) {
    if (object->getSlot(slot).isModule()) {
      const ObjectPtr child = object->getSlot(slot).toObject();
      children[slot] = rebuild(child);
      changed = changed || children[slot] != child;
    }
  }
  ObjectPtr& result = rebuilt_[object.get()];
  if (!changed) {
    return result = object;
  }
  std::vector<std::string> patched_names;
  for (const auto& [name, replacement] : patches) {
    patched_names.push_back(name);
  }
  const ClassTypePtr new_type = type_for(object, children, patched_names);
  const auto unit = survey_.module()._ivalue()->compilation_unit();
  result = c10::ivalue::Object::create(c10::StrongTypePtr(unit, new_type), new_type->numAttributes());
  for (std::size_t slot = 0; slot < children.size(); ++slot) {
    const std::string& name = type->getAttributeName(slot);
    if (patch_of(object.get(), name) == nullptr) {
      result->setAttr(name, children[slot] ? c10::IValue(children[slot]) : object->getSlot(slot));
    }
  }
  for (const auto& [name, replacement] : patches) {
    assign(result, name, *replacement);
  }
  return result;
}

ClassTypePtr Rebuilder::type_for(
    const ObjectPtr& object, const std::vector<ObjectPtr>& children, const std::vector<std::string>& patched_names) {
  const auto from = object->type();
  std::vector<const c10::Type*> child_types;
  for (const ObjectPtr& child : children) {
    child_types.push_back(child ? child->type().get() : nullptr);
  }
  auto& type = types_[{from.get(), std::move(child_types), patched_names}];
  if (type != nullptr) {
    return type;
  }
  const auto unit = survey_.module()._ivalue()->compilation_unit();
  type = c10::ClassType::create(unit->mangle(*from->name()), unit, /*is_module=*/true, from->doc_string());
  for (std::size_t slot = 0; slot < children.size(); ++slot) {
    const std::string& name = from->getAttributeName(slot);
    if (patch_of(object.get(), name) != nullptr) {
      continue;
    }
    const c10::TypePtr declared = from->getAttribute(slot);
    const bool by_class = children[slot] != nullptr && declared->castRaw<c10::ClassType>() != nullptr;
    type->addAttribute(
        name, by_class ? c10::TypePtr(children[slot]->type()) : declared, from->is_parameter(slot), from->is_buffer(slot));
  }
  for (const std::string& name : patched_names) {
    declare(type, name);
  }
  for (std::size_t slot = 0; slot < from->numConstants(); ++slot) {
    type->addConstant(from->getConstantName(slot), from->getConstant(slot));
  }
  unit->register_type(type);
  add_functions(from, type);
  return type;
}

void Rebuilder::add_functions(const ClassTypePtr& from, const ClassTypePtr& to) {
  for (Function* method : from->methods()) {
    to->addMethod(add_function(method, from, to));
  }
  for (Function* hook : from->getForwardPreHooks()) {
    to->addForwardPreHook(add_function(hook, from, to));
  }
  for (Function* hook : from->getForwardHooks()) {
    to->addForwardHook(add_function(hook, from, to));
  }
  for (const auto& property : from->properties()) {
    Function* setter = property.setter == nullptr ? nullptr : to->findMethod(property.setter->name());
    to->addProperty(property.name, to->findMethod(property.getter->name()), setter);
  }
}

Function* Rebuilder::add_function(Function* function, const ClassTypePtr& from, const ClassTypePtr& to) {
  auto graph = survey_.graph_of(function)->copy();
  rewrite(graph, function, to);
  const auto remapped = [&](const c10::TypePtr& type) { return *type == *from ? c10::TypePtr(to) : type; };
  auto schema = function->getSchema().cloneWithRemappedTypes(remapped);
  const auto unit = survey_.module()._ivalue()->compilation_unit();
  Function* copy = unit->create_function(c10::QualifiedName(*to->name(), function->name()), std::move(graph));
  copy->setSchema(std::move(schema));
  return copy;
}

void Rebuilder::rewrite(const std::shared_ptr<Graph>& graph, const Function* function, const ClassTypePtr& self) {
  graph->inputs()[0]->setType(self);
  std::size_t ordinal = 0;
  for_each_node(graph->block(), [&](Node* node) {
    if (matrix_constant(node)) {
      const auto place = survey_.place_of(function, ordinal++);
      if (place && replacements_.count(*place) > 0) {
        const Place& constant = survey_.places()[*place];
        Rewriter(*graph, graph->inputs()[0], constant.attribute, constant.is_transposed).replace_uses(node->output());
      }
      return;
    }
    if (node->kind() != torch::jit::prim::GetAttr) {
      return;
    }
    const auto type = node->input()->type()->cast<c10::ClassType>();
    const std::string& name = node->s(torch::jit::attr::name);
    if (type == nullptr) {
      return;
    }
    if (!type->hasAttribute(name)) {
      if (is_patched(type, name)) {
        Rewriter(*graph, node->input(), name, /*is_transposed=*/false).replace_uses(node->output());
      }
      return;
    }
    const c10::TypePtr attribute = type->getAttribute(name);
    if (attribute->is_module()) {
      node->output()->setType(attribute);
    }
  });
  torch::jit::EliminateDeadCode(graph);
  graph->lint();
}

} // namespace

torch::jit::Module patched(Survey& survey, const std::unordered_map<std::size_t, Buffers>& buffers) {
  const torch::jit::Module rebuilt(Rebuilder(survey, buffers).rebuild(survey.module()._ivalue()));
  // Through its own file format: the old types, whose graphs may hold dense constants, stay behind.
  std::stringstream file;
  rebuilt.save(file);
  return torch::jit::load(file, std::nullopt);
}

} // namespace codecllm
