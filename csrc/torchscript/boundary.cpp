#include "boundary.h"

#include <limits>

#include "../boundary.h"

char* codecllm_survey_new(const codecllm_module* module, codecllm::Survey** out) {
  return codecllm::guarded([&] { *out = new codecllm::Survey(module->module, module->constant_bytes); });
}

void codecllm_survey_free(codecllm::Survey* survey) {
  delete survey;
}

const char* codecllm_survey_patched(const codecllm::Survey* survey) {
  return survey->patched().c_str();
}

std::size_t codecllm_survey_matrices(const codecllm::Survey* survey) {
  return survey->matrices().size();
}

std::size_t codecllm_matrix_places(const codecllm::Survey* survey, std::size_t matrix) {
  return survey->matrices()[matrix].places.size();
}

const char* codecllm_matrix_path(const codecllm::Survey* survey, std::size_t matrix, std::size_t place) {
  return survey->places()[survey->matrices()[matrix].places[place]].path.c_str();
}

const at::Tensor* codecllm_matrix_tensor(const codecllm::Survey* survey, std::size_t matrix) {
  return &survey->matrices()[matrix].tensor;
}

unsigned codecllm_matrix_roles(const codecllm::Survey* survey, std::size_t matrix) {
  using codecllm::Role;
  const auto flag = [&](Role role, unsigned value) {
    return survey->matrices()[matrix].has(survey->places(), role) ? value : 0U;
  };
  return flag(Role::Linear, CODECLLM_LINEAR) | flag(Role::Projection, CODECLLM_PROJECTION) |
      flag(Role::Embedding, CODECLLM_EMBEDDING);
}

char* codecllm_matrix_obstacle(const codecllm::Survey* survey, std::size_t matrix) {
  const std::string obstacle = survey->matrices()[matrix].obstacle(survey->places());
  return obstacle.empty() ? nullptr : codecllm::to_text(obstacle);
}

char* codecllm_survey_patch(
    codecllm::Survey* survey, codecllm_module* module, std::size_t count, const std::size_t* matrices,
    const at::Tensor* const* buffers) {
  return codecllm::guarded([&] {
    std::unordered_map<std::size_t, codecllm::Buffers> chosen;
    for (std::size_t index = 0; index < count; ++index) {
      codecllm::Buffers own;
      for (std::size_t buffer = 0; buffer < own.size(); ++buffer) {
        own[buffer] = *buffers[own.size() * index + buffer];
      }
      chosen.emplace(matrices[index], std::move(own));
    }
    module->module = codecllm::patched(*survey, chosen);
    // Written by this process.
    module->constant_bytes = std::numeric_limits<std::size_t>::max();
  });
}
