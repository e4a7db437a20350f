// Distances by warpgroups under the emulator, at every schedule, against sums in double: ends with 1 where one is off.

#include <cmath>
#include <cstdio>
#include <cstring>
#include <vector>

#include "max_min.h"

extern "C" void divprune_emulator_schedule(unsigned seed);

namespace {

// Items, rows, width: eight steps, two parts, and tiles off the diagonal.
constexpr int kCase[][3] = {{2, 130, 456}, {1, 70, 520}, {1, 300, 64}};

uint16_t half_of(double value) {
    const _Float16 half = static_cast<_Float16>(value);
    uint16_t bits;
    std::memcpy(&bits, &half, sizeof bits);
    return bits;
}

double value_of(uint16_t bits) {
    _Float16 half;
    std::memcpy(&half, &bits, sizeof half);
    return half;
}

bool is_right(int items, int rows, int width) {
    divprune_problem problem{};
    problem.batch = items;
    problem.candidates = rows;
    problem.width = width;
    problem.keep = 1;
    problem.dtype = DIVPRUNE_FLOAT16;
    problem.product = DIVPRUNE_PRODUCT_WGMMA;
    uint64_t bytes = 0;
    divprune_workspace_bytes(&problem, &bytes);
    std::vector<uint16_t> tokens(static_cast<std::size_t>(items * rows * width) + 8);
    uint32_t random = 1;
    for (uint16_t& token : tokens) {
        random = random * 1664525u + 1013904223u;
        token = half_of((random >> 8) / 8388608.0 - 1);
    }
    std::vector<uint64_t> workspace(bytes / 8 + 2);
    std::vector<float> found(static_cast<std::size_t>(items * rows * rows) + 4);
    const auto align = [](void* at) { return (reinterpret_cast<uintptr_t>(at) + 15) / 16 * 16; };
    const uint16_t* first = reinterpret_cast<const uint16_t*>(align(tokens.data()));
    float* matrix = reinterpret_cast<float*>(align(found.data()));
    if (divprune_distances(&problem, first, matrix, reinterpret_cast<void*>(align(workspace.data())), bytes, nullptr)) {
        return false;
    }
    for (int pair = 0; pair < items * rows * rows; ++pair) {
        const int item = pair / rows / rows;
        const int i = pair / rows % rows;
        const int j = pair % rows;
        double dot = 0, ii = 0, jj = 0;
        for (int k = 0; k < width; ++k) {
            const double a = value_of(first[(item * rows + i) * width + k]);
            const double b = value_of(first[(item * rows + j) * width + k]);
            dot += a * b;
            ii += a * a;
            jj += b * b;
        }
        const double wanted = i == j ? 0 : 1 - dot / std::sqrt(ii) / std::sqrt(jj);
        if (!(std::abs(matrix[pair] - wanted) < 1e-5)) {
            std::fprintf(stderr, "distance %d %d of item %d is %g, not %g\n", i, j, item, matrix[pair], wanted);
            return false;
        }
    }
    return true;
}

}  // namespace

int main() {
    for (unsigned schedule = 0; schedule < 4; ++schedule) {
        divprune_emulator_schedule(schedule);
        for (const auto& sizes : kCase) {
            if (!is_right(sizes[0], sizes[1], sizes[2])) {
                return 1;
            }
        }
    }
    return 0;
}
