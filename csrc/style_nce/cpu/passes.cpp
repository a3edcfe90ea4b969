// The forward and the backward pass of StyleNCE on the CPU: their steps, and the threads that share the rows.
#include "style_nce/cpu/style_nce.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "cpu/scratch.h"
#include "cpu/threads.h"

namespace hystar_fast::style_nce {
namespace {

constexpr std::int64_t kNumbersPerThread = 1 << 19;  // numbers to read for which a thread is worth its start
constexpr std::int64_t kMultiplyAddsPerNumber = 8;   // multiply-adds in registers that take as long as reading a number

// Calls body(begin, end) for parts of the rows [0, n). Each row has `width` numbers to read; as many threads are
// started as are worth it.
template <typename Body>
void share_rows(std::int64_t n, std::int64_t width, int threads, const Body& body) {
    const std::int64_t useful = std::min<std::int64_t>({threads, n, n * width / kNumbersPerThread});
    cpu::run_on_threads(static_cast<int>(useful), [&](int rank, int size) {
        body(cpu::part_begin(n, rank, size), cpu::part_begin(n, rank + 1, size));
    });
}

// log(1 + e^x)
template <typename T>
T softplus(T x) {
    return std::max(x, T(0)) + std::log1p(std::exp(-std::abs(x)));
}

// Writes the plan to job.slope; if no plan exists, the softmax of each row.
template <typename T>
void transport(const Kernels<T>& k, const sinkhorn::Kernels<T>& plan_kernels, const Forward<T>& job, const T* cost, int threads) {
    const T epsilon = static_cast<T>(job.weights == PAPER ? job.epsilon : job.lam);
    std::int32_t info[3];
    sinkhorn::forward(plan_kernels, {cost, nullptr, 0, 1, job.n, job.n, epsilon, job.n_iter, 0.0, job.slope, nullptr, info}, threads);
    if (info[2] != INFEASIBLE) return;
    share_rows(job.n, job.n, threads, [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t i = begin; i < end; ++i) k.softmax(cost + i * job.n, job.n, epsilon, job.slope + i * job.n);
    });
}

}  // namespace

template <typename T>
void normalise(const Kernels<T>& k, const Forward<T>& job, int threads) {
    const Rows<T>* sides[2] = {&job.query, &job.target};
    share_rows(2 * job.n, job.d, threads, [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t i = begin; i < end; ++i) {
            const Rows<T>& side = *sides[i / job.n];
            job.lengths[i] = k.unit(side.data + i % job.n * side.stride, job.d, job.units + i * job.d);
        }
    });
}

template <typename T>
void forward(const Kernels<T>& k, const sinkhorn::Kernels<T>& plan_kernels, const Forward<T>& job, int threads) {
    const std::int64_t n = job.n;
    const T infinity = std::numeric_limits<T>::infinity();
    const bool computes_sim = job.sim == nullptr, uniform = job.weights == UNIFORM;
    const cpu::Scratch<T> own_sim(computes_sim ? n * n : 0, false), own_cost(uniform ? 0 : n * n, false), vectors(3 * n);
    T *sim = computes_sim ? own_sim.get() : job.sim, *cost = uniform ? job.slope : own_cost.get();
    T *excluded = vectors.get(), *strength = excluded + n, *losses = job.mean ? strength + n : job.loss;
    if (computes_sim) normalise(k, job, threads);
    for (std::int64_t i = 0; i < n; ++i)
        if (job.lengths[i] == -infinity || job.lengths[n + i] == -infinity) excluded[i] = infinity;
    const T lam = static_cast<T>(job.lam);
    const std::int64_t cosines = computes_sim ? n * job.d / kMultiplyAddsPerNumber : 0;
    share_rows(n, 2 * n + cosines, threads, [&](std::int64_t begin, std::int64_t end) {
        if (computes_sim) k.similarity(job.units, job.units + n * job.d, n, job.d, begin, end, sim);
        for (std::int64_t i = begin; i < end; ++i) {
            std::int64_t count = 0;
            if (excluded[i] == 0)
                count = k.cost(sim + i * n, job.mask ? job.mask + i * n : nullptr, excluded, i, n, lam, job.weights, cost + i * n);
            else
                std::fill(cost + i * n, cost + (i + 1) * n, uniform ? T(0) : infinity);
            const double negatives = static_cast<double>(std::max<std::int64_t>(count, 1));
            strength[i] = static_cast<T>(std::log((job.gamma > 0 ? job.gamma : AUTO_GAMMA * negatives) / (uniform ? negatives : 1)));
        }
    });
    if (!uniform) transport(k, plan_kernels, job, cost, threads);
    share_rows(n, 4 * n, threads, [&](std::int64_t begin, std::int64_t end) {
        const cpu::FlushDenormals flush;
        for (std::int64_t i = begin; i < end; ++i) {
            T* row = job.slope + i * n;
            T top = 0;
            const T total = k.exponentials(sim + i * n, i, n, static_cast<T>(job.temperature), row, &top);
            const T excess = top + std::log(total) + strength[i];  // log of the sum over the negatives, minus the positive
            losses[i] = excluded[i] == 0 ? softplus(excess) : std::numeric_limits<T>::quiet_NaN();
            if (!job.keep_slope || !(total > 0)) continue;
            k.scale(row, n, std::exp(top + strength[i] - losses[i]));
            row[i] = -std::exp(excess - losses[i]);
        }
    });
    if (!job.mean) return;
    double total = 0;
    for (std::int64_t i = 0; i < n; ++i) total += losses[i];
    *job.loss = static_cast<T>(total / static_cast<double>(n));
}

template <typename T>
void backward(const Kernels<T>& k, const Backward<T>& job, int threads) {
    const std::int64_t n = job.n, d = job.d;
    const bool each = job.dloss_stride != 0;
    const cpu::Scratch<T> weighted(each ? n * n : 0, false);
    const T* slope = job.slope;
    if (each) {
        std::copy(slope, slope + n * n, weighted.get());
        for (std::int64_t i = 0; i < n; ++i) k.scale(weighted.get() + i * n, n, job.dloss[i * job.dloss_stride]);
        slope = weighted.get();
    }
    const T factor = static_cast<T>(job.scale * (each ? T(1) : job.dloss[0]));
    // the rows of dquery, then those of dtarget, which use the columns of slope
    T* const grads[2] = {job.dquery ? job.dquery : job.dtarget, job.dtarget};
    const int sides = (job.dquery != nullptr) + (job.dtarget != nullptr);
    share_rows(sides * n, n * d / kMultiplyAddsPerNumber, threads, [&](std::int64_t begin, std::int64_t end) {
        const cpu::FlushDenormals flush;
        for (int s = 0; s < sides; ++s) {
            const bool of_query = grads[s] == job.dquery;
            const std::int64_t from = std::max<std::int64_t>(begin - s * n, 0), to = std::min(end - s * n, n);
            const T *own = job.units + (of_query ? 0 : n * d), *other = job.units + (of_query ? n * d : 0);
            if (from < to) k.product(slope, of_query ? n : 1, of_query ? 1 : n, from, to, n, other, d, grads[s]);
            for (std::int64_t i = from; i < to; ++i)
                k.project(grads[s] + i * d, own + i * d, d, factor, job.lengths[(of_query ? 0 : n) + i]);
        }
    });
}

template <typename T>
void project(const Kernels<T>& k, T* dy, const T* units, const T* lengths, std::int64_t n, std::int64_t d, T factor, int threads) {
    share_rows(n, d, threads, [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t i = begin; i < end; ++i) k.project(dy + i * d, units + i * d, d, factor, lengths[i]);
    });
}

#define HYSTAR_INSTANTIATE(T)                                                                      \
    template void normalise(const Kernels<T>&, const Forward<T>&, int);                            \
    template void forward(const Kernels<T>&, const sinkhorn::Kernels<T>&, const Forward<T>&, int); \
    template void backward(const Kernels<T>&, const Backward<T>&, int);                            \
    template void project(const Kernels<T>&, T*, const T*, const T*, std::int64_t, std::int64_t, T, int);
HYSTAR_INSTANTIATE(float)
HYSTAR_INSTANTIATE(double)
#undef HYSTAR_INSTANTIATE

}  // namespace hystar_fast::style_nce
