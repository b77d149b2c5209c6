#include "uses.h"

#include <functional>
#include <vector>

#include <torch/csrc/jit/api/function_impl.h>
#include <torch/csrc/jit/ir/constants.h>
#include <torch/csrc/jit/passes/constant_propagation.h>
#include <torch/csrc/jit/passes/dead_code_elimination.h>

namespace codecllm {

using torch::jit::Block;
using torch::jit::Graph;
using torch::jit::Node;
using torch::jit::Symbol;
using torch::jit::Value;

namespace {

Symbol aten(const char* name) {
  return Symbol::aten(name);
}

// The whole number that `value` is known to be.
std::optional<std::int64_t> constant_int(Value* value) {
  const auto known = torch::jit::toIValue(value);
  return known && known->isInt() ? std::optional(known->toInt()) : std::nullopt;
}

bool is_one(Value* value) {
  const auto known = torch::jit::toIValue(value);
  return known && known->isScalar() && known->toScalar().equal(1);
}

bool transposes(const Node* node) {
  if (node->kind() == aten("t") || node->kind() == aten("numpy_T")) {
    return true;
  }
  if (node->kind() != aten("transpose") || node->inputs().size() != 3) {
    return false;
  }
  const auto first = constant_int(node->input(1)), second = constant_int(node->input(2));
  // Of two dimensions: whatever numbers name them, they are exchanged where they differ.
  return first && second && (*first - *second) % 2 != 0;
}

// x times the matrix at `offset`, as it is in the graph.
bool multiplies(const Node* node, std::size_t offset) {
  if (node->kind() == aten("matmul") || node->kind() == aten("mm")) {
    return offset == 1 && node->inputs().size() == 2;
  }
  return node->kind() == aten("addmm") && offset == 2 && node->inputs().size() == 5 && is_one(node->input(3)) &&
      is_one(node->input(4));
}

bool asks_kind(const Node* node) {
  return node->kind() == Symbol::prim("dtype") || node->kind() == Symbol::prim("device");
}

bool asks_rows(const Node* node) {
  return node->kind() == aten("size") && node->inputs().size() == 2 && constant_int(node->input(1)) == 0;
}

Use classify(Node* node, std::size_t offset) {
  if (node->kind() == aten("linear") && offset == 1) {
    return {Role::Linear, node};
  }
  if (node->kind() == aten("embedding") && offset == 0) {
    return {Role::Embedding, node};
  }
  if (multiplies(node, offset)) {
    return {Role::Projection, node};
  }
  if (offset == 0 && asks_kind(node)) {
    return {Role::Kind, node};
  }
  if (offset == 0 && asks_rows(node)) {
    return {Role::Rows, node};
  }
  return {Role::Other, node};
}

void add_transposed_uses(Value* transposed, std::vector<Use>& uses) {
  for (const auto& use : transposed->uses()) {
    const bool multiplied = multiplies(use.user, use.offset);
    uses.push_back({multiplied ? Role::Linear : Role::Other, use.user});
  }
}

bool holds_weights(const Value* value) {
  return value->node()->kind() == torch::jit::prim::GetAttr &&
      (value->type()->isSubtypeOf(*c10::TensorType::get()) || value->type()->is_module());
}

// What a call of a function or method written in TorchScript runs, if it is given an attribute as an argument (a module whose head is
// tied to the embedding, traced, hands the weight to the head's forward).
torch::jit::GraphFunction* callee(const Node* node) {
  const bool is_method = node->kind() == torch::jit::prim::CallMethod;
  if (!is_method && node->kind() != torch::jit::prim::CallFunction) {
    return nullptr;
  }
  bool given = false;
  for (std::size_t argument = 1; argument < node->inputs().size(); ++argument) {
    given = given || holds_weights(node->input(argument));
  }
  if (!given) {
    return nullptr;
  }
  if (is_method) {
    const auto type = node->input(0)->type()->cast<c10::ClassType>();
    auto* method = type ? type->findMethod(node->s(torch::jit::attr::name)) : nullptr;
    return method ? torch::jit::tryToGraphFunction(*method) : nullptr;
  }
  const auto type = node->input(0)->type()->cast<c10::FunctionType>();
  return type ? torch::jit::tryToGraphFunction(*type->function()) : nullptr;
}

} // namespace

std::string name_of(const Node* node) {
  return node->kind().toQualString();
}

void for_each_node(Block* block, const std::function<void(Node*)>& visit) {
  for (Node* node : block->nodes()) {
    for (Block* inner : node->blocks()) {
      for_each_node(inner, visit);
    }
    visit(node);
  }
}

std::vector<Use> uses_of(Value* matrix) {
  std::vector<Use> uses;
  for (const auto& use : matrix->uses()) {
    if (use.offset == 0 && transposes(use.user)) {
      add_transposed_uses(use.user->output(), uses);
    } else {
      uses.push_back(classify(use.user, use.offset));
    }
  }
  return uses;
}

std::shared_ptr<Graph> transparent_graph(torch::jit::Function& method) {
  method.ensure_defined();
  auto graph = torch::jit::toGraphFunction(method).graph()->copy();
  // Functions call functions; one that calls itself never ends.
  constexpr int MOST_ROUNDS = 16;
  for (int round = 0; round < MOST_ROUNDS; ++round) {
    std::vector<std::pair<Node*, torch::jit::GraphFunction*>> calls;
    for_each_node(graph->block(), [&](Node* node) {
      if (auto* function = callee(node)) {
        calls.emplace_back(node, function);
      }
    });
    if (calls.empty()) {
      break;
    }
    for (const auto& [node, function] : calls) {
      function->ensure_defined();
      if (node->kind() == torch::jit::prim::CallFunction) {
        // The function itself, which comes before its arguments. A method's module is an argument.
        node->removeInput(0);
      }
      torch::jit::inlineCallTo(node, function, /*use_graph=*/true);
    }
    // What a constant argument switches off goes away. No tensor is computed here: it would be a constant in the file.
    torch::jit::ConstantPropagationImmutableTypes(graph);
    torch::jit::EliminateDeadCode(graph);
  }
  return graph;
}

} // namespace codecllm
