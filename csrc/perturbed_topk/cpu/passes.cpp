// The forward pass of the perturbed top-K on the CPU: the items of the batch, and the threads that share the samples.
#include <algorithm>
#include <functional>
#include <limits>
#include <vector>

#include "cpu/scratch.h"
#include "cpu/threads.h"
#include "perturbed_topk/cpu/perturbed_topk.h"

namespace hystar_fast::perturbed_topk {
namespace {

constexpr std::int64_t kNumbersPerThread = 1 << 18;  // numbers of noise for which a thread is worth its start

// Returns whether a score of item b that may be chosen is NaN or +inf.
template <typename T>
bool is_invalid(const Forward<T>& job, std::int64_t b) {
    for (std::int64_t i = b * job.n; i < (b + 1) * job.n; ++i)
        if (!job.forbidden[i] && !(job.scores[i] < std::numeric_limits<T>::infinity())) return true;
    return false;
}

// The vectors of one thread.
template <typename T>
class Worker {
public:
    Worker(const Kernels<T>& kernels, const Forward<T>& job)
        : kernels_(kernels),
          job_(job),
          padded_(cpu::round_up(job.n, kernels.lanes)),
          kept_(std::min(job.k, job.n)),
          vectors_(4 * padded_),
          own_counts_(kept_ * job.n, false) {}

    // Works on the samples [begin, end) of item b, and adds to its counts [min(k, n), n], which threads share.
    void run(std::int64_t b, std::int64_t begin, std::int64_t end, std::int32_t* counts) {
        const std::int64_t n = job_.n, open = prepare(b);
        std::int32_t* chosen = job_.chosen ? job_.chosen + (b * job_.samples + begin) * kept_ : nullptr;
        if (open <= kept_) return choose_all(end - begin, chosen, counts);
        std::fill_n(own_counts_.get(), kept_ * n, 0);
        const Item<T> item{scores(), lowest(), n, kept_, job_.sigma, vectors_.get() + 2 * padded_};
        kernels_.choose(item, job_.noise + (b * job_.samples + begin) * n, end - begin, chosen, own_counts_.get());
        for (std::int64_t i = 0; i < kept_ * n; ++i)
            if (own_counts_.get()[i]) __atomic_fetch_add(counts + i, own_counts_.get()[i], __ATOMIC_RELAXED);
    }

private:
    T* scores() const { return vectors_.get(); }
    T* lowest() const { return vectors_.get() + padded_; }

    // Fills in the vectors of item b, and returns the number of its open positions; an invalid item has none.
    std::int64_t prepare(std::int64_t b) {
        const T* from = job_.scores + b * job_.n;
        const std::uint8_t* forbidden = job_.forbidden + b * job_.n;
        std::fill_n(lowest(), padded_, -std::numeric_limits<T>::infinity());
        std::fill_n(scores(), padded_, -std::numeric_limits<T>::infinity());
        if (is_invalid(job_, b)) return 0;
        std::int64_t open = 0;
        for (std::int64_t j = 0; j < job_.n; ++j) {
            if (forbidden[j]) continue;
            scores()[j] = from[j];
            lowest()[j] = std::numeric_limits<T>::lowest();
            ++open;
        }
        return open;
    }

    // Each sample chooses every open position; the rows that are left choose none.
    void choose_all(std::int64_t samples, std::int32_t* chosen, std::int32_t* counts) {
        std::vector<std::int32_t> positions;
        for (std::int64_t j = 0; j < job_.n; ++j)
            if (lowest()[j] > -std::numeric_limits<T>::infinity()) positions.push_back(static_cast<std::int32_t>(j));
        for (std::size_t row = 0; row < positions.size(); ++row)
            __atomic_fetch_add(counts + static_cast<std::int64_t>(row) * job_.n + positions[row],
                               static_cast<std::int32_t>(samples), __ATOMIC_RELAXED);
        positions.resize(static_cast<std::size_t>(kept_), static_cast<std::int32_t>(job_.n));
        for (std::int64_t s = 0; chosen && s < samples; ++s) std::copy(positions.begin(), positions.end(), chosen + s * kept_);
    }

    const Kernels<T>& kernels_;
    const Forward<T>& job_;
    const std::int64_t padded_, kept_;
    const cpu::Scratch<T> vectors_;
    const cpu::Scratch<std::int32_t> own_counts_;
};

}  // namespace

template <typename T>
T kth_largest(T* values, std::int64_t n, std::int64_t k) {
    std::nth_element(values, values + k - 1, values + n, std::greater<T>());
    return values[k - 1];
}

template <typename T>
void forward(const Kernels<T>& kernels, const Forward<T>& job, int threads) {
    const std::int64_t rows = job.batch * job.samples, kept = std::min(job.k, job.n);
    const std::int64_t useful = std::min<std::int64_t>({threads, rows, rows * job.n / kNumbersPerThread});
    const cpu::Scratch<std::int32_t> counts(job.batch * kept * job.n);
    cpu::run_on_threads(static_cast<int>(useful), [&](int rank, int size) {
        Worker<T> worker(kernels, job);
        const std::int64_t last = cpu::part_begin(rows, rank + 1, size);
        for (std::int64_t row = cpu::part_begin(rows, rank, size); row < last;) {
            const std::int64_t b = row / job.samples, end = std::min(last, (b + 1) * job.samples);
            worker.run(b, row - b * job.samples, end - b * job.samples, counts.get() + b * kept * job.n);
            row = end;
        }
    });
    for (std::int64_t b = 0; b < job.batch; ++b) {
        const std::int32_t* from = counts.get() + b * kept * job.n;
        T* to = job.soft + b * job.k * job.n;
        for (std::int64_t i = 0; i < kept * job.n; ++i) to[i] = static_cast<T>(from[i]) / static_cast<T>(job.samples);
        std::fill(to + kept * job.n, to + job.k * job.n, T(0));
        if (is_invalid(job, b)) std::fill(to, to + job.k * job.n, std::numeric_limits<T>::quiet_NaN());
    }
}

template float kth_largest(float*, std::int64_t, std::int64_t);
template double kth_largest(double*, std::int64_t, std::int64_t);
template void forward(const Kernels<float>&, const Forward<float>&, int);
template void forward(const Kernels<double>&, const Forward<double>&, int);

}  // namespace hystar_fast::perturbed_topk
