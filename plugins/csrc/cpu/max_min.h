// The selection on the CPU, with the rules of ../max_min.h.

#pragma once

#include <cstddef>
#include <cstdint>

#include "instructions.h"

namespace divprune {

// Runs task(data, i) for all i below `count`, in any order, on any threads, and returns when all are done.
struct Pool {
    void* context;
    bool (*run)(void* context, void (*task)(void* data, size_t index), size_t count, void* data);
};

// Bytes of scratch that a selection of one item after the other needs.
uint64_t cpu_scratch_bytes(const Instructions& instructions, int candidates, int width);

// One item: tokens [N, D] of problem.dtype, valid [N]; `seed` is the sum rule's first pick. Any width from 1 up will do.
// `scratch` starts on 64 bytes. kept_tokens [K, D] is copied bit for bit, kept [K] ascending. The same input gives the same
// bits whatever the number of threads. Returns false if the pool failed.
bool cpu_select(const Instructions& instructions, Rule rule, const divprune_problem& problem, const void* tokens,
                const uint8_t* valid, int64_t seed, void* kept_tokens, int64_t* kept, void* scratch, const Pool& pool);

}  // namespace divprune
