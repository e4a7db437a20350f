// The spans of a prompt, for Python: host memory, kernels through the emulator.

#include "edge_llm/spans.h"

#include <algorithm>
#include <string>

using namespace divprune;

// Selects in `count` spans of a float16 prompt [rows, width]; returns how many positions it wrote, or -1 after `error`.
extern "C" int select_in_spans(const void* prompt, int32_t width, const Span* first, int32_t count, int32_t longest,
                               int32_t* positions, char* error) {
    try {
        const std::vector<Span> spans(first, first + count);
        // With a guard behind it, and on 16 bytes as device memory is.
        std::vector<max_align_t> workspace(span_workspace_bytes(longest, width) / sizeof(max_align_t));
        std::vector<max_align_t> memory(static_cast<size_t>(room(spans)) / 2 + 1);
        int64_t* kept = reinterpret_cast<int64_t*>(memory.data());
        std::fill(kept, kept + 2 * memory.size(), -1);
        select_spans(prompt, width, spans, kept, workspace.data(), workspace.size() * sizeof(max_align_t), nullptr);
        if (kept[room(spans)] != -1) {
            throw std::runtime_error("a span wrote beyond its room");
        }
        std::vector<int32_t> found;
        to_positions(spans, kept, found);
        std::copy(found.begin(), found.end(), positions);
        return static_cast<int>(found.size());
    } catch (const std::exception& problem) {
        error[std::string(problem.what()).copy(error, 255)] = '\0';
        return -1;
    }
}
