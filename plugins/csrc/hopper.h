// The launch that only sm_90a has, compiled by itself: what it is made of exists for no other architecture.

#pragma once

#include <cuda_runtime.h>

#include "launch.h"

namespace divprune {

struct DistanceArgs;

// All distances of one checked selection of 16-bit tokens, spread by clusters of `cluster` blocks of `blocks` for each
// item. Only for a GPU of sm_90.
cudaError_t wgmma_distances(const divprune_problem& problem, const DistanceArgs& args, int blocks, int cluster,
                            cudaStream_t stream);

}  // namespace divprune
