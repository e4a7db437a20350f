// Compiled with the options that CMakeLists.txt gives it.

#include "instructions.h"

namespace divprune {
namespace {

constexpr int kLanes = 8, kRows = 4, kColumns = 3;
#include "loops.inc"

}  // namespace

extern const Instructions kAvx2;
const Instructions kAvx2{"avx2", kPanel, pack, multiply, nearest, reach_by};

}  // namespace divprune
