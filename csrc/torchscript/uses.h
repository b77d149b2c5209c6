// What the graph of a method does with a matrix.
#pragma once
#include <cstddef>
#include <string>

#include <torch/csrc/jit/ir/ir.h>

namespace codecllm {

// How a use treats the matrix W.
enum class Role {
  Linear, // x W^T: aten::linear, and matmul, mm or addmm with W transposed
  Projection, // x W: matmul, mm or addmm with W itself, [in_features, out_features]
  Embedding, // rows of W
  Kind, // its dtype or device
  Rows, // its number of rows
  Other,
};

struct Use {
  Role role;
  torch::jit::Node* node; // what is replaced by an operator on the compressed matrix
};

// The uses of `matrix`; what lies behind a transposition counts as a use of the matrix itself. For Role::Other the node says what.
std::vector<Use> uses_of(torch::jit::Value* matrix);

// "aten::add", for reports.
std::string name_of(const torch::jit::Node* node);

// All nodes of the graph, those of inner blocks at their place.
void for_each_node(torch::jit::Block* block, const std::function<void(torch::jit::Node*)>& visit);

// A copy of the method's graph in which functions that are given a tensor attribute or a module are written out, so that what they
// do with it can be seen (torch.nn.functional.embedding is such a function).
std::shared_ptr<torch::jit::Graph> transparent_graph(torch::jit::Function& method);

} // namespace codecllm
