#include "max_min.h"

#ifndef DIVPRUNE_VERSION
#define DIVPRUNE_VERSION "unknown"
#endif

int divprune_abi_version(void) { return DIVPRUNE_ABI_VERSION; }

const char* divprune_version(void) { return DIVPRUNE_VERSION; }

const char* divprune_status_message(int status) {
    switch (status) {
        case DIVPRUNE_OK:
            return "Success.";
        case DIVPRUNE_NULL_POINTER:
            return "A required pointer is null.";
        case DIVPRUNE_BAD_BATCH:
            return "The batch must be between 1 and 65535.";
        case DIVPRUNE_BAD_CANDIDATES:
            return "The number of candidates must be between 1 and 32768.";
        case DIVPRUNE_BAD_WIDTH:
            return "The width of a token must be a multiple of 8 between 8 and 65536.";
        case DIVPRUNE_BAD_KEEP:
            return "The number of kept tokens must be between 1 and the number of candidates.";
        case DIVPRUNE_BAD_DTYPE:
            return "Tokens must be float32, float16 or bfloat16.";
        case DIVPRUNE_MISALIGNED:
            return "Tokens, kept tokens, workspace, caches and rows must start on 16 bytes, a position on 8.";
        case DIVPRUNE_WORKSPACE_TOO_SMALL:
            return "The workspace is smaller than divprune_workspace_bytes says.";
        case DIVPRUNE_CUDA_ERROR:
            return "CUDA reported an error; divprune_cuda_message says which.";
        case DIVPRUNE_BAD_CACHES:
            return "There must be 1 to 65536 caches of at least one head, and no more new rows than one launch can copy.";
        case DIVPRUNE_BAD_ROWS:
            return "The number of new rows must be between 1 and the capacity of a cache.";
        case DIVPRUNE_BAD_ROW_BYTES:
            return "A row must have a multiple of 4 bytes between 4 and 65536.";
        case DIVPRUNE_BAD_STRIDE:
            return "Strides must be multiples of 16 bytes, at most 2^44, and no smaller than what lies between them.";
        case DIVPRUNE_BAD_PRODUCT:
            return "Warpgroups multiply 16-bit tokens on a GPU of sm_90 with a library that was built for it.";
        default:
            return "Unknown status.";
    }
}
