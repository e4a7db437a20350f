// Appending rows to KV caches on the GPU: the other half of the library's plain C interface, under the rules of
// max_min.h. One launch for the caches of all layers; the row to write at is read on the device, so a CUDA graph that
// holds the call appends at another row each time it is replayed.

#ifndef DIVPRUNE_APPEND_ROWS_H
#define DIVPRUNE_APPEND_ROWS_H

#include "max_min.h"

#ifdef __cplusplus
extern "C" {
#endif

// The sizes of one call: `tensors` caches [heads, capacity, row_bytes], the starts of two neighbours `cache_stride`
// bytes apart, and as many blocks of new rows [heads, rows, row_bytes], `rows_stride` bytes apart.
typedef struct {
    int32_t tensors;    // keys and values of all layers, 1 to 65536
    int32_t heads;      // at least 1
    int32_t rows;       // new rows of a head, 1 to capacity
    int32_t capacity;   // rows of a head that a cache has room for
    int32_t row_bytes;  // a multiple of 4, 4 to 65536
    int32_t reserved;   // 0
    uint64_t cache_stride;  // a multiple of 16, at least heads * capacity * row_bytes, at most 2^44
    uint64_t rows_stride;   // a multiple of 16, at least heads * rows * row_bytes, at most 2^44
} divprune_append;

// Copies the new rows of every head to the rows *position, *position + 1, … of its cache, bit for bit.
//
//   new_rows   as described above
//   caches     as described above; does not overlap new_rows
//   position   int64 on the device. A row that would lie outside of the cache is not written: the host is the one
//              who can refuse it.
//   stream     a cudaStream_t
DIVPRUNE_API int divprune_append_rows(const divprune_append* sizes, const void* new_rows, void* caches,
                                      const int64_t* position, void* stream);

#ifdef __cplusplus
}
#endif

#endif
