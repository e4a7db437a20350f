// Selections in several spans of one prompt, each by itself: the part of the pruner that needs nothing of Edge-LLM.

#pragma once

#include <stdexcept>
#include <string>
#include <vector>

#include "../max_min.h"

namespace divprune {

// Rows [begin, end) of the prompt are the visual tokens of an image or of a frame; `keep` of them stay.
struct Span {
    int32_t begin;
    int32_t end;
    int32_t keep;
};

// Up to 4096 tokens in a span the distances are stored, beyond that computed row by row; a device whose memory the
// engine shares should not give up more for a prompt that rarely comes.
constexpr uint64_t kMatrixBudget = 64ull << 20;

inline void check_status(int status) {
    if (status == DIVPRUNE_CUDA_ERROR) {
        throw std::runtime_error(std::string("divprune: ") + divprune_cuda_message());
    }
    if (status != DIVPRUNE_OK) {
        throw std::runtime_error(std::string("divprune: ") + divprune_status_message(status));
    }
}

inline divprune_problem span_problem(int32_t rows, int32_t keep, int32_t width) {
    divprune_problem problem{};
    problem.batch = 1;
    problem.candidates = rows;
    problem.width = width;
    problem.keep = keep;
    problem.dtype = DIVPRUNE_FLOAT16;
    problem.matrix_budget = kMatrixBudget;
    return problem;
}

// Workspace that is enough for every span of up to `rows` rows. Throws if the kernels refuse the sizes.
inline uint64_t span_workspace_bytes(int32_t rows, int32_t width) {
    const divprune_problem largest = span_problem(rows, rows, width);
    uint64_t bytes = 0;
    check_status(divprune_workspace_bound(&largest, &bytes));
    return bytes;
}

// A span's indices start on 16 bytes, as the kernels want it.
inline int64_t room(const Span& span) { return span.keep + span.keep % 2; }

// int64 that the indices of all spans take.
inline int64_t room(const std::vector<Span>& spans) {
    int64_t rows = 0;
    for (const Span& span : spans) {
        rows += room(span);
    }
    return rows;
}

// Starts the selections on the stream, one after the other in the same workspace.
//   prompt  float16 [rows, width] on the device, of which the spans are part
//   kept    int64 [room(spans)] on the device: each span's indices, counted from its begin
inline void select_spans(const void* prompt, int32_t width, const std::vector<Span>& spans, int64_t* kept,
                         void* workspace, uint64_t workspace_bytes, void* stream) {
    for (const Span& span : spans) {
        const divprune_problem problem = span_problem(span.end - span.begin, span.keep, width);
        const char* tokens = static_cast<const char*>(prompt) + int64_t{2} * span.begin * width;
        check_status(divprune_max_min(&problem, tokens, nullptr, nullptr, kept, workspace, workspace_bytes, stream));
        kept += room(span);
    }
}

// Turns what select_spans wrote, copied to the host, into ascending positions in the prompt.
inline void to_positions(const std::vector<Span>& spans, const int64_t* kept, std::vector<int32_t>& positions) {
    positions.clear();
    for (const Span& span : spans) {
        for (int32_t i = 0; i < span.keep; ++i) {
            positions.push_back(span.begin + static_cast<int32_t>(kept[i]));
        }
        kept += room(span);
    }
}

}  // namespace divprune
