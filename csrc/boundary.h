// Where C++ meets Rust: no exception crosses, errors are text.
#pragma once
#include <cstdlib>
#include <cstring>
#include <exception>
#include <string>

#include <c10/util/Exception.h>

namespace codecllm {

// A copy that codecllm_free_text frees.
inline char* to_text(const std::string& text) {
  char* copy = ::strdup(text.c_str());
  if (copy == nullptr) {
    // Without memory for a message there is none for anything else.
    std::abort();
  }
  return copy;
}

// Runs `work` and returns null, or what it threw.
template <typename Work>
char* guarded(Work&& work) noexcept {
  try {
    work();
    return nullptr;
  } catch (const c10::Error& error) {
    return to_text(error.what_without_backtrace());
  } catch (const std::exception& error) {
    return to_text(error.what());
  } catch (...) {
    return to_text("an exception of an unknown type");
  }
}

} // namespace codecllm
