#include "emulator.h"

#include "hopper.h"

#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <condition_variable>
#include <map>
#include <memory>
#include <mutex>
#include <numeric>
#include <random>
#include <thread>
#include <vector>

thread_local dim3 threadIdx;
thread_local dim3 blockIdx;
dim3 blockDim;
dim3 gridDim;

namespace divprune {
// The dynamic shared memory of the kernels, which declare it under this name.
alignas(128) thread_local unsigned char shared_bytes[emulator::kSharedBytes];
}  // namespace divprune

namespace emulator {

int device = 0;
unsigned launches = 0;

namespace {

constexpr std::size_t kStackBytes = 64 * 1024;
constexpr std::size_t kSlotBytes = 64;

struct Copy {
    void* to;
    const void* from;
    std::size_t bytes;
    std::size_t zeros;
    std::size_t group;
};

enum class State { kReady, kWaitsForBlock, kWaitsForWarp, kWaitsForCluster, kWaitsForMail, kDone };

struct Fiber {
    // A fiber starts from its context and goes on from its jump buffer: unlike a switch of contexts, a jump needs
    // no system call.
    ucontext_t context;
    jmp_buf jump;
    bool started;
    State state;
    std::size_t exchanges;
    std::vector<Copy> copies;
    std::size_t groups;
};

struct Warp {
    std::size_t arrived;
    // Two slots a lane: a lane may publish for the next exchange while a slower one still reads this one.
    unsigned char slots[2][32 * kSlotBytes];
};

// The blocks of a cluster, which take turns: each runs until all its threads wait for the others or have returned.
class Cluster {
public:
    explicit Cluster(std::vector<std::size_t> turns)
        : turns_(std::move(turns)), memory_(turns_.size()), barriers_(turns_.size()), left_(turns_.size()) {}

    std::size_t blocks() const { return turns_.size(); }
    unsigned char* memory(std::size_t rank) const { return memory_[rank]; }

    // Waits until all blocks are there and it is this one's turn.
    void join(std::size_t rank) {
        std::unique_lock<std::mutex> lock(mutex_);
        memory_[rank] = divprune::shared_bytes;
        ++joined_;
        changed_.notify_all();
        changed_.wait(lock, [&] { return joined_ == blocks() && turns_[turn_] == rank; });
    }

    // Lets all others run up to the same barrier.
    void barrier(std::size_t rank) {
        std::unique_lock<std::mutex> lock(mutex_);
        ++barriers_[rank];
        idle_ = 0;
        do {
            pass_on(lock, rank);
        } while (waits_at_barrier(rank));
    }

    // Lets the others run, of which one may do what this one waits for.
    void yield(std::size_t rank) {
        std::unique_lock<std::mutex> lock(mutex_);
        pass_on(lock, rank);
    }
    void deliver() { idle_ = 0; }

    void leave(std::size_t rank) {
        std::lock_guard<std::mutex> lock(mutex_);
        idle_ = 0;
        left_[rank] = true;
        next();
    }

private:
    void pass_on(std::unique_lock<std::mutex>& lock, std::size_t rank) {
        require(++idle_ <= blocks(), "a cluster waits for mail that never comes");
        next();
        changed_.wait(lock, [&] { return turns_[turn_] == rank; });
    }

    bool waits_at_barrier(std::size_t rank) const {
        bool waits = false;
        for (std::size_t other = 0; other < blocks(); ++other) {
            const bool behind = barriers_[other] < barriers_[rank];
            require(!behind || !left_[other], "a cluster waits for a block that has returned");
            waits = waits || behind;
        }
        return waits;
    }

    void next() {
        for (std::size_t tried = 0; tried < blocks(); ++tried) {
            turn_ = (turn_ + 1) % blocks();
            if (!left_[turns_[turn_]]) {
                break;
            }
        }
        changed_.notify_all();
    }

    std::vector<std::size_t> turns_;
    std::vector<unsigned char*> memory_;
    std::mutex mutex_;
    std::condition_variable changed_;
    std::size_t turn_ = 0;
    std::size_t joined_ = 0;
    std::vector<std::size_t> barriers_;  // that each has come to
    std::vector<bool> left_;
    std::size_t idle_ = 0;
};

// One block, on the thread that runs it.
thread_local std::vector<std::unique_ptr<unsigned char[]>> stacks;
thread_local std::vector<Fiber> fibers;
thread_local std::vector<Warp> warps;
thread_local jmp_buf scheduler;
thread_local std::size_t running;
thread_local Cluster* cluster = nullptr;
thread_local std::size_t rank = 0;

const std::function<void()>* entry;
unsigned schedule_seed = 0;
std::map<const void*, std::size_t> shared_limits;

void begin_fiber() {
    (*entry)();
    end_asynchronous_thread(running);
    fibers[running].state = State::kDone;
    _longjmp(scheduler, 1);
}

void pause(State state) {
    Fiber& fiber = fibers[running];
    fiber.state = state;
    if (_setjmp(fiber.jump) == 0) {
        _longjmp(scheduler, 1);
    }
}

// Runs one fiber until it waits or ends.
__attribute__((noinline)) void resume(std::size_t index) {
    running = index;
    threadIdx = dim3(static_cast<unsigned>(index), 0, 0);
    if (_setjmp(scheduler) == 0) {
        Fiber& fiber = fibers[index];
        if (fiber.started) {
            _longjmp(fiber.jump, 1);
        }
        fiber.started = true;
        setcontext(&fiber.context);
    }
}

// 0: ascending, 1: descending, otherwise shuffled anew at every use.
std::vector<std::size_t> order(std::size_t count) {
    static std::mt19937 random;
    std::vector<std::size_t> indices(count);
    std::iota(indices.begin(), indices.end(), std::size_t{0});
    if (schedule_seed == 1) {
        std::reverse(indices.begin(), indices.end());
    } else if (schedule_seed > 1) {
        static unsigned seeded = 0;
        if (seeded != schedule_seed) {
            random.seed(seeded = schedule_seed);
        }
        std::shuffle(indices.begin(), indices.end(), random);
    }
    return indices;
}

void run_block() {
    while (stacks.size() < blockDim.x) {
        stacks.emplace_back(new unsigned char[kStackBytes]);
    }
    fibers.resize(blockDim.x);
    warps.resize(blockDim.x / 32);
    // What a kernel reads before writing it is a NaN.
    std::memset(divprune::shared_bytes, 0xff, sizeof divprune::shared_bytes);
    for (std::size_t i = 0; i < fibers.size(); ++i) {
        Fiber& fiber = fibers[i];
        getcontext(&fiber.context);
        fiber.context.uc_stack.ss_sp = stacks[i].get();
        fiber.context.uc_stack.ss_size = kStackBytes;
        fiber.context.uc_link = nullptr;
        makecontext(&fiber.context, begin_fiber, 0);
        fiber.started = false;
        fiber.state = State::kReady;
        fiber.exchanges = 0;
        fiber.copies.clear();
        fiber.groups = 0;
    }
    for (Warp& warp : warps) {
        warp.arrived = 0;
    }
    begin_asynchronous(fibers.size());
    for (;;) {
        bool progress = false;
        for (const std::size_t i : order(fibers.size())) {
            if (fibers[i].state == State::kReady) {
                progress = true;
                resume(i);
            }
        }
        if (progress) {
            continue;
        }
        std::size_t waiting = 0;
        std::size_t outside = 0;
        std::size_t mail = 0;
        std::size_t done = 0;
        for (const Fiber& fiber : fibers) {
            waiting += fiber.state == State::kWaitsForBlock;
            outside += fiber.state == State::kWaitsForCluster;
            mail += fiber.state == State::kWaitsForMail;
            done += fiber.state == State::kDone;
        }
        if (done == fibers.size()) {
            end_asynchronous();
            return;
        }
        if (mail > 0) {
            require(cluster != nullptr, "a block without a cluster waits for mail");
            cluster->yield(rank);
            for (Fiber& fiber : fibers) {
                fiber.state = fiber.state == State::kWaitsForMail ? State::kReady : fiber.state;
            }
            continue;
        }
        require(waiting + outside + done == fibers.size(), "a warp waits for a lane that never comes");
        require(done == 0, "a block waits for a thread that has returned");
        require(waiting == 0 || outside == 0, "threads of a block wait at different barriers");
        if (outside > 0 && cluster != nullptr) {
            cluster->barrier(rank);
        }
        for (Fiber& fiber : fibers) {
            fiber.state = State::kReady;
        }
    }
}

}  // namespace

void fail(const char* what) {
    std::fprintf(stderr, "emulator: %s (block %u %u, thread %u)\n", what, blockIdx.x, blockIdx.y, threadIdx.x);
    std::abort();
}

void run_grid(dim3 grid, dim3 block, std::size_t shared, unsigned size, const std::function<void()>& kernel) {
    require(block.x >= 1 && block.x <= 1024 && block.x % 32 == 0, "a block must be 1 to 32 whole warps");
    require(grid.x >= 1 && grid.y >= 1 && grid.y <= 65535 && grid.z == 1, "the grid is out of range");
    require(shared <= sizeof divprune::shared_bytes, "too much shared memory");
    require(size >= 1 && size <= 8 && grid.x % size == 0, "a cluster is 1 to 8 blocks of a grid of whole clusters");
    entry = &kernel;
    gridDim = grid;
    blockDim = block;
    for (const std::size_t index : order(static_cast<std::size_t>(grid.x / size) * grid.y)) {
        const unsigned first = static_cast<unsigned>(index % (grid.x / size)) * size;
        const unsigned y = static_cast<unsigned>(index / (grid.x / size));
        if (size == 1) {
            blockIdx = dim3(first, y, 0);
            run_block();
            continue;
        }
        Cluster blocks(order(size));
        std::vector<std::thread> threads;
        for (unsigned i = 0; i < size; ++i) {
            threads.emplace_back([&blocks, first, y, i] {
                cluster = &blocks;
                rank = i;
                blockIdx = dim3(first + i, y, 0);
                blocks.join(i);
                run_block();
                blocks.leave(i);
            });
        }
        for (std::thread& thread : threads) {
            thread.join();
        }
    }
}

void expect_mail(Mail& box, int bytes) {
    require(box.told == 0, "a mailbox is told twice what will come");
    box.told = 1;
    box.bytes += bytes;
    if (box.bytes == 0) {
        box = {0, 0, static_cast<int16_t>(box.times + 1)};
    }
}

void send_mail(Mail& box, uint64_t* slot, uint64_t value, int to) {
    Mail& theirs = *static_cast<Mail*>(of_block(&box, static_cast<unsigned>(to)));
    std::memcpy(of_block(slot, static_cast<unsigned>(to)), &value, sizeof value);
    theirs.bytes -= static_cast<int32_t>(sizeof value);
    // As long as its owner has not said what will come, more is taken.
    if (theirs.told == 1 && theirs.bytes == 0) {
        theirs = {0, 0, static_cast<int16_t>(theirs.times + 1)};
    }
    delivered();
}

void wait_for_mail(const Mail& box, int parity) {
    while (box.times % 2 == parity) {
        wait_a_turn();
    }
}

void wait_a_turn() { pause(State::kWaitsForMail); }

void delivered() {
    if (cluster != nullptr) {
        cluster->deliver();
    }
}

unsigned schedule() { return schedule_seed; }

void wait_for_cluster() { pause(State::kWaitsForCluster); }

unsigned cluster_rank() { return static_cast<unsigned>(rank); }

unsigned cluster_blocks() { return cluster == nullptr ? 1 : static_cast<unsigned>(cluster->blocks()); }

void* of_block(const void* shared, unsigned other) {
    require(other < cluster_blocks(), "there is no such block in the cluster");
    unsigned char* mine = static_cast<unsigned char*>(const_cast<void*>(shared));
    // What is thread_local lies at the same distance from each other in every thread.
    return cluster == nullptr ? mine : cluster->memory(other) + (mine - cluster->memory(rank));
}

void wait_for_block() { pause(State::kWaitsForBlock); }

const unsigned char* exchange(const void* mine, std::size_t bytes) {
    require(bytes <= kSlotBytes, "an exchange is too large");
    const std::size_t lane = running % 32;
    Warp& warp = warps[running / 32];
    unsigned char* slots = warp.slots[fibers[running].exchanges++ % 2];
    std::memcpy(slots + lane * kSlotBytes, mine, bytes);
    if (++warp.arrived < 32) {
        pause(State::kWaitsForWarp);
    } else {
        warp.arrived = 0;
        for (std::size_t i = 0; i < 32; ++i) {
            Fiber& other = fibers[running / 32 * 32 + i];
            if (i != lane) {
                require(other.state == State::kWaitsForWarp, "lanes of a warp take different ways");
                other.state = State::kReady;
            }
        }
    }
    // The lane that completed the exchange kept running: the index of the thread is still its own.
    return slots;
}

void queue_copy(void* to, const void* from, std::size_t bytes, std::size_t zeros) {
    require(reinterpret_cast<uintptr_t>(to) % bytes == 0, "an asynchronous copy writes misaligned");
    require(reinterpret_cast<uintptr_t>(from) % bytes == 0, "an asynchronous copy reads misaligned");
    require(zeros <= bytes && (bytes == 4 || bytes == 8 || bytes == 16), "an asynchronous copy has a bad size");
    Fiber& fiber = fibers[running];
    fiber.copies.push_back({to, from, bytes, zeros, fiber.groups});
}

void commit_copies() { ++fibers[running].groups; }

void wait_for_copies(std::size_t groups_in_flight) {
    Fiber& fiber = fibers[running];
    auto copy = fiber.copies.begin();
    for (; copy != fiber.copies.end() && copy->group + groups_in_flight < fiber.groups; ++copy) {
        std::memcpy(copy->to, copy->from, copy->bytes - copy->zeros);
        std::memset(static_cast<unsigned char*>(copy->to) + copy->bytes - copy->zeros, 0, copy->zeros);
    }
    fiber.copies.erase(fiber.copies.begin(), copy);
}

void allow_shared(const void* kernel, std::size_t bytes) { shared_limits[kernel] = bytes; }

std::size_t allowed_shared(const void* kernel) {
    const auto limit = shared_limits.find(kernel);
    return limit == shared_limits.end() ? 48 * 1024 : limit->second;
}

}  // namespace emulator

extern "C" void divprune_emulator_schedule(unsigned seed) { emulator::schedule_seed = seed; }

// 0: 132 multiprocessors, 1: 16, 2: 2.
extern "C" void divprune_emulator_device(int number) { emulator::device = number; }

// How many kernels were started since this was asked last.
extern "C" unsigned divprune_emulator_launches() {
    const unsigned started = emulator::launches;
    emulator::launches = 0;
    return started;
}
