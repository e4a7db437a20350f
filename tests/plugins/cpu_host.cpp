// The selection on the CPU, as a library for Python: without ONNX Runtime, on threads of its own.

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <thread>
#include <vector>

#include "cpu/max_min.h"

using namespace divprune;

namespace {

bool run_on_threads(void* context, void (*task)(void* data, size_t index), size_t count, void* data) {
    std::atomic<size_t> next{0};
    const auto work = [&] {
        for (size_t index = next++; index < count; index = next++) task(data, index);
    };
    std::vector<std::thread> others;
    for (int i = 1; i < *static_cast<int*>(context); ++i) others.emplace_back(work);
    work();
    for (std::thread& other : others) other.join();
    return true;
}

}  // namespace

extern "C" {

int cpu_has(const char* name) { return find_instructions(name) != nullptr; }
const char* cpu_best() { return best_instructions()->name; }

int cpu_select_item(const char* name, int sum, const divprune_problem* problem, const void* tokens, const uint8_t* valid,
                    int64_t seed, void* kept_tokens, int64_t* kept, int threads) {
    const Instructions& with = *find_instructions(name);
    const uint64_t bytes = cpu_scratch_bytes(with, problem->candidates, problem->width);
    void* scratch = std::aligned_alloc(64, bytes);
    std::memset(scratch, 0xff, bytes);  // nothing may rely on what is in it
    const bool done = cpu_select(with, sum ? Rule::kMinSum : Rule::kMaxMin, *problem, tokens, valid, seed, kept_tokens,
                                 kept, scratch, {&threads, run_on_threads});
    std::free(scratch);
    return done;
}

// packed float [depth, panel] of panel 0; returns the width of a panel.
int cpu_pack(const char* name, const void* tokens, int dtype, int n, int width, int first, int depth, float* packed) {
    const Instructions& with = *find_instructions(name);
    if (packed != nullptr) with.pack(tokens, dtype, n, width, first, depth, 0, packed);
    return with.panel;
}
}
