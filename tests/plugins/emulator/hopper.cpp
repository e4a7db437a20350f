#include "cuda.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

namespace divprune {
extern thread_local unsigned char shared_bytes[];
}

namespace emulator {
namespace {

// Dynamic shared memory does not begin on eight rows of 128 bytes.
constexpr uint32_t kBegin = 1024 + 384;
constexpr uint32_t kRow = 128;
constexpr int kProductDepth = 16;

bool boxes_are_early() { return schedule() % 2 == 1; }
bool products_are_early() { return schedule() / 2 % 2 == 1; }

struct Box {
    CUtensorMap tensor;
    unsigned rank;  // of the block to which it comes
    unsigned char* memory;  // of that block
    Barrier* barrier;
    uint32_t at;
    int k;
    int row;
    int item;
};

struct Product {
    uint64_t rows;
    uint64_t columns;
    Widen widen;
    std::size_t group;
};

struct Thread {
    float* sums = nullptr;  // while products are under way
    float true_sums[kSums];
    std::vector<Product> products;
    std::size_t groups = 0;
    std::size_t issued = 0;
    bool fenced = false;
    bool has_read = false;  // shared memory, since the last fence between the two ways to it
};

// Of all blocks of the cluster, which run one at a time.
std::vector<Box> boxes;
thread_local std::vector<Thread> threads;
// What each warpgroup multiplied: all its threads must say the same.
thread_local std::vector<std::vector<std::pair<uint64_t, uint64_t>>> said;

Thread& self() { return threads[threadIdx.x]; }

uint32_t swizzled(uint32_t address) { return address ^ (address / kRow % 8 * 16); }

// Brings a box: what lies outside of the tensor is zero.
void bring(const Box& box) {
    const CUtensorMap& tensor = box.tensor;
    for (uint32_t r = 0; r < tensor.box[1]; ++r) {
        for (uint32_t c = 0; c < tensor.box[0]; ++c) {
            const int64_t k = static_cast<int64_t>(box.k) + c;
            const int64_t row = static_cast<int64_t>(box.row) + r;
            uint16_t value = 0;
            if (k >= 0 && k < static_cast<int64_t>(tensor.sizes[0]) && row >= 0 &&
                row < static_cast<int64_t>(tensor.sizes[1]) && box.item < static_cast<int64_t>(tensor.sizes[2])) {
                std::memcpy(&value, tensor.tokens + box.item * tensor.strides[1] + row * tensor.strides[0] + 2 * k, 2);
            }
            const uint32_t linear = box.at + r * kRow + 2 * c;
            const uint32_t at = tensor.swizzled ? swizzled(linear) : linear;
            std::memcpy(box.memory + (at - kBegin), &value, 2);
        }
    }
    box.barrier->complete(static_cast<int>(tensor.box[1] * kRow));
}

// A value of a matrix that a descriptor describes.
uint16_t value_at(uint64_t matrix, int row, int k) {
    const uint32_t start = static_cast<uint32_t>(matrix & 0x3fff) << 4;
    const uint32_t apart = static_cast<uint32_t>(matrix >> 32 & 0x3fff) << 4;
    const uint32_t linear = start + static_cast<uint32_t>(row / 8) * apart + static_cast<uint32_t>(row % 8) * kRow +
                            2 * static_cast<uint32_t>(k);
    const uint32_t at = swizzled(linear);
    require(at >= kBegin && at - kBegin + 2 <= kSharedBytes, "a product reads outside of shared memory");
    uint16_t value;
    std::memcpy(&value, divprune::shared_bytes + (at - kBegin), sizeof value);
    return value;
}

void check_matrix(uint64_t matrix) {
    require(matrix >> 62 == 1, "only matrices in the order of 128 bytes are emulated");
    require((matrix >> 49 & 7) == 0, "a matrix with a base offset is not emulated");
    require((matrix & 0x3fff) * 16 % 1024 < kRow, "rows of a matrix do not begin on eight rows");
    require((matrix & ~(3ull << 62 | 7ull << 49 | 0x3fffull | 0x3fffull << 16 | 0x3fffull << 32)) == 0,
            "a descriptor has bits where it has no field");
}

void run_product(Thread& thread, const Product& product) {
    const int warp = static_cast<int>(threadIdx.x) / 32 % 4;
    const int lane = static_cast<int>(threadIdx.x) % 32;
    float rows[2][kProductDepth];
    for (int h = 0; h < 2; ++h) {
        for (int k = 0; k < kProductDepth; ++k) {
            rows[h][k] = product.widen(value_at(product.rows, 16 * warp + lane / 4 + 8 * h, k));
        }
    }
    for (int b = 0; b < kSums / 4; ++b) {
        for (int e = 0; e < 2; ++e) {
            for (int k = 0; k < kProductDepth; ++k) {
                const float column = product.widen(value_at(product.columns, 8 * b + lane % 4 * 2 + e, k));
                for (int h = 0; h < 2; ++h) {
                    thread.true_sums[4 * b + 2 * h + e] += rows[h][k] * column;
                }
            }
        }
    }
}

const float kUnknown = std::numeric_limits<float>::quiet_NaN();

}  // namespace

uint32_t shared_address(const void* shared) {
    const unsigned char* at = static_cast<const unsigned char*>(shared);
    require(at >= divprune::shared_bytes && at <= divprune::shared_bytes + kSharedBytes, "not in shared memory");
    return kBegin + static_cast<uint32_t>(at - divprune::shared_bytes);
}

void Barrier::init(int arrivals) {
    bytes_ = 0;
    count_ = static_cast<uint8_t>(arrivals);
    arrived_ = 0;
    phases_ = 0;
    brings_ = false;
}

void Barrier::advance() {
    if (arrived_ == count_ && bytes_ == 0) {
        arrived_ = 0;
        ++phases_;
    }
    delivered();
}

void Barrier::arrive() {
    require(count_ > 0, "a barrier was not initialized");
    require(arrived_ < count_, "more arrive at a barrier than it waits for");
    ++arrived_;
    advance();
}

void Barrier::expect(int bytes) {
    bytes_ += bytes;
    brings_ = true;
    arrive();
}

void Barrier::complete(int bytes) {
    require(count_ > 0, "a box comes to a barrier that was not initialized");
    bytes_ -= bytes;
    advance();
}

void Barrier::arrive_at(int rank) {
    const unsigned first = threadIdx.x / 32 * 32;
    for (unsigned lane = first; lane < first + 32; ++lane) {
        require(!threads[lane].has_read, "a stage is freed before a fence between what was read and what will be written");
    }
    static_cast<Barrier*>(of_block(this, static_cast<unsigned>(rank)))->arrive();
}

void Barrier::wait(int parity) {
    require(count_ > 0, "a barrier is waited for that was not initialized");
    while (phases_ % 2 == parity) {
        const auto mine = [&](const Box& box) { return box.barrier == this; };
        const auto next = std::find_if(boxes.begin(), boxes.end(), mine);
        if (next == boxes.end()) {
            wait_a_turn();
            continue;
        }
        const Box box = *next;
        boxes.erase(next);
        bring(box);
    }
    self().has_read = self().has_read || brings_;
}

void Barrier::load(const CUtensorMap& tensor, void* shared, int k, int row, int item) {
    load_for(1u << cluster_rank(), tensor, shared, k, row, item);
}

void Barrier::load_for(unsigned blocks, const CUtensorMap& tensor, void* shared, int k, int row, int item) {
    const uint32_t at = shared_address(shared);
    require(at % kRow == 0, "a box comes to a place that is not on 128 bytes");
    require(blocks != 0 && blocks >> cluster_blocks() == 0, "a box is for a block that is not in the cluster");
    for (unsigned rank = 0; rank < cluster_blocks(); ++rank) {
        if ((blocks >> rank & 1) != 0) {
            const Box box{tensor, rank, static_cast<unsigned char*>(of_block(divprune::shared_bytes, rank)),
                          static_cast<Barrier*>(of_block(this, rank)), at, k, row, item};
            if (boxes_are_early()) {
                bring(box);
            } else {
                boxes.push_back(box);
                delivered();
            }
        }
    }
}

void publish_barriers() {}

void fence_async_proxy() { self().has_read = false; }

void warpgroup_fence() { self().fenced = true; }

void warpgroup_commit() { ++self().groups; }

void multiply(float (&sums)[kSums], uint64_t rows, uint64_t columns, Widen widen) {
    check_matrix(rows);
    check_matrix(columns);
    Thread& thread = self();
    require(thread.fenced, "a product without a fence before it");
    auto& others = said[threadIdx.x / 128];
    if (thread.issued == others.size()) {
        others.emplace_back(rows, columns);
    }
    require(others[thread.issued++] == std::make_pair(rows, columns), "threads of a warpgroup multiply different matrices");
    if (thread.sums == nullptr) {
        thread.sums = sums;
        std::copy(sums, sums + kSums, thread.true_sums);
    }
    require(thread.sums == sums, "two sets of sums at a time are not emulated");
    for (float& sum : sums) {
        require(thread.products.empty() || std::isnan(sum), "sums were written while products are under way");
        sum = kUnknown;
    }
    const Product product{rows, columns, widen, thread.groups};
    if (products_are_early()) {
        run_product(thread, product);
    }
    thread.products.push_back(product);
}

void wait_for_products(int groups) {
    Thread& thread = self();
    auto product = thread.products.begin();
    for (; product != thread.products.end() && product->group + static_cast<std::size_t>(groups) < thread.groups;
         ++product) {
        if (!products_are_early()) {
            run_product(thread, *product);
        }
    }
    thread.products.erase(thread.products.begin(), product);
    thread.fenced = false;
    if (thread.products.empty() && thread.sums != nullptr) {
        std::copy(thread.true_sums, thread.true_sums + kSums, thread.sums);
        thread.sums = nullptr;
    }
}

void begin_asynchronous(std::size_t count) {
    threads.assign(count, Thread{});
    said.assign(count / 128 + 1, {});
}

void end_asynchronous_thread(std::size_t thread) {
    require(threads[thread].products.empty(), "a thread ends while its products are under way");
}

void end_asynchronous() {
    for (const Box& box : boxes) {
        require(box.rank != cluster_rank(), "a block ends while a box comes to it");
    }
    for (std::size_t thread = 0; thread < threads.size(); ++thread) {
        const std::size_t all = said[thread / 128].size();
        require(threads[thread].issued == all, "a thread of a warpgroup did not take part in a product");
    }
}

}  // namespace emulator

CUresult cuTensorMapEncodeTiled(CUtensorMap* map, CUtensorMapDataType type, cuuint32_t rank, void* address,
                                const cuuint64_t* sizes, const cuuint64_t* strides, const cuuint32_t* box,
                                const cuuint32_t* steps, CUtensorMapInterleave, CUtensorMapSwizzle swizzle,
                                CUtensorMapL2promotion, CUtensorMapFloatOOBfill) {
    bool good = (type == CU_TENSOR_MAP_DATA_TYPE_FLOAT16 || type == CU_TENSOR_MAP_DATA_TYPE_BFLOAT16) && rank == 3 &&
                reinterpret_cast<uintptr_t>(map) % 64 == 0 && reinterpret_cast<uintptr_t>(address) % 16 == 0 &&
                2 * box[0] == 128;
    for (int i = 0; i < 3; ++i) {
        good = good && sizes[i] >= 1 && sizes[i] <= 1ull << 32 && box[i] >= 1 && box[i] <= 256 && steps[i] == 1;
    }
    for (int i = 0; i < 2; ++i) {
        good = good && strides[i] % 16 == 0 && strides[i] < 1ull << 40;
    }
    if (!good) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    *map = {static_cast<const unsigned char*>(address), {sizes[0], sizes[1], sizes[2]}, {strides[0], strides[1]},
            {box[0], box[1], box[2]}, swizzle == CU_TENSOR_MAP_SWIZZLE_128B};
    return CUDA_SUCCESS;
}
