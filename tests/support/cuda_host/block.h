// A CUDA thread block, or a cluster of them, on the CPU: one fiber for each thread. Fibers are switched only where
// threads wait for each other (shuffles, votes, barriers).
//
// Every round runs the fibers in a new random order. In most rounds a random half of the warps is held back, and half
// of the blocks of a cluster. So code without a barrier that it needs reads stale values. Shared memory is NaN at
// first. The process ends with a message if not all threads reach a barrier, and if a thread accesses the shared memory
// of a block that has not started or has ended. Approximate instructions are as inexact as on the GPU: results are
// changed by up to their documented error.
#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <memory>
#include <random>
#include <vector>

#include "sinkhorn/cuda/problem.cuh"

namespace hystar_fast {

// x times 1 + e, |e| <= limit. e looks random, but it depends on x only.
inline float inexact(float x, float limit) {
    uint32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    bits = (bits ^ (bits >> 15)) * 0x2c1b3c6du;
    bits = (bits ^ (bits >> 12)) * 0x297a2d39u;
    return x * (1 + limit * (static_cast<float>(bits >> 8) / 8388608.0f - 1));
}
inline float flushed(float x) { return std::fabs(x) < 1.17549435e-38f ? 0.0f : x; }
inline float power_of_two(float x) { return flushed(inexact(std::exp2(x), 0x1p-22f)); }
inline float reciprocal(float x) { return flushed(inexact(1 / x, 0x1p-23f)); }
inline float log2_of(float x) {
    const float y = std::log2(x);
    return x >= 0.5f && x <= 2 ? y + (inexact(1 + x, 0x1p-22f) - (1 + x)) / (1 + x) : inexact(y, 0x1p-22f);
}

// Ends the process with a message. A fiber cannot throw an exception, because its stack is not that of the caller.
[[noreturn]] inline void give_up(const char* what, int count) {
    std::fprintf(stderr, "cuda_host: %d threads %s\n", count, what);
    std::abort();
}

class Fibers {
  public:
    // `group` threads are a block, which may be held back as a whole.
    Fibers(int threads, int group, uint64_t seed)
        : threads_(threads), group_(group), random_(seed), fibers_(threads), held_(threads / 32) {
        while (most_ < static_cast<unsigned>(threads)) most_ *= 2;
    }

    // Runs body(thread) of every thread until all have ended.
    void run(const std::function<void(int)>& body) {
        body_ = &body;
        for (Fiber& fiber : fibers_) fiber.state = NEW;
        held_blocks_ = threads_ > group_ ? random_() : 0;
        int freed = 0;  // 0: warps and blocks are held back, 1: only blocks, 2: nothing
        for (int left = threads_; left > 0;) {
            const auto start = static_cast<unsigned>(random_()), stride = static_cast<unsigned>(random_()) | 1;
            hold_back(freed);
            bool moved = false;
            for (unsigned i = 0; i < most_; ++i) {  // an odd stride meets every number below a power of two once
                current_ = static_cast<int>((start + stride * i) % most_);
                if (current_ >= threads_ || held_[current_ / 32]) continue;
                Fiber& fiber = fibers_[current_];
                if (fiber.state == DONE || (fiber.state == WAITING && *fiber.waits_for == fiber.round)) continue;
                moved = true;
                visit(fiber);
                left -= fiber.state == DONE;
            }
            if (!moved && freed == 2) give_up("wait at a barrier that the others never reach", left);
            if (freed == 2) held_blocks_ = threads_ > group_ ? random_() : 0;
            freed = moved ? 0 : freed + 1;
        }
    }

    // Returns true if a thread of the block whose first thread is `first` has started, and one of them has not ended.
    bool is_running(int first) const {
        bool started = false, ended = true;
        for (int t = first; t < first + group_; ++t) {
            started |= fibers_[t].state != NEW || t == current_;
            ended &= fibers_[t].state == DONE;
        }
        return started && !ended;
    }

    int current() const { return current_; }

    // A barrier for `size` threads.
    struct Barrier {
        int size, arrived = 0;
        long long round = 0;
    };
    void wait_at(Barrier& barrier) {
        if (++barrier.arrived == barrier.size) {
            barrier.arrived = 0;
            ++barrier.round;
            return;
        }
        Fiber& fiber = fibers_[current_];
        fiber.waits_for = &barrier.round;
        fiber.round = barrier.round;
        fiber.state = WAITING;
        if (_setjmp(fiber.place) == 0) _longjmp(scheduler_, 1);
    }

  private:
    static constexpr size_t STACK = 64 * 1024;
    enum State { NEW, WAITING, DONE };
    struct Fiber {
        State state = NEW;
        std::unique_ptr<char[]> stack;
        jmp_buf place;
        const long long* waits_for = nullptr;
        long long round = 0;
    };

    // Chooses at random who is held back: half of the warps, again in every round, and half of the blocks, until the
    // other blocks wait for them.
    void hold_back(int freed) {
        for (size_t warp = 0; warp < held_.size(); ++warp)
            held_[warp] = (freed < 1 && random_() % 2 == 0) ||
                          (freed < 2 && (held_blocks_ >> (32 * warp / group_) & 1) != 0);
    }

    // Runs a fiber until it waits or ends. This function is not inlined, so that no variable is used across the jump.
    __attribute__((noinline)) void visit(Fiber& fiber) {
        if (_setjmp(scheduler_) == 0) resume(fiber);
    }

    // A fiber gets its stack from makecontext. After that, jumps leave and enter it, without system calls.
    void resume(Fiber& fiber) {
        if (fiber.state == WAITING) _longjmp(fiber.place, 1);
        if (fiber.stack == nullptr) fiber.stack.reset(new char[STACK]);
        ucontext_t context;
        getcontext(&context);
        context.uc_stack.ss_sp = fiber.stack.get();
        context.uc_stack.ss_size = STACK;
        context.uc_link = nullptr;
        const auto self = reinterpret_cast<uintptr_t>(this);
        makecontext(&context, reinterpret_cast<void (*)()>(&Fibers::enter), 2, static_cast<unsigned>(self >> 32),
                    static_cast<unsigned>(self));
        setcontext(&context);
    }

    static void enter(unsigned high, unsigned low) {
        auto* self = reinterpret_cast<Fibers*>((static_cast<uintptr_t>(high) << 32) | low);
        Fiber& fiber = self->fibers_[self->current_];
        (*self->body_)(self->current_);
        fiber.state = DONE;
        _longjmp(self->scheduler_, 1);
    }

    int threads_, group_;
    unsigned most_ = 1;
    std::mt19937_64 random_;
    std::vector<Fiber> fibers_;
    std::vector<bool> held_;  // by warp
    uint64_t held_blocks_ = 0;
    jmp_buf scheduler_;
    const std::function<void(int)>* body_ = nullptr;
    int current_ = 0;
};

// The counterpart of DeviceBlock in csrc/sinkhorn/cuda/device_block.cuh.
template <int WARPS_>
class HostBlock {
  public:
    static constexpr int WARPS = WARPS_, THREADS = 32 * WARPS_;
    static constexpr bool CLUSTERED = false;
    explicit HostBlock(uint64_t seed, int blocks = 1)
        : fibers_(THREADS * blocks, THREADS, seed), all_(blocks, {THREADS}), warps_(WARPS * blocks, {32}),
          pairs_(static_cast<size_t>(32) * THREADS * blocks, {2}), lanes_(THREADS * blocks), shuffles_(THREADS * blocks),
          facts_(THREADS * blocks) {}

    int thread() const { return fibers_.current() % THREADS; }
    int lane() const { return thread() % 32; }
    int warp() const { return thread() / 32; }
    int rank() const { return fibers_.current() / THREADS; }
    void sync_warp() { fibers_.wait_at(warps_[fibers_.current() / 32]); }
    void sync() { fibers_.wait_at(all_[rank()]); }

    // A shuffle orders no memory: a lane goes on as soon as its partner has come, whatever the others have written.
    float shuffle_xor(float value, int mask) {
        const int me = fibers_.current(), partner = me - me % 32 + (me % 32 ^ mask);
        Fibers::Barrier& pair = pairs_[static_cast<size_t>(32) * (me < partner ? me : partner) + mask];
        ++shuffles_[me];
        if (partner == me) return value;
        if (pair.arrived == 0) {
            lanes_[me] = value;
            fibers_.wait_at(pair);
            return lanes_[me];
        }
        const float other = lanes_[partner];  // the partner waits, and finds our value in place of its own
        lanes_[partner] = value;
        fibers_.wait_at(pair);
        return other;
    }

    bool any(bool fact) {
        const int first = rank() * THREADS;
        facts_[first + thread()] = fact;
        sync();
        bool result = false;
        for (int t = first; t < first + THREADS; ++t) result |= facts_[t] != 0;
        sync();
        return result;
    }

    bool arrives_last(int* counter, int blocks) {
        sync();
        return any(thread() == 0 && (*counter)++ == blocks - 1);
    }

    template <class Kernel>
    void launch(Kernel kernel) {
        fibers_.run([&](int) { kernel(*this); });
        check_shuffles();
    }

  protected:
    // On a GPU all lanes of a warp take part in a shuffle.
    void check_shuffles() {
        for (size_t t = 0; t < shuffles_.size(); ++t)
            if (shuffles_[t] != shuffles_[t / 32 * 32]) give_up("of a warp took part in different shuffles", 32);
    }

    Fibers fibers_;
    std::vector<Fibers::Barrier> all_, warps_, pairs_;
    std::vector<float> lanes_;
    std::vector<long long> shuffles_;
    std::vector<char> facts_;
};

// The counterpart of DeviceCluster. The shared memories of its blocks are the elements of an array.
template <int WARPS>
class HostCluster : public HostBlock<WARPS> {
  public:
    static constexpr bool CLUSTERED = true;
    template <class Shared>
    HostCluster(uint64_t seed, std::vector<Shared>& shared)
        : HostBlock<WARPS>(seed, static_cast<int>(shared.size())), cluster_{HostBlock<WARPS>::THREADS *
                                                                            static_cast<int>(shared.size())},
          blocks_(static_cast<int>(shared.size())), memory_(reinterpret_cast<char*>(shared.data())),
          size_(sizeof(Shared)) {}

    int blocks() const { return blocks_; }
    int log2_blocks() const { return 31 - __builtin_clz(static_cast<unsigned>(blocks_)); }
    void sync_cluster() { this->fibers_.wait_at(cluster_); }
    template <class Kernel>
    void launch(Kernel kernel) {
        this->fibers_.run([&](int) { kernel(*this); });
        this->check_shuffles();
    }
    float* remote(float* here, int rank) {
        const auto offset = static_cast<size_t>(reinterpret_cast<char*>(here) - memory_ - this->rank() * size_);
        if (rank < 0 || rank >= blocks_ || offset >= size_) give_up("access shared memory outside the cluster", 1);
        if (!this->fibers_.is_running(rank * this->THREADS)) give_up("access a block that is not running", 1);
        return reinterpret_cast<float*>(memory_ + rank * size_ + offset);
    }

  private:
    Fibers::Barrier cluster_;
    int blocks_;
    char* memory_;
    size_t size_;
};

// The counterpart of DeviceGrid. An asynchronous copy happens at once or when it is waited for, at random.
template <int WARPS>
class HostGrid : public HostBlock<WARPS> {
  public:
    HostGrid(uint64_t seed, int blocks)
        : HostBlock<WARPS>(seed, blocks), grid_{HostBlock<WARPS>::THREADS * blocks}, blocks_(blocks), random_(seed),
          copies_(HostBlock<WARPS>::THREADS * blocks) {}

    int blocks() const { return blocks_; }
    void sync_grid() { this->fibers_.wait_at(grid_); }
    template <class Vector>
    void copy_async(Vector* to, const float* from) {
        if (reinterpret_cast<uintptr_t>(to) % sizeof(Vector) != 0 || reinterpret_cast<uintptr_t>(from) % sizeof(Vector) != 0)
            give_up("copy between places that are not aligned", 1);
        Copy copy{reinterpret_cast<char*>(to), reinterpret_cast<const char*>(from), sizeof(Vector)};
        if (random_() % 2 == 0) copy.run();
        else mine().back().push_back(copy);
    }
    void commit_copies() { mine().emplace_back(); }
    void wait_for_copies(int but) {
        auto& groups = mine();
        while (static_cast<int>(groups.size()) > but + 1) {
            for (Copy& copy : groups.front()) copy.run();
            groups.pop_front();
        }
    }
    template <class Kernel>
    void launch(Kernel kernel) {
        for (auto& groups : copies_) groups.assign(1, {});
        this->fibers_.run([&](int) { kernel(*this); });
        this->check_shuffles();
    }

  private:
    struct Copy {
        char* to;
        const char* from;
        size_t bytes;
        void run() { std::memcpy(to, from, bytes); }
    };
    std::deque<std::vector<Copy>>& mine() { return copies_[this->fibers_.current()]; }

    Fibers::Barrier grid_;
    int blocks_;
    std::mt19937_64 random_;
    std::vector<std::deque<std::vector<Copy>>> copies_;  // of each thread: the committed groups, and the open one
};

// Memory whose bytes are all set, so that floats are NaN: shared memory at the start of a kernel.
template <class T>
struct Poisoned {
    T value;
    Poisoned() { std::memset(static_cast<void*>(&value), 0xff, sizeof value); }
};

}  // namespace hystar_fast
