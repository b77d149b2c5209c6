// Which matrices of a module can be compressed: found by what the graphs of its methods do with them, not by name.
#pragma once
#include <array>
#include <memory>
#include <string>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include <torch/csrc/jit/api/module.h>

#include "uses.h"

namespace codecllm {

using ObjectPtr = c10::intrusive_ptr<c10::ivalue::Object>;

// What follows a matrix' name in the names of the attributes that replace it.
constexpr std::array<const char*, 5> BUFFER_SUFFIXES = {"_header", "_scales", "_tables", "_tiles", "_payload"};
constexpr const char* LIKE_SUFFIX = "_like";
constexpr const char* PATH_SUFFIX = "_path";

// Where a matrix is: an attribute of a submodule, or a constant in the graph of a method.
struct Place {
  ObjectPtr owner; // for a constant: the first module found that has the method
  std::string attribute; // how its buffers' names begin; for a constant made up
  std::string path; // full, as users name it
  const torch::jit::Function* method; // of a constant; else null
  std::size_t ordinal; // of a constant among the matrices of the method's graph
  bool is_transposed; // it holds a view W^T of the matrix W without gaps; the roles are W's
  std::unordered_set<Role> roles;
  std::string obstacle; // why it can't be patched; empty where it can
};

// One matrix in memory and all places that hold it.
struct Matrix {
  at::Tensor tensor;
  std::vector<std::size_t> places;

  bool has(const std::vector<Place>& all, Role role) const;
  // The first obstacle of a place, or that it is used in two ways that one matrix can't serve; empty where it can be patched.
  std::string obstacle(const std::vector<Place>& all) const;
};

class Survey {
 public:
  // `constant_bytes`: what the file holds for the constants in graphs; where they claim more, reading them would pass their end.
  Survey(torch::jit::Module module, std::size_t constant_bytes);

  const torch::jit::Module& module() const { return module_; }
  const std::vector<Place>& places() const { return places_; }
  const std::vector<Matrix>& matrices() const { return matrices_; }
  // Where an operator of ours was found: the module is patched already. Empty where none was.
  const std::string& patched() const { return patched_; }

  // The place of an attribute, if it is a matrix.
  std::optional<std::size_t> place_of(const c10::ivalue::Object* owner, const std::string& attribute) const;
  // The place of a constant of `method`.
  std::optional<std::size_t> place_of(const torch::jit::Function* method, std::size_t ordinal) const;
  // The transparent graph of a method: made once, because places count the constants in it.
  const std::shared_ptr<torch::jit::Graph>& graph_of(torch::jit::Function* method);

 private:
  // One graph, and the modules that values of it are known to be.
  struct Reading {
    torch::jit::Function* method;
    std::unordered_map<const torch::jit::Value*, ObjectPtr> modules;
  };

  void collect(const ObjectPtr& object, const std::string& path);
  void read_methods(const ObjectPtr& object, const std::string& path);
  void read_graph(const ObjectPtr& self, const std::string& path, torch::jit::Function* method);
  void read_constants(const ObjectPtr& self, const std::string& path, torch::jit::Function* method);
  // prim::GetAttr: leads to a module, or to a matrix whose uses are noted.
  void read_attribute(Reading& reading, torch::jit::Node* node);
  void note_assignment(const Reading& reading, torch::jit::Node* node);
  void note_uses(std::size_t place, torch::jit::Value* value, const torch::jit::Function& method);
  // Nothing at or below `object` may change its type, since a value of that type is handed around.
  void pin(const ObjectPtr& object, const std::string& why);
  void pin_arguments(const Reading& reading, torch::jit::Node* node);
  // Results of the graph and of inner blocks are inputs of nodes that no walk visits.
  void pin_results(const Reading& reading, torch::jit::Block* block);
  void pin_types();
  // A matrix whose replacements' names are taken stays as it is.
  void check_names();
  void group();
  // A matrix of which something else shows a part may be written through that.
  void check_overlaps();
  void check_constants(std::size_t stored) const;

  torch::jit::Module module_;
  std::vector<Place> places_;
  std::vector<Matrix> matrices_;
  std::string patched_;
  std::string autocast_; // a method that enters autocast
  std::vector<std::pair<ObjectPtr, std::string>> objects_;
  // Tensors that are no matrices, alone or in lists, tuples and dicts.
  std::vector<std::pair<at::Tensor, std::string>> others_;
  std::unordered_set<const c10::ivalue::Object*> seen_;
  std::unordered_map<const c10::ivalue::Object*, std::unordered_map<std::string, std::size_t>> by_attribute_;
  std::unordered_map<const torch::jit::Function*, std::unordered_map<std::size_t, std::size_t>> by_constant_;
  std::unordered_map<const torch::jit::Function*, std::shared_ptr<torch::jit::Graph>> graphs_;
  // Types whose values come from somewhere else than an attribute, and where.
  std::unordered_map<c10::TypePtr, std::string> pinned_types_;
};

// The matrix that a constant node holds, if it is one.
std::optional<at::Tensor> matrix_constant(const torch::jit::Node* node);

// All functions of a class: methods and hooks.
std::vector<torch::jit::Function*> functions_of(const c10::ClassTypePtr& type);

} // namespace codecllm
