#include "max_min.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

namespace divprune {
namespace {

constexpr uint64_t kAlignment = 64;
// Panels along a side of the tile of products that one task computes: many tasks where there are few panels, and where
// there are many, tiles whose rows are read from memory seldom.
constexpr int kMostPanels = 8;
constexpr int kWantedTiles = 9;
// Tokens are packed and multiplied in slices that stay in a cache, but not so thin that the products, which are read and
// written once for each, come to count.
constexpr int kSliceBytes = 2 << 20;
constexpr int kThinnest = 1024;

struct Sizes {
    int panels;
    int rows;        // candidates, rounded up to whole panels
    int64_t stride;  // floats from row to row of the products
    int slice;       // values of each row in a slice
    uint64_t packed, dots, norms, masks, values, end;  // offsets in bytes

    Sizes(const Instructions& instructions, int candidates, int width) {
        panels = (candidates + instructions.panel - 1) / instructions.panel;
        rows = panels * instructions.panel;
        // Rows a multiple of a page apart would share a few sets of the cache.
        stride = rows % 1024 == 0 ? rows + 16 : rows;
        slice = std::min(width, std::max(kThinnest, kSliceBytes / (static_cast<int>(sizeof(float)) * rows)));
        end = 0;
        packed = take(static_cast<uint64_t>(rows) * slice);
        dots = take(static_cast<uint64_t>(rows) * stride);
        norms = take(rows);
        masks = take(rows);
        values = take(rows);
    }

   private:
    uint64_t take(uint64_t floats) {
        const uint64_t start = end;
        end += (floats * sizeof(float) + kAlignment - 1) / kAlignment * kAlignment;
        return start;
    }
};

// One item with everything its tasks share.
struct Item {
    const Instructions& with;
    const divprune_problem& problem;
    const Sizes sizes;
    const void* tokens;
    const uint8_t* valid;
    float* packed;
    float* dots;
    float* norms;
    int32_t* masks;
    float* values;
    int tile;
    int start;  // of the slice at hand
    int depth;

    float* row(int64_t index) const { return dots + index * sizes.stride; }
};

void pack_panel(void* data, size_t index) {
    const Item& item = *static_cast<const Item*>(data);
    item.with.pack(item.tokens, item.problem.dtype, item.problem.candidates, item.problem.width, item.start, item.depth,
                   static_cast<int>(index), item.packed + static_cast<int64_t>(index) * item.with.panel * item.depth);
}

int tiles_per_side(const Item& item) { return (item.sizes.panels + item.tile - 1) / item.tile; }

void multiply_tile(void* data, size_t index) {
    const Item& item = *static_cast<const Item*>(data);
    const Tile tile = triangle_tile(static_cast<int>(index), tiles_per_side(item));
    const int row = tile.row * item.tile, column = tile.column * item.tile;
    item.with.multiply(item.packed, item.depth, row, std::min(row + item.tile, item.sizes.panels), column,
                       std::min(column + item.tile, item.sizes.panels), item.start == 0,
                       item.start + item.depth == item.problem.width, item.dots, item.sizes.stride);
}

// A row's own product gives its norm, so equal rows are exactly as near to each other as to themselves. After that it is
// what no row is nearer to.
void measure(const Item& item) {
    for (int i = 0; i < item.sizes.rows; ++i) {
        float& self = item.row(i)[i];
        item.norms[i] = std::max(std::sqrt(self), kTiny);
        self = -std::numeric_limits<float>::infinity();
        item.masks[i] = i < item.problem.candidates && item.valid[i] != 0 ? -1 : 0;
    }
}

void find_nearest(void* data, size_t index) {
    const Item& item = *static_cast<const Item*>(data);
    const int start = static_cast<int>(index) * item.with.panel;
    for (int i = start; i < start + item.with.panel; ++i) {
        item.values[i] = item.masks[i] == 0 ? kInvalid
                                            : item.with.nearest(item.row(i), item.norms[i], item.norms, item.masks,
                                                                item.sizes.rows);
    }
}

template <Rule rule>
void pick(const Item& item, int64_t first, int64_t* kept) {
    const int n = item.problem.candidates, keep = item.problem.keep;
    for (int i = 0; i < item.sizes.rows; ++i) {
        item.values[i] = i < n ? start_value<rule>(item.masks[i] != 0) : kTaken;
    }
    for (int step = 0; step < keep; ++step) {
        kept[step] = first;
        item.values[first] = kTaken;
        if (step + 1 < keep) {
            first = item.with.reach(rule, item.row(first), item.norms[first], item.norms, item.values,
                                    item.sizes.rows);
        }
    }
    std::sort(kept, kept + keep);
}

}  // namespace

uint64_t cpu_scratch_bytes(const Instructions& instructions, int candidates, int width) {
    return Sizes(instructions, candidates, width).end;
}

bool cpu_select(const Instructions& instructions, Rule rule, const divprune_problem& problem, const void* tokens,
                const uint8_t* valid, int64_t seed, void* kept_tokens, int64_t* kept, void* scratch, const Pool& pool) {
    const Sizes sizes(instructions, problem.candidates, problem.width);
    const auto at = [&](uint64_t offset) { return static_cast<unsigned char*>(scratch) + offset; };
    Item item{instructions,
              problem,
              sizes,
              tokens,
              valid,
              reinterpret_cast<float*>(at(sizes.packed)),
              reinterpret_cast<float*>(at(sizes.dots)),
              reinterpret_cast<float*>(at(sizes.norms)),
              reinterpret_cast<int32_t*>(at(sizes.masks)),
              reinterpret_cast<float*>(at(sizes.values)),
              std::clamp(sizes.panels / kWantedTiles, 1, kMostPanels),
              0,
              0};
    const int tiles = triangle_tiles(tiles_per_side(item));
    for (; item.start < problem.width; item.start += item.depth) {
        item.depth = std::min(sizes.slice, problem.width - item.start);
        if (!pool.run(pool.context, pack_panel, sizes.panels, &item) ||
            !pool.run(pool.context, multiply_tile, tiles, &item)) {
            return false;
        }
    }
    measure(item);
    if (rule == Rule::kMaxMin) {
        if (!pool.run(pool.context, find_nearest, sizes.panels, &item)) {
            return false;
        }
        const auto farthest = std::max_element(item.values, item.values + problem.candidates);
        pick<Rule::kMaxMin>(item, farthest - item.values, kept);
    } else {
        pick<Rule::kMinSum>(item, std::clamp<int64_t>(seed, 0, problem.candidates - 1), kept);
    }
    const size_t bytes = static_cast<size_t>(problem.width) * (problem.dtype == DIVPRUNE_FLOAT32 ? 4 : 2);
    for (int i = 0; i < problem.keep; ++i) {
        std::memcpy(static_cast<unsigned char*>(kept_tokens) + i * bytes,
                    static_cast<const unsigned char*>(tokens) + kept[i] * bytes, bytes);
    }
    return true;
}

}  // namespace divprune
