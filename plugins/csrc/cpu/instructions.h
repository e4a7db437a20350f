// The inner loops of a selection on the CPU, compiled once for each set of instructions and chosen when it runs.

#pragma once

#include <cstddef>
#include <cstdint>

#include "../max_min.h"
#include "../selection.h"

namespace divprune {

// A slice of tokens, some of the values of each row, as the products read it: panels of `panel` rows, in each all first
// values, all second values, …. Rows beyond the last are zeros. `dots` is float [panels * panel, stride]: the products of
// all pairs.
struct Instructions {
    const char* name;
    int panel;

    // Packs the values [first, first + depth) of panel `index` of tokens [n, width] of `dtype`.
    void (*pack)(const void* tokens, int dtype, int n, int width, int first, int depth, int index, float* packed);

    // Adds a slice's part to dots[i][j] for the panels i of [rows, rows_end) and j of [columns, columns_end) with i <= j;
    // the `first` slice sets them, and after the `last` they are copied to dots[j][i]. A product is summed in the same
    // order whatever the ranges are.
    void (*multiply)(const float* packed, int depth, int rows, int rows_end, int columns, int columns_end, bool first,
                     bool last, float* dots, int64_t stride);

    // Returns the smallest distance of a row to the `n` columns whose mask is set; kFar if there is none. n is a multiple
    // of `panel`, and a mask has all bits set or none.
    float (*nearest)(const float* dots, float norm, const float* norms, const int32_t* masks, int n);

    // Takes the distances to a row that was chosen into values [n] and returns where the largest is, of equal ones the
    // first.
    int (*reach)(Rule rule, const float* dots, float norm, const float* norms, float* values, int n);
};

// What this processor runs fastest. `name` picks one by name, as tests do; NULL if this processor has it not.
const Instructions* best_instructions();
const Instructions* find_instructions(const char* name);

}  // namespace divprune
