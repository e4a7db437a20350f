// What the plan of a selection knows of a GPU: one row for each architecture, from data sheets and published
// measurements (`bench/kernel_model.py` says what follows from them). A row holds from its architecture up to that of
// the next one.

#pragma once

namespace divprune {

struct Tuning {
    int architecture;     // compute capability without the dot
    int tensor;           // products with float32 sums that the tensor cores of a multiprocessor make in a cycle, as
                          // `mma.sync` reaches them
    int wgmma;            // the same as `wgmma` reaches them; 0: there is none
    bool takes_wgmma;     // 16-bit tokens are multiplied by it, where it is the faster one by these figures. It has not
                          // run on a GPU yet: until then only who asks for it gets it
    int fma;              // the same of its float32 units
    int l2;               // bytes that a multiprocessor gets from the L2 cache in a cycle, when all of them read
    int resident_warps;   // warps that a multiprocessor holds
    int parts;            // blocks that share a tile of distances, at most: those of a cluster
    int shards;           // blocks that share the picks of an item, at most: those of a cluster
    int shard_rows;       // candidates that are worth a block of their own
};

inline constexpr Tuning kTunings[] = {
    {75, 512, 0, false, 64, 32, 32, 1, 1, 1},          // T4
    {80, 1024, 0, false, 64, 40, 64, 1, 1, 1},         // A100
    {86, 256, 0, false, 128, 32, 48, 1, 1, 1},         // RTX 30: half rate with float32 sums
    {87, 1024, 0, false, 128, 48, 48, 1, 1, 1},        // Jetson Orin
    {89, 256, 0, false, 128, 32, 48, 1, 1, 1},         // RTX 40, L4
    {90, 1280, 1300, false, 128, 24, 64, 8, 8, 1024},  // H100, H200
    {100, 1280, 0, false, 128, 24, 64, 8, 8, 1024},    // B200
    {110, 1024, 0, false, 128, 32, 48, 8, 8, 1024},    // Jetson Thor
    {120, 256, 0, false, 128, 32, 48, 8, 8, 1024},     // RTX 50, DGX Spark
};

// The row of an architecture; of the oldest, for what is older.
inline const Tuning& tuning_of(int architecture) {
    const Tuning* found = kTunings;
    for (const Tuning& row : kTunings) {
        if (row.architecture <= architecture) {
            found = &row;
        }
    }
    return *found;
}

}  // namespace divprune
