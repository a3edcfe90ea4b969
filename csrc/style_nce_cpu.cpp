// StyleNCE on the CPU: the steps of forward and backward, and the threads that share their rows; see style_nce_cpu.h.
#include "style_nce_cpu.h"
#include "sinkhorn_cpu_team.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace hystar_fast::style_nce {
namespace {

constexpr double kAutoGamma = 80.0 / 47.0;               // AUTO_GAMMA of the reference
constexpr std::int64_t kNumbersPerThread = 1 << 19;      // numbers read once that pay for starting a thread
constexpr std::int64_t kMultiplyAddsPerNumber = 8;       // in registers, for the price of reading a number

// Runs body(begin, end) over rows [0, n), each worth `width` numbers, on as many threads as that pays for.
template <typename Body>
void share_rows(std::int64_t n, std::int64_t width, int threads, const Body& body) {
    const std::int64_t size = std::max<std::int64_t>(1, std::min<std::int64_t>({threads, n, n * width / kNumbersPerThread}));
    std::vector<std::thread> others;
    std::int64_t rank = 1;
    try {
        others.reserve(static_cast<std::size_t>(size - 1));
        for (; rank < size; ++rank) others.emplace_back([&body, n, size, rank] { body(n * rank / size, n * (rank + 1) / size); });
    } catch (const std::system_error&) {  // the system grants no more: their rows are done here
    }
    body(0, n / size);
    for (; rank < size; ++rank) body(n * rank / size, n * (rank + 1) / size);
    for (std::thread& other : others) other.join();
}

// log(1 + e^x)
template <typename T>
T softplus(T x) {
    return std::max(x, T(0)) + std::log1p(std::exp(-std::abs(x)));
}

template <typename T>
void transport(const Kernels<T>& k, const sinkhorn::Kernels<T>& plan_kernels, const Forward<T>& job, const T* cost, int threads) {
    const T epsilon = static_cast<T>(job.weights == kPaper ? job.epsilon : job.lam);
    std::int32_t info[3];
    sinkhorn::forward(plan_kernels, {cost, nullptr, 0, 1, job.n, job.n, epsilon, job.n_iter, 0.0, job.slope, nullptr, info}, threads);
    if (info[2] != sinkhorn::kInfeasible) return;
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
    const bool alone = job.sim == nullptr, uniform = job.weights == kUniform;
    const sinkhorn::Scratch<T> own_sim(alone ? n * n : 0, false), own_cost(uniform ? 0 : n * n, false), vectors(3 * n);
    T *sim = alone ? own_sim.get() : job.sim, *cost = uniform ? job.slope : own_cost.get();
    T *barred = vectors.get(), *strength = barred + n, *losses = job.mean ? strength + n : job.loss;
    if (alone) normalise(k, job, threads);
    for (std::int64_t i = 0; i < n; ++i)
        if (job.lengths[i] == -infinity || job.lengths[n + i] == -infinity) barred[i] = infinity;
    const T lam = static_cast<T>(job.lam);
    const std::int64_t cosines = alone ? n * job.d / kMultiplyAddsPerNumber : 0;
    share_rows(n, 2 * n + cosines, threads, [&](std::int64_t begin, std::int64_t end) {
        if (alone) k.similarity(job.units, job.units + n * job.d, n, job.d, begin, end, sim);
        for (std::int64_t i = begin; i < end; ++i) {
            std::int64_t count = 0;
            if (barred[i] == 0)
                count = k.cost(sim + i * n, job.mask ? job.mask + i * n : nullptr, barred, i, n, lam, job.weights, cost + i * n);
            else
                std::fill(cost + i * n, cost + (i + 1) * n, uniform ? T(0) : infinity);
            const double held = static_cast<double>(std::max<std::int64_t>(count, 1));
            strength[i] = static_cast<T>(std::log((job.gamma > 0 ? job.gamma : kAutoGamma * held) / (uniform ? held : 1)));
        }
    });
    if (!uniform) transport(k, plan_kernels, job, cost, threads);
    share_rows(n, 4 * n, threads, [&](std::int64_t begin, std::int64_t end) {
        const sinkhorn::FlushDenormals flush;
        for (std::int64_t i = begin; i < end; ++i) {
            T* row = job.slope + i * n;
            T top = 0;
            const T total = k.exponentials(sim + i * n, i, n, static_cast<T>(job.temperature), row, &top);
            const T excess = top + std::log(total) + strength[i];  // of the negatives' logarithm over the positive's
            losses[i] = barred[i] == 0 ? softplus(excess) : std::numeric_limits<T>::quiet_NaN();
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
    const sinkhorn::Scratch<T> weighted(each ? n * n : 0, false);
    const T* slope = job.slope;
    if (each) {
        std::copy(slope, slope + n * n, weighted.get());
        for (std::int64_t i = 0; i < n; ++i) k.scale(weighted.get() + i * n, n, job.dloss[i * job.dloss_stride]);
        slope = weighted.get();
    }
    const T factor = static_cast<T>(job.scale * (each ? T(1) : job.dloss[0]));
    // the rows of the gradients wanted, one after the other; those of dtarget follow the columns of slope
    T* const grads[2] = {job.dquery ? job.dquery : job.dtarget, job.dtarget};
    const int sides = (job.dquery != nullptr) + (job.dtarget != nullptr);
    share_rows(sides * n, n * d / kMultiplyAddsPerNumber, threads, [&](std::int64_t begin, std::int64_t end) {
        const sinkhorn::FlushDenormals flush;
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
