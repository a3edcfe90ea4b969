// The threads of one call: std::thread, started by the call and joined before it returns, so that no thread is left in
// a process that forks. A team of them can share one problem and meet at barriers.
#pragma once

#include <atomic>
#include <cstdint>
#include <exception>
#include <mutex>
#include <new>
#include <system_error>
#include <thread>
#include <vector>

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

namespace hystar_fast::cpu {

// Where the part number `part` of `parts` begins when `count` items are divided evenly, in multiples of `step`.
inline std::int64_t part_begin(std::int64_t count, int part, int parts, std::int64_t step = 1) {
    const std::int64_t begin = (count + step - 1) / step * part / parts * step;
    return begin < count ? begin : count;
}

// Tells the processor that a loop waits for another thread.
inline void relax() {
#if defined(__x86_64__)
    _mm_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

// A barrier for the members of a team. It is free for a team of one.
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
            spins > 2000 ? std::this_thread::yield() : relax();
    }

private:
    std::atomic<int> waiting_{0}, round_{0};
};

// One member of the team that works on a problem: thread number `rank` of `size`.
struct Member {
    Barrier& barrier;
    int rank, size;

    void wait() const { barrier.wait(size); }
    // The items [begin, end) of this member.
    std::int64_t begin(std::int64_t count, std::int64_t step = 1) const { return part_begin(count, rank, size, step); }
    std::int64_t end(std::int64_t count, std::int64_t step = 1) const { return part_begin(count, rank + 1, size, step); }
};

// As long as an object of this class exists, its thread treats denormal numbers as zero. Computing with them is slow,
// and here they change no result.
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

// Runs body(rank, size) on up to `wanted` threads, the calling thread among them. `size` is the number of threads that
// the system granted. What a body throws is thrown again once all have ended; members that wait for each other at
// barriers must therefore throw together.
template <typename Body>
void run_on_threads(int wanted, const Body& body) {
    if (wanted <= 1) return body(0, 1);
    std::atomic<int> granted{0};
    std::mutex mutex;
    std::exception_ptr thrown;
    const auto run = [&](int rank, int size) {
        try {
            body(rank, size);
        } catch (...) {
            const std::lock_guard<std::mutex> lock(mutex);
            thrown = std::current_exception();
        }
    };
    std::vector<std::thread> threads;
    threads.reserve(static_cast<std::size_t>(wanted - 1));
    try {
        for (int rank = 1; rank < wanted; ++rank)
            threads.emplace_back([&run, &granted, rank] {
                int size = 0;
                while ((size = granted.load(std::memory_order_acquire)) == 0) std::this_thread::yield();
                run(rank, size);
            });
    } catch (const std::system_error&) {  // no more threads: those that started share the work
    } catch (const std::bad_alloc&) {     // nor memory for one
    }
    const int size = static_cast<int>(threads.size()) + 1;
    granted.store(size, std::memory_order_release);
    run(0, size);
    for (std::thread& thread : threads) thread.join();
    if (thrown) std::rethrow_exception(thrown);
}

}  // namespace hystar_fast::cpu
