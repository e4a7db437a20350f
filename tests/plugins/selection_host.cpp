// The logic that host and device share, as a library for Python.

#include "selection.h"

using namespace divprune;

extern "C" {

uint32_t ordered_key(float value) { return ordered(value); }
float ordered_value(uint32_t key) { return from_ordered(key); }
uint64_t candidate_key(float value, uint32_t index) { return candidate(value, index); }
uint32_t candidate_row(uint64_t key) { return candidate_index(key); }
float distance(float dot, float smaller, float larger) { return cosine_distance(dot, smaller, larger); }

void tile_at(int index, int per_side, int* row, int* column) {
    const Tile tile = triangle_tile(index, per_side);
    *row = tile.row;
    *column = tile.column;
}

void pick_max_min(const float* distances, int64_t stride, const uint8_t* valid, int n, int keep, float* values,
                  int64_t* picks) {
    pick_rows<Rule::kMaxMin>(distances, stride, valid, n, keep, 0, values, picks);
}

void pick_min_sum(const float* distances, int64_t stride, const uint8_t* valid, int n, int keep, int64_t seed,
                  float* values, int64_t* picks) {
    pick_rows<Rule::kMinSum>(distances, stride, valid, n, keep, seed, values, picks);
}
}
