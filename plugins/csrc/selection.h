// What host and device share: the order of candidates, the two rules, the shape of the tiles.
//
// A candidate's value and index are packed into one 64-bit key whose plain integer order is the order of choice:
// larger value first, among equals the smaller index. Reducing by integer maximum is exact in any order, which is
// what makes the selection the same bits on every run.

#pragma once

#include <cstdint>
#include <cstring>

#ifdef __CUDACC__
#define DIVPRUNE_SHARED __host__ __device__ __forceinline__
#else
#define DIVPRUNE_SHARED inline
#endif

namespace divprune {

// Above every cosine distance, which is at most 2 plus rounding: a row to which nothing is near yet.
constexpr float kFar = 4.0f;
// Below every distance and every sum of distances: rows that are not valid, and rows that are chosen.
constexpr float kInvalid = -4.0f;
constexpr float kTaken = -8.0f;
// Below these: what a thread holds beyond the last row.
constexpr float kNowhere = -16.0f;
// Between the sums of distances (rounding may take those slightly below 0) and kInvalid.
constexpr float kLive = -3.0f;
// FLT_MIN: what a norm is bounded by below, so that a zero row has distance 1 to every other.
constexpr float kTiny = 1.17549435e-38f;

// Threads that share the picks of one item, over all its blocks, at most.
constexpr int kPickThreads = 1024;

enum class Rule { kMaxMin, kMinSum };

DIVPRUNE_SHARED uint32_t float_bits(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

DIVPRUNE_SHARED float bits_float(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

// An unsigned integer in the order of the float: a < b exactly when ordered(a) < ordered(b). -0 counts as +0.
DIVPRUNE_SHARED uint32_t ordered(float value) {
    const uint32_t bits = float_bits(value + 0.0f);
    return bits ^ (static_cast<uint32_t>(static_cast<int32_t>(bits) >> 31) | 0x80000000u);
}

DIVPRUNE_SHARED float from_ordered(uint32_t key) {
    return bits_float((key & 0x80000000u) ? key & 0x7fffffffu : ~key);
}

DIVPRUNE_SHARED uint64_t pack(uint32_t key, uint32_t index) {
    return static_cast<uint64_t>(key) << 32 | static_cast<uint32_t>(~index);
}

DIVPRUNE_SHARED uint64_t candidate(float value, uint32_t index) { return pack(ordered(value), index); }

DIVPRUNE_SHARED uint32_t candidate_index(uint64_t candidate) { return ~static_cast<uint32_t>(candidate); }

// Where a row's value starts before anything is chosen.
template <Rule rule>
DIVPRUNE_SHARED float start_value(bool valid) {
    if (!valid) {
        return kInvalid;
    }
    return rule == Rule::kMaxMin ? kFar : 0.0f;
}

// A row's value after a row at `distance` was chosen. The sum rule adds distances: the largest sum of 1 - cos is
// the smallest sum of cos. A distance that is not a number leaves the value, so values stay comparable.
template <Rule rule>
DIVPRUNE_SHARED float accumulate(float value, float distance) {
    if (rule == Rule::kMaxMin) {
#if defined(__CUDACC__) && defined(__CUDA_ARCH__)
        return fminf(distance, value);  // one instruction, which also prefers a number
#else
        return distance < value ? distance : value;
#endif
    }
    const float sum = value + distance;
    return value > kLive && sum == sum ? sum : value;
}

// 1 - cos from a dot product and two bounded norms. Dividing by the row with the smaller index first keeps the
// distance exactly symmetric.
DIVPRUNE_SHARED float cosine_distance(float dot, float norm_of_smaller, float norm_of_larger) {
    return 1.0f - dot / norm_of_smaller / norm_of_larger;
}

// Columns of tiles that are walked through side by side, from row to row: what runs at a time then shares rows and
// columns, and brings few of them into a cache.
constexpr int kTileColumns = 8;

// Tiles of the upper triangle: those of the first columns from row to row, then those of the next.
struct Tile {
    int row;
    int column;
};

DIVPRUNE_SHARED int triangle_tiles(int per_side) { return per_side * (per_side + 1) / 2; }

DIVPRUNE_SHARED Tile triangle_tile(int index, int per_side) {
    int first = 0;
    while (first + kTileColumns < per_side && triangle_tiles(first + kTileColumns) <= index) {
        first += kTileColumns;
    }
    index -= triangle_tiles(first);
    int row = 0;
    int columns = per_side - first < kTileColumns ? per_side - first : kTileColumns;
    if (index < first * columns) {
        return {index / columns, first + index % columns};
    }
    // Below them a triangle, whose rows get shorter.
    for (index -= first * columns; index >= columns; --columns) {
        index -= columns;
        ++row;
    }
    return {first + row, first + row + index};
}

// The picks of one item on a stored matrix, in the order in which they are made: the device's logic with a loop
// where the device has threads. `values` is scratch of n floats; `stride` separates the rows of `distances`.
template <Rule rule>
inline void pick_rows(const float* distances, int64_t stride, const uint8_t* valid, int n, int keep, int64_t seed,
                      float* values, int64_t* picks) {
    const auto is_valid = [&](int row) { return valid == nullptr || valid[row] != 0; };
    uint64_t best = 0;
    if (rule == Rule::kMinSum) {
        best = candidate(0.0f, static_cast<uint32_t>(seed < 0 ? 0 : seed >= n ? n - 1 : seed));
    }
    for (int i = 0; i < n; ++i) {
        values[i] = start_value<rule>(is_valid(i));
        if (rule == Rule::kMaxMin) {
            float nearest = values[i];
            for (int j = 0; j < n && is_valid(i); ++j) {
                if (j != i && is_valid(j)) {
                    nearest = accumulate<rule>(nearest, distances[i * stride + j]);
                }
            }
            const uint64_t mine = candidate(nearest, static_cast<uint32_t>(i));
            best = mine > best ? mine : best;
        }
    }
    for (int step = 0; step < keep; ++step) {
        const uint32_t pick = candidate_index(best);
        picks[step] = pick;
        best = 0;
        for (int i = 0; i < n; ++i) {
            values[i] = static_cast<uint32_t>(i) == pick ? kTaken
                                                         : accumulate<rule>(values[i], distances[pick * stride + i]);
            const uint64_t mine = candidate(values[i], static_cast<uint32_t>(i));
            best = mine > best ? mine : best;
        }
    }
}

}  // namespace divprune
