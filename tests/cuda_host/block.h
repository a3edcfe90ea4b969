// A CUDA thread block on the CPU: one fiber a thread, switched only where threads meet (shuffles, votes, barriers).
//
// The fibers run in an order drawn anew for every round, so code that needs a barrier it does not have sees stale
// values; shared memory starts as NaN. A barrier that not all threads reach ends the process with a message.
// Approximate instructions are as inaccurate as on the GPU: results are moved by up to their documented error.
#pragma once

#include <ucontext.h>

#include <algorithm>
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
float power_of_two(float x) { return flushed(inexact(std::exp2(x), 0x1p-22f)); }
float reciprocal(float x) { return flushed(inexact(1 / x, 0x1p-23f)); }

class Fibers {
  public:
    Fibers(int threads, uint64_t seed) : threads_(threads), random_(seed), fibers_(threads) {}

    // Runs body(thread) for every thread to its end.
    void run(const std::function<void(int)>& body) {
        body_ = &body;
        for (int t = 0; t < threads_; ++t) {
            Fiber& fiber = fibers_[t];
            fiber.stack.reset(new char[STACK]);
            getcontext(&fiber.context);
            fiber.context.uc_stack.ss_sp = fiber.stack.get();
            fiber.context.uc_stack.ss_size = STACK;
            fiber.context.uc_link = &scheduler_;
            const auto self = reinterpret_cast<uintptr_t>(this);
            makecontext(&fiber.context, reinterpret_cast<void (*)()>(&Fibers::enter), 2,
                        static_cast<unsigned>(self >> 32), static_cast<unsigned>(self));
        }
        std::vector<int> order(threads_);
        for (int t = 0; t < threads_; ++t) order[t] = t;
        for (int left = threads_; left > 0;) {
            std::shuffle(order.begin(), order.end(), random_);
            bool moved = false;
            for (int t : order) {
                Fiber& fiber = fibers_[t];
                if (fiber.done || (fiber.waits_for != nullptr && *fiber.waits_for == fiber.round)) continue;
                moved = true;
                fiber.waits_for = nullptr;
                current_ = t;
                swapcontext(&scheduler_, &fiber.context);
                left -= fiber.done;
            }
            if (!moved) {
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
        swapcontext(&fiber.context, &scheduler_);
    }

  private:
    static constexpr size_t STACK = 64 * 1024;
    struct Fiber {
        ucontext_t context;
        std::unique_ptr<char[]> stack;
        const long long* waits_for = nullptr;
        long long round = 0;
        bool done = false;
    };

    static void enter(unsigned high, unsigned low) {
        auto* self = reinterpret_cast<Fibers*>((static_cast<uintptr_t>(high) << 32) | low);
        const int thread = self->current_;
        (*self->body_)(thread);
        self->fibers_[thread].done = true;
    }

    int threads_;
    std::mt19937_64 random_;
    std::vector<Fiber> fibers_;
    ucontext_t scheduler_{};
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
