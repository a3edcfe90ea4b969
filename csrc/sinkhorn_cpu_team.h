// The threads that share one problem: plain std::thread, a barrier that yields, aligned scratch memory.
#pragma once

#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <system_error>
#include <thread>
#include <vector>

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

namespace hystar_fast::sinkhorn {

// A barrier for a team; for one thread it costs nothing.
class Barrier {
public:
    void wait(int size) {
        if (size == 1) return;
        const int round = round_.load(std::memory_order_relaxed);
        if (waiting_.fetch_add(1, std::memory_order_acq_rel) + 1 == size) {
            waiting_.store(0, std::memory_order_relaxed);
            round_.store(round + 1, std::memory_order_release);
            return;
        }
        for (int spins = 0; round_.load(std::memory_order_acquire) == round; ++spins)
            if (spins > 2000) std::this_thread::yield();
    }

private:
    std::atomic<int> waiting_{0}, round_{0};
};

// This thread's place in the team that works on a problem.
struct Member {
    Barrier& barrier;
    int rank, size;

    void wait() const { barrier.wait(size); }
    std::int64_t begin(std::int64_t count, std::int64_t grain = 1) const { return share(count, grain, rank); }
    std::int64_t end(std::int64_t count, std::int64_t grain = 1) const { return share(count, grain, rank + 1); }

private:
    std::int64_t share(std::int64_t count, std::int64_t grain, int place) const {
        const std::int64_t blocks = (count + grain - 1) / grain, edge = blocks * place / size * grain;
        return edge < count ? edge : count;
    }
};

// While this lives, the thread takes numbers below the smallest normal one for zero: they carry nothing here and are slow.
class FlushDenormals {
#if defined(__x86_64__)
public:
    FlushDenormals() : before_(_mm_getcsr()) { _mm_setcsr(before_ | 0x8040); }  // flush to zero, denormals are zero
    ~FlushDenormals() { _mm_setcsr(before_); }
    FlushDenormals(const FlushDenormals&) = delete;
    FlushDenormals& operator=(const FlushDenormals&) = delete;

private:
    const unsigned before_;
#endif
};

// Runs body(rank, size) on up to `wanted` threads, this one among them; `size` is how many the system granted.
template <typename Body>
void parallel(int wanted, const Body& body) {
    const FlushDenormals flush;
    if (wanted <= 1) return body(0, 1);
    std::atomic<int> granted{0};
    std::vector<std::thread> threads;
    threads.reserve(static_cast<std::size_t>(wanted - 1));
    try {
        for (int rank = 1; rank < wanted; ++rank)
            threads.emplace_back([&body, &granted, rank] {
                const FlushDenormals flush_too;
                int size = 0;
                while ((size = granted.load(std::memory_order_acquire)) == 0) std::this_thread::yield();
                body(rank, size);
            });
    } catch (const std::system_error&) {
    }
    const int size = static_cast<int>(threads.size()) + 1;
    granted.store(size, std::memory_order_release);
    body(0, size);
    for (std::thread& thread : threads) thread.join();
}

// Memory on a cache line's boundary, zeroed unless asked otherwise.
template <typename T>
class Scratch {
public:
    explicit Scratch(std::int64_t count, bool zeroed = true) {
        const std::size_t bytes = (static_cast<std::size_t>(count) * sizeof(T) + 63) / 64 * 64;
        memory_.reset(static_cast<T*>(std::aligned_alloc(64, bytes ? bytes : 64)));
        if (!memory_) throw std::bad_alloc();
        if (zeroed) std::memset(memory_.get(), 0, bytes);
    }
    T* get() const { return memory_.get(); }

private:
    struct Free {
        void operator()(T* memory) const { std::free(memory); }
    };
    std::unique_ptr<T, Free> memory_;
};

}  // namespace hystar_fast::sinkhorn
