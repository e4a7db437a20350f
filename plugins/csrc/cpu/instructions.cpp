#include "instructions.h"

#include <cstring>

namespace divprune {

extern const Instructions kBaseline;
#ifdef __x86_64__
extern const Instructions kAvx2, kAvx512;
#endif

const Instructions* find_instructions(const char* name) {
#ifdef __x86_64__
    __builtin_cpu_init();
    if (std::strcmp(name, kAvx512.name) == 0) {
        return __builtin_cpu_supports("avx512f") ? &kAvx512 : nullptr;
    }
    if (std::strcmp(name, kAvx2.name) == 0) {
        return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") ? &kAvx2 : nullptr;
    }
#endif
    return std::strcmp(name, kBaseline.name) == 0 ? &kBaseline : nullptr;
}

const Instructions* best_instructions() {
    const Instructions* best = find_instructions("avx512");
    best = best != nullptr ? best : find_instructions("avx2");
    return best != nullptr ? best : &kBaseline;
}

}  // namespace divprune
