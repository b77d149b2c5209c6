// Survey and patch for Rust (src/torchscript/survey.rs). Every function that can fail returns null, or a message that
// codecllm_free_text frees. Texts and tensors that are returned live as long as the survey.
#pragma once
#include <cstddef>

#include "module.h"
#include "patch.h"

extern "C" {

char* codecllm_survey_new(const codecllm_module* module, codecllm::Survey** out);
void codecllm_survey_free(codecllm::Survey* survey);

// Where the module was found patched already, or an empty text.
const char* codecllm_survey_patched(const codecllm::Survey* survey);
std::size_t codecllm_survey_matrices(const codecllm::Survey* survey);
std::size_t codecllm_matrix_places(const codecllm::Survey* survey, std::size_t matrix);
const char* codecllm_matrix_path(const codecllm::Survey* survey, std::size_t matrix, std::size_t place);
const at::Tensor* codecllm_matrix_tensor(const codecllm::Survey* survey, std::size_t matrix);

enum { CODECLLM_LINEAR = 1, CODECLLM_PROJECTION = 2, CODECLLM_EMBEDDING = 4 };
// What it is used for, of the above.
unsigned codecllm_matrix_roles(const codecllm::Survey* survey, std::size_t matrix);

// Why it can't be patched, or null; codecllm_free_text frees it.
char* codecllm_matrix_obstacle(const codecllm::Survey* survey, std::size_t matrix);

// Replaces `count` matrices of `module`, which was surveyed: `buffers` has five for each.
char* codecllm_survey_patch(
    codecllm::Survey* survey, codecllm_module* module, std::size_t count, const std::size_t* matrices, const at::Tensor* const* buffers);

}
