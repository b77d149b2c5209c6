// A module whose matrices are compressed: the types along the path are built anew, since all modules of a class share one type and
// a type fixes its attributes.
#pragma once
#include <array>
#include <unordered_map>

#include "survey.h"

namespace codecllm {

// Header, scales, tables, tiles, payload.
using Buffers = std::array<at::Tensor, 5>;

// A new module with the matrices at the given indices of the survey replaced by their buffers; the surveyed one stays as it is. Other
// tensors are copied, and nothing of the new module keeps a dense matrix alive.
torch::jit::Module patched(Survey& survey, const std::unordered_map<std::size_t, Buffers>& buffers);

} // namespace codecllm
