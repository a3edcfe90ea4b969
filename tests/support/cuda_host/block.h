// A CUDA thread block, or a cluster of them, on the CPU: one fiber for each thread. Fibers are switched only where
// threads wait for each other (shuffles, votes, barriers).
//
// memory.h checks every access: the process ends with the place in the source if a barrier is missing, or an access is
// outside its array. Beside that, every round runs the fibers in a new random order, and in most rounds a random half
// of the warps is held back, and half of the blocks of a cluster. Shared memory is NaN at first. The process ends with
// a message if not all threads reach a barrier. Approximate instructions are as inexact as on the GPU: results are
// changed by up to their documented error.
#pragma once

#include <setjmp.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <cstring>
#include <deque>
#include <functional>
#include <random>
#include <string>
#include <vector>

#include "memory.h"
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

// The stacks of fibers side by side, in huge pages where there are any: thousands of fibers run in a random order, and
// most of the time of a switch would be that of finding a page. Stacks that begin at different lines share the cache.
class Stacks {
  public:
    static constexpr size_t SIZE = 16 * 1024 + 192;
    explicit Stacks(int count) : bytes_(SIZE * count) {
        void* base = mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (base == MAP_FAILED) give_up("no memory");
        madvise(base, bytes_, MADV_HUGEPAGE);
        base_ = static_cast<char*>(base);
    }
    ~Stacks() { munmap(base_, bytes_); }
    Stacks(const Stacks&) = delete;
    char* at(int thread) const { return base_ + SIZE * thread; }
    void check(int thread) const {  // the last bytes of a stack, which grows down, are still as they were at first
        for (int i = 0; i < 256; ++i)
            if (at(thread)[i] != 0) give_up("thread " + std::to_string(thread) + " needs a larger stack");
    }

  private:
    size_t bytes_;
    char* base_;
};

class Fibers {
  public:
    // `group` threads are a block, which may be held back as a whole.
    Fibers(int threads, int group, uint64_t seed)
        : threads_(threads), group_(group), random_(seed), stacks_(threads), fibers_(threads), places_(threads),
          held_(threads / 32) {
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
                const unsigned soon = (start + stride * (i + AHEAD)) % most_;
                if (soon < fibers_.size() && !held_[soon / 32]) __builtin_prefetch(fibers_[soon].top);
                current_ = static_cast<int>((start + stride * i) % most_);
                if (current_ >= threads_ || held_[current_ / 32]) continue;
                Fiber& fiber = fibers_[current_];
                if (fiber.state == DONE || (fiber.state == WAITING && *fiber.waits_for == fiber.round)) continue;
                moved = true;
                visit(fiber);
                left -= fiber.state == DONE;
            }
            if (!moved && freed == 2) give_up(std::to_string(left) + " threads wait at a barrier that the others never reach");
            if (freed == 2) held_blocks_ = threads_ > group_ ? random_() : 0;
            freed = moved ? 0 : freed + 1;
        }
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
        fiber.top = static_cast<const char*>(__builtin_frame_address(0));
        if (_setjmp(places_[current_].jump) == 0) _longjmp(scheduler_, 1);
    }

  private:
    static constexpr unsigned AHEAD = 4;
    enum State { NEW, WAITING, DONE };
    struct Fiber {
        State state = NEW;
        const char* top = nullptr;  // of its stack, while it waits
        const long long* waits_for = nullptr;
        long long round = 0;
    };
    struct Jump {
        jmp_buf jump;
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
        memory::resume(current_, stacks_.at(current_), Stacks::SIZE);
        if (fiber.state == WAITING) _longjmp(places_[current_].jump, 1);
        ucontext_t context;
        getcontext(&context);
        context.uc_stack.ss_sp = stacks_.at(current_);
        context.uc_stack.ss_size = Stacks::SIZE;
        context.uc_link = nullptr;
        const auto self = reinterpret_cast<uintptr_t>(this);
        makecontext(&context, reinterpret_cast<void (*)()>(&Fibers::enter), 2, static_cast<unsigned>(self >> 32),
                    static_cast<unsigned>(self));
        setcontext(&context);
    }

    static void enter(unsigned high, unsigned low) {
        auto* self = reinterpret_cast<Fibers*>((static_cast<uintptr_t>(high) << 32) | low);
        Fiber& fiber = self->fibers_[self->current_];
        memory::watch();
        (*self->body_)(self->current_);
        memory::pause();
        self->stacks_.check(self->current_);
        fiber.state = DONE;
        _longjmp(self->scheduler_, 1);
    }

    int threads_, group_;
    unsigned most_ = 1;
    std::mt19937_64 random_;
    Stacks stacks_;
    std::vector<Fiber> fibers_;
    std::vector<Jump> places_;
    std::vector<bool> held_;  // by warp
    uint64_t held_blocks_ = 0;
    jmp_buf scheduler_;
    const std::function<void(int)>* body_ = nullptr;
    int current_ = 0;
};

// The counterpart of DeviceBlock in csrc/sinkhorn/cuda/device_block.cuh: `blocks` of them, each of which has `sizes`
// bytes of shared memory, an array for each size.
template <int WARPS_>
class HostBlock {
  public:
    static constexpr int WARPS = WARPS_, THREADS = 32 * WARPS_;
    static constexpr bool CLUSTERED = false;
    explicit HostBlock(uint64_t seed, std::initializer_list<size_t> sizes = {}, int blocks = 1)
        : blocks_(blocks), fibers_(THREADS * blocks, THREADS, seed), all_(blocks, {THREADS}), warps_(WARPS * blocks, {32}),
          pairs_(static_cast<size_t>(32) * THREADS * blocks, {2}), lanes_(THREADS * blocks), shuffles_(THREADS * blocks),
          facts_(THREADS * blocks) {
        for (const size_t bytes : sizes)
            for (int rank = 0; rank < blocks; ++rank) shared_.emplace_back("shared memory", bytes, rank);
    }

    int thread() const { return fibers_.current() % THREADS; }
    int lane() const { return thread() % 32; }
    int warp() const { return thread() / 32; }
    int rank() const { return fibers_.current() / THREADS; }
    void sync_warp(Place place = Place::here()) {
        const memory::Unwatched unwatched;
        if (!is_removed(place)) wait(warps_[fibers_.current() / 32], memory::WARP);
    }
    void sync(Place place = Place::here()) {
        const memory::Unwatched unwatched;
        if (!is_removed(place)) wait(all_[rank()], memory::BLOCK);
    }

    // A shuffle orders no memory: a lane goes on as soon as its partner has come, whatever the others have written.
    float shuffle_xor(float value, int mask) {
        const memory::Unwatched unwatched;
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

    // The vote of a block is a barrier. That of a single warp orders no memory.
    bool any(bool fact) {
        const memory::Unwatched unwatched;
        const int first = rank() * THREADS;
        facts_[first + thread()] = fact;
        fibers_.wait_at(all_[rank()]);
        if (WARPS > 1) memory::passed(memory::BLOCK);
        bool result = false;
        for (int t = first; t < first + THREADS; ++t) result |= facts_[t] != 0;
        fibers_.wait_at(all_[rank()]);
        return result;
    }

    bool arrives_last(int* counter, int blocks) {
        const memory::Unwatched unwatched;
        wait(all_[rank()], memory::BLOCK);
        if (thread() == 0) last_ = (*counter)++ == blocks - 1;
        wait(all_[rank()], memory::ALL);  // as the fences order it: after all that the blocks before this one wrote
        return last_;
    }

    // The shared memory of the block of this thread.
    template <class Shared>
    Shared& shared(int array = 0) {
        const memory::Unwatched unwatched;
        return *reinterpret_cast<Shared*>(shared_[array * blocks_ + rank()].at());
    }

    // Runs blocks number first_block, first_block + 1, ... of a launch.
    template <class Kernel>
    void launch(Kernel kernel, int first_block = 0) {
        run(*this, kernel, first_block);
    }

  protected:
    template <class Block, class Kernel>
    void run(Block& block, const Kernel& kernel, int first_block) {
        for (memory::Space& space : shared_) space.poison();
        memory::begin(blocks_, THREADS, first_block, Block::CLUSTERED);
        fibers_.run([&](int) { kernel(block); });
        memory::end();
        for (size_t t = 0; t < shuffles_.size(); ++t)  // on a GPU all lanes of a warp take part in a shuffle
            if (shuffles_[t] != shuffles_[t / 32 * 32]) give_up("the lanes of a warp took part in different shuffles");
    }
    void wait(Fibers::Barrier& barrier, memory::Level level) {
        fibers_.wait_at(barrier);
        memory::passed(level);
    }

    int blocks_;
    Fibers fibers_;
    std::vector<Fibers::Barrier> all_, warps_, pairs_;
    std::vector<float> lanes_;
    std::vector<long long> shuffles_;
    std::vector<char> facts_;
    std::deque<memory::Space> shared_;
    bool last_ = false;
};

// The counterpart of DeviceCluster.
template <int WARPS>
class HostCluster : public HostBlock<WARPS> {
  public:
    static constexpr bool CLUSTERED = true;
    HostCluster(uint64_t seed, size_t shared, int blocks)
        : HostBlock<WARPS>(seed, {shared}, blocks), cluster_{HostBlock<WARPS>::THREADS * blocks} {}

    int blocks() const { return this->blocks_; }
    int log2_blocks() const { return 31 - __builtin_clz(static_cast<unsigned>(this->blocks_)); }
    void sync_cluster(Place place = Place::here()) {
        const memory::Unwatched unwatched;
        if (!is_removed(place)) this->wait(cluster_, memory::ALL);
    }
    template <class Kernel>
    void launch(Kernel kernel, int first_block = 0) {
        this->run(*this, kernel, first_block);
    }
    float* remote(float* here, int rank) {
        const memory::Unwatched unwatched;
        if (rank < 0 || rank >= this->blocks_) give_up("the cluster has no block " + std::to_string(rank));
        return reinterpret_cast<float*>(this->shared_[rank].at() +
                                        (reinterpret_cast<char*>(here) - this->shared_[this->rank()].at()));
    }

  private:
    Fibers::Barrier cluster_;
};

// The counterpart of DeviceGrid. An asynchronous copy reads at once or when it is waited for, at random. Until then its
// place is NaN.
template <int WARPS>
class HostGrid : public HostBlock<WARPS> {
  public:
    HostGrid(uint64_t seed, std::initializer_list<size_t> sizes, int blocks)
        : HostBlock<WARPS>(seed, sizes, blocks), grid_{HostBlock<WARPS>::THREADS * blocks}, random_(seed),
          copies_(HostBlock<WARPS>::THREADS * blocks) {}

    int blocks() const { return this->blocks_; }
    void sync_grid(Place place = Place::here()) {
        const memory::Unwatched unwatched;
        if (!is_removed(place)) this->wait(grid_, memory::ALL);
    }
    template <class Vector>
    void copy_async(Vector* to, const float* from) {
        const memory::Unwatched unwatched;
        if (reinterpret_cast<uintptr_t>(to) % sizeof(Vector) != 0 || reinterpret_cast<uintptr_t>(from) % sizeof(Vector) != 0)
            give_up("a copy between places that are not aligned");
        memory::copy_starts(to, from, sizeof(Vector));
        Copy copy{to, from, {}, random_() % 2 == 0, sizeof(Vector)};
        std::memcpy(copy.value, from, sizeof(Vector));
        mine().back().push_back(copy);
    }
    void commit_copies(Place place = Place::here()) {
        const memory::Unwatched unwatched;
        if (!is_removed(place)) mine().emplace_back();
    }
    void wait_for_copies(int but, Place place = Place::here()) {
        const memory::Unwatched unwatched;
        auto& groups = mine();
        while (!is_removed(place) && static_cast<int>(groups.size()) > but + 1) {
            for (Copy& copy : groups.front()) {
                std::memcpy(copy.to, copy.at_once ? copy.value : copy.from, copy.bytes);
                memory::copy_ends(copy.to, copy.from, copy.bytes);
            }
            groups.pop_front();
        }
    }
    template <class Kernel>
    void launch(Kernel kernel) {
        for (auto& groups : copies_) groups.assign(1, {});
        this->run(*this, kernel, 0);
    }

  private:
    struct Copy {
        void* to;
        const void* from;
        char value[16];
        bool at_once;
        size_t bytes;
    };
    std::deque<std::vector<Copy>>& mine() { return copies_[this->fibers_.current()]; }

    Fibers::Barrier grid_;
    std::mt19937_64 random_;
    std::vector<std::deque<std::vector<Copy>>> copies_;  // of each thread: the committed groups, and the open one
};

}  // namespace hystar_fast
