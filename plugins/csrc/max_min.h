// Max-min diversity selection on the GPU: the plain C interface of the library.
//
// Everything runs on the caller's stream and in the caller's workspace. No function allocates memory or waits for the
// device; the same inputs give the same bits on every GPU of a kind; the launches depend on the arguments and the GPU
// alone, so a call may be captured in a CUDA graph. All device pointers are 16-byte aligned, all tensors are dense and
// row-major.

#ifndef DIVPRUNE_MAX_MIN_H
#define DIVPRUNE_MAX_MIN_H

#include <stddef.h>
#include <stdint.h>

#if defined(__GNUC__)
#define DIVPRUNE_API __attribute__((visibility("default")))
#else
#define DIVPRUNE_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

// Raised when a function is added or its signature changes, here or in append_rows.h.
#define DIVPRUNE_ABI_VERSION 4

enum { DIVPRUNE_FLOAT32 = 0, DIVPRUNE_FLOAT16 = 1, DIVPRUNE_BFLOAT16 = 2 };

// How 16-bit tokens are multiplied: as `tuning.h` has it for the GPU's architecture; with the instructions that every GPU
// has; or by Hopper's warpgroups, which is refused where they are not: the library must have been built for sm_90, and the
// GPU be of it.
enum { DIVPRUNE_PRODUCT_TUNED = 0, DIVPRUNE_PRODUCT_MMA = 1, DIVPRUNE_PRODUCT_WGMMA = 2 };

// What a call returns. Everything but DIVPRUNE_CUDA_ERROR is found before anything is launched.
enum {
    DIVPRUNE_OK = 0,
    DIVPRUNE_NULL_POINTER = 1,
    DIVPRUNE_BAD_BATCH = 2,
    DIVPRUNE_BAD_CANDIDATES = 3,
    DIVPRUNE_BAD_WIDTH = 4,
    DIVPRUNE_BAD_KEEP = 5,
    DIVPRUNE_BAD_DTYPE = 6,
    DIVPRUNE_MISALIGNED = 7,
    DIVPRUNE_WORKSPACE_TOO_SMALL = 8,
    DIVPRUNE_CUDA_ERROR = 9,
    DIVPRUNE_BAD_CACHES = 10,
    DIVPRUNE_BAD_ROWS = 11,
    DIVPRUNE_BAD_ROW_BYTES = 12,
    DIVPRUNE_BAD_STRIDE = 13,
    DIVPRUNE_BAD_PRODUCT = 14
};

// The sizes of one selection. `matrix_budget` bounds the bytes of the stored distances of the whole batch; above
// it every step computes its own row of distances. 0 stands for 256 MiB.
typedef struct {
    int32_t batch;       // B, 1 to 65535
    int32_t candidates;  // N, 1 to 32768
    int32_t width;       // D, a multiple of 8, 8 to 65536
    int32_t keep;        // K, 1 to N
    int32_t dtype;       // DIVPRUNE_FLOAT32, …: the type of the tokens
    int32_t product;     // DIVPRUNE_PRODUCT_TUNED, …
    uint64_t matrix_budget;
} divprune_problem;

DIVPRUNE_API int divprune_abi_version(void);
DIVPRUNE_API const char* divprune_version(void);

// One sentence for a status; never NULL.
DIVPRUNE_API const char* divprune_status_message(int status);

// The CUDA runtime's words for the last DIVPRUNE_CUDA_ERROR of this thread; "" if there was none.
DIVPRUNE_API const char* divprune_cuda_message(void);

// Sets *bytes to the workspace that a selection of this size needs.
DIVPRUNE_API int divprune_workspace_bytes(const divprune_problem* problem, uint64_t* bytes);

// Sets *bytes to a workspace that is enough for this size and for every one with the same width and type and a
// smaller or equal batch, number of candidates and number kept; for shapes that change from call to call.
DIVPRUNE_API int divprune_workspace_bound(const divprune_problem* problem, uint64_t* bytes);

// Sets *launches to the number of kernels that a selection of this size starts.
DIVPRUNE_API int divprune_launch_count(const divprune_problem* problem, int32_t* launches);

// How a selection is spread over a GPU.
typedef struct {
    int32_t tile;         // rows of distances that a block makes, and columns of a tile
    int32_t columns;      // of distances that a block makes
    int32_t tiles;        // blocks of one item, but for those that share their tile
    int32_t parts;        // blocks of a cluster that share a tile
    int32_t shards;       // blocks of a cluster that share the picks of an item
    int32_t threads;      // of such a block
    int32_t workers;      // blocks that copy the kept rows of an item
    int32_t product;      // DIVPRUNE_PRODUCT_MMA or …_WGMMA; 0 for float32 tokens, which have neither
    int64_t cycles;       // that the distances are estimated to take; what the plan was chosen by
} divprune_spread;

// Sets *spread to what a GPU of this compute capability (without the dot) and so many multiprocessors would run with a
// library that was built for it.
DIVPRUNE_API int divprune_plan(const divprune_problem* problem, int32_t architecture, int32_t multiprocessors,
                               divprune_spread* spread);

// DivPrune: first the token whose nearest other token is farthest, then K - 1 times the token farthest from those
// already chosen. Distance 1 - cos; ties to the smallest index; rows with valid = 0 neither count nor are picked.
//
//   tokens        [B, N, D] of problem->dtype
//   valid         [B, N] bytes, 0 or 1; NULL: every row is valid. At least K rows of each item must be valid; if
//                 they are not, rows that are not valid fill the rest, the smallest index first.
//   kept_tokens   [B, K, D], copied bit for bit; NULL: only the indices are wanted
//   kept_indices  int64 [B, K], ascending and distinct
//   stream        a cudaStream_t
DIVPRUNE_API int divprune_max_min(const divprune_problem* problem, const void* tokens, const uint8_t* valid,
                                  void* kept_tokens, int64_t* kept_indices, void* workspace,
                                  uint64_t workspace_bytes, void* stream);

// The sum rule: from the row seeds[b], K - 1 times the token whose summed cosine similarity to those already chosen
// is smallest. seeds is int64 [B] on the device; a value outside [0, N) is clamped.
DIVPRUNE_API int divprune_min_sum(const divprune_problem* problem, const void* tokens, const uint8_t* valid,
                                  const int64_t* seeds, void* kept_tokens, int64_t* kept_indices, void* workspace,
                                  uint64_t workspace_bytes, void* stream);

// The two halves of a selection by themselves, for checks against a reference. `distances` is float32 [B, N, N].
// divprune_distances writes 0 on its diagonal. divprune_pick wants symmetric values in (-3, 4), takes
// seeds = NULL for max-min and [B] seeds for the sum rule, and needs no tokens (width and dtype are ignored).
DIVPRUNE_API int divprune_distances(const divprune_problem* problem, const void* tokens, float* distances,
                                    void* workspace, uint64_t workspace_bytes, void* stream);
DIVPRUNE_API int divprune_pick(const divprune_problem* problem, const float* distances, const uint8_t* valid,
                               const int64_t* seeds, int64_t* kept_indices, void* workspace,
                               uint64_t workspace_bytes, void* stream);

#ifdef __cplusplus
}
#endif

#endif
