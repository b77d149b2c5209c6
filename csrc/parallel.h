// Runs a range of independent jobs on libtorch's own CPU threads.
#pragma once
#include <cstdint>

extern "C" {

// Calls job(begin, end, context) over disjoint parts of [0, count) on the threads that libtorch uses
// (at::set_num_threads), and returns when all are done. job must not unwind. Returns 0, or 1 where libtorch threw.
int codecllm_parallel_for(std::int64_t count, void (*job)(std::int64_t, std::int64_t, void*), void* context);

}
