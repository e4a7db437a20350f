// Where the sum rule begins: in each item the valid row with the largest attention, of equal ones the first.

#pragma once

#include <cstdint>

#include "../max_min.h"

namespace divprune {

// attention float [B, N], valid [B, N] and seeds int64 [B] on the device; returns a status as the entry points do.
int find_seeds(const divprune_problem& problem, const float* attention, const uint8_t* valid, int64_t* seeds,
               void* stream);

}  // namespace divprune
