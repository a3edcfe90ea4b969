// A CUDA thread block on the CPU: one fiber a thread, switched only where threads meet (shuffles, votes, barriers).
//
// The fibers run in an order drawn anew for every round, and in most rounds a random half of the warps is held back, so
// code that needs a barrier it does not have sees stale values; shared memory starts as NaN. A barrier that not all
// threads reach ends the process with a message.
// Approximate instructions are as inaccurate as on the GPU: results are moved by up to their documented error.
#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <random>
#include <vector>

#include "sinkhorn_cuda.cuh"

namespace hystar_fast {

// x times 1 + e, |e| <= limit, where e looks random but depends on x alone.
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

class Fibers {
  public:
    Fibers(int threads, uint64_t seed) : threads_(threads), random_(seed), fibers_(threads) {}

    // Runs body(thread) for every thread to its end.
    void run(const std::function<void(int)>& body) {
        body_ = &body;
        for (Fiber& fiber : fibers_) fiber.state = NEW;
        bool hold = true;
        for (int left = threads_; left > 0;) {
            const auto start = static_cast<unsigned>(random_()), stride = static_cast<unsigned>(random_()) | 1;
            const uint64_t held = hold ? random_() : 0;
            bool moved = false;
            for (unsigned i = 0; i < MOST; ++i) {  // an odd stride meets every number below a power of two once
                current_ = static_cast<int>((start + stride * i) % MOST);
                if (current_ >= threads_ || (held >> (current_ / 32) & 1) != 0) continue;
                Fiber& fiber = fibers_[current_];
                if (fiber.state == DONE || (fiber.state == WAITING && *fiber.waits_for == fiber.round)) continue;
                moved = true;
                visit(fiber);
                left -= fiber.state == DONE;
            }
            hold = moved || !hold;
            if (!moved && held == 0) {
                std::fprintf(stderr, "cuda_host: %d threads wait at a barrier that the others never reach\n", left);
                std::abort();
            }
        }
    }

    int current() const { return current_; }

    // Where `size` threads meet; each passes when all have come.
    struct Meeting {
        int size, came = 0;
        long long round = 0;
    };
    void meet(Meeting& meeting) {
        if (++meeting.came == meeting.size) {
            meeting.came = 0;
            ++meeting.round;
            return;
        }
        Fiber& fiber = fibers_[current_];
        fiber.waits_for = &meeting.round;
        fiber.round = meeting.round;
        fiber.state = WAITING;
        if (_setjmp(fiber.place) == 0) _longjmp(scheduler_, 1);
    }

  private:
    static constexpr size_t STACK = 64 * 1024;
    static constexpr unsigned MOST = 1024;
    enum State { NEW, WAITING, DONE };
    struct Fiber {
        State state = NEW;
        std::unique_ptr<char[]> stack;
        jmp_buf place;
        const long long* waits_for = nullptr;
        long long round = 0;
    };

    // Runs a fiber until it waits or ends. A frame of its own, so that no variable lives across the jump.
    __attribute__((noinline)) void visit(Fiber& fiber) {
        if (_setjmp(scheduler_) == 0) resume(fiber);
    }

    // A fiber gets its stack from makecontext; after that it is left and entered by jumps, which cost no system call.
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

    int threads_;
    std::mt19937_64 random_;
    std::vector<Fiber> fibers_;
    jmp_buf scheduler_;
    const std::function<void(int)>* body_ = nullptr;
    int current_ = 0;
};

// What the block algorithms know of the block they run in; the twin of DeviceBlock in sinkhorn_cuda.cu.
template <int WARPS_>
class HostBlock {
  public:
    static constexpr int WARPS = WARPS_, THREADS = 32 * WARPS_;
    explicit HostBlock(uint64_t seed) : fibers_(THREADS, seed), all_{THREADS} {
        for (auto& warp : warps_) warp.size = 32;
    }

    int thread() const { return fibers_.current(); }
    int lane() const { return thread() % 32; }
    int warp() const { return thread() / 32; }
    void sync_warp() { fibers_.meet(warps_[warp()]); }
    void sync() { fibers_.meet(all_); }

    float shuffle_xor(float value, int mask) {
        const int me = thread();
        lanes_[me] = value;
        sync_warp();
        const float other = lanes_[me - me % 32 + (me % 32 ^ mask)];
        sync_warp();
        return other;
    }

    bool any(bool fact) {
        facts_[thread()] = fact;
        sync();
        bool result = false;
        for (bool each : facts_) result |= each;
        sync();
        return result;
    }

    template <class Kernel>
    void launch(Kernel kernel) {
        fibers_.run([&](int) { kernel(*this); });
    }

  private:
    Fibers fibers_;
    Fibers::Meeting all_, warps_[WARPS];
    float lanes_[THREADS] = {};
    bool facts_[THREADS] = {};
};

// Shared memory as a kernel finds it.
template <class T>
struct Poisoned {
    T value;
    Poisoned() { std::memset(static_cast<void*>(&value), 0xff, sizeof value); }
};

}  // namespace hystar_fast
