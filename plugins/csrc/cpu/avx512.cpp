// Compiled with the options that CMakeLists.txt gives it.

#include "instructions.h"

namespace divprune {
namespace {

constexpr int kLanes = 16, kRows = 8, kColumns = 2;
#include "loops.inc"

}  // namespace

extern const Instructions kAvx512;
const Instructions kAvx512{"avx512", kPanel, pack, multiply, nearest, reach_by};

}  // namespace divprune
