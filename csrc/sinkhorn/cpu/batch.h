// The problems of a batch, shared out among threads.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <memory>
#include <vector>

#include "cpu/threads.h"

namespace hystar_fast::sinkhorn {

constexpr double kBound = 1e8;  // a scaling outside [1 / kBound, kBound] is not used: A is built again first

// Number of threads, at most `threads`, that are worth starting for this work, in entries times passes over them.
inline int useful_threads(std::int64_t work, int threads) {
    constexpr std::int64_t kEntriesPerThread = 1 << 21;
    return static_cast<int>(std::min<std::int64_t>(threads, std::max<std::int64_t>(1, work / kEntriesPerThread)));
}

// Calls solve(solver, index) for every problem of the batch, with one solver for each thread, made by make().
template <typename Make, typename Solve>
void solve_batch(std::int64_t batch, int threads, const Make& make, const Solve& solve) {
    const int size = static_cast<int>(std::max<std::int64_t>(1, std::min<std::int64_t>(threads, batch)));
    std::vector<decltype(make())> solvers;
    for (int rank = 0; rank < size; ++rank) solvers.push_back(make());
    std::atomic<std::int64_t> next{0};
    cpu::run_on_threads(size, [&](int rank, int) {
        const cpu::FlushDenormals flush;
        auto& solver = *solvers[static_cast<std::size_t>(rank)];
        for (std::int64_t index = next++; index < batch; index = next++) solve(solver, index);
    });
}

}  // namespace hystar_fast::sinkhorn
