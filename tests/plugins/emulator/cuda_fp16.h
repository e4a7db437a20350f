#pragma once

#include "emulator.h"

struct __half {
    uint16_t bits;
};

inline float __half2float(__half value) {
    _Float16 number;
    std::memcpy(&number, &value.bits, sizeof number);
    return static_cast<float>(number);
}
