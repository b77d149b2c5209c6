// Why libtorch's threads and not a pool of our own: after an operator its OpenMP threads spin for a while, and a
// second pool would compete with them for the same cores at every linear of every token.
#include "parallel.h"

#include <ATen/Parallel.h>

int codecllm_parallel_for(std::int64_t count, void (*job)(std::int64_t, std::int64_t, void*), void* context) {
  try {
    at::parallel_for(0, count, 1, [&](std::int64_t begin, std::int64_t end) { job(begin, end, context); });
    return 0;
  } catch (...) {
    return 1;
  }
}
