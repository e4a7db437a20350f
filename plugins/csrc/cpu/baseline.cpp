// What every processor of the architecture has: SSE2, or NEON with twice the registers.

#include "instructions.h"

namespace divprune {
namespace {

#ifdef __aarch64__
constexpr int kLanes = 4, kRows = 4, kColumns = 4;
#else
constexpr int kLanes = 4, kRows = 4, kColumns = 2;
#endif
#include "loops.inc"

}  // namespace

extern const Instructions kBaseline;
const Instructions kBaseline{"baseline", kPanel, pack, multiply, nearest, reach_by};

}  // namespace divprune
