// The forward pass of the CPU Sinkhorn: stabilised scaling, exact log-domain steps where that would lose digits.
//
// With A = exp(K + u + v) an iteration is x = 1 / (A y), y = (n/m) / (A^T x): two multiply-adds an entry and no exp.
// A scaling outside [1/kBound, kBound] is not accepted: first the scalings so far are absorbed into u and v and A is
// built anew; if the very first step from a fresh A still leaves the bounds, that iteration is done by logsumexps.
// Either way each iteration is the reference's row half-step and then its column half-step.
#include "sinkhorn_cpu.h"
#include "sinkhorn_cpu_team.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>

namespace hystar_fast::sinkhorn {
namespace {

constexpr double kBound = 1e8;
constexpr double kConvergedBelow = 1e-3;                   // CONVERGED_BELOW of the reference
constexpr std::int64_t kEntriesPerThread = 1 << 21;        // entries times iterations that pay for starting a thread
constexpr std::int64_t kEntriesPerTeamMember = 1 << 16;    // entries that pay for two barriers an iteration

std::int64_t padded(std::int64_t count, std::int64_t lanes) { return (count + lanes - 1) / lanes * lanes; }

// The memory one problem needs while it is solved, and what its team shares.
template <typename T>
struct Workspace {
    std::int64_t n, width;  // rows, padded columns
    bool in_place;          // A needs no padding and stands in the plan
    Scratch<T> matrix, vectors;
    Barrier barrier;
    std::atomic<unsigned> flags{0};
    // The last attempt that left the bounds, and the last whose rows were off by more than tol: two slots, as one
    // member may be an attempt ahead of another that still reads.
    std::atomic<std::int64_t> rejected[2], unsettled[2];
    std::atomic<bool> empty_column{false};

    T *shift, *u, *v, *x, *x_next, *y, *y_next, *rows, *partial;

    Workspace(std::int64_t n, std::int64_t m, std::int64_t lanes, int team)
        : n(n), width(padded(m, lanes)), in_place(width == m), matrix(in_place ? 0 : n * width, false),
          vectors(5 * padded(n, lanes) + (3 + 2 * team) * width) {
        T* next = vectors.get();
        for (T** rows_vector : {&shift, &u, &x, &x_next, &rows}) *rows_vector = next, next += padded(n, lanes);
        for (T** column_vector : {&v, &y, &y_next, &partial}) *column_vector = next, next += width;
    }
};

template <typename T>
class Problem {
public:
    Problem(const Kernels<T>& kernels, const Forward<T>& job, std::int64_t index, Workspace<T>& space, Member member)
        : k_(kernels), job_(job), index_(index), w_(space), me_(member), n_(job.n), m_(job.m), ld_(space.width),
          plan_(job.plan + index * n_ * m_), a_(space.in_place ? plan_ : space.matrix.get()),
          cost_{job.cost + index * n_ * m_, job.mask ? job.mask + index * job.mask_stride : nullptr, n_, m_, job.epsilon, space.shift},
          target_(static_cast<T>(static_cast<double>(n_) / static_cast<double>(m_))), row_begin_(me_.begin(n_, 8)),
          row_end_(me_.end(n_, 8)), column_begin_(me_.begin(ld_, kernels.lanes)), column_end_(me_.end(ld_, kernels.lanes)),
          x_(space.x), x_next_(space.x_next), y_(space.y), y_next_(space.y_next), partial_(space.partial + me_.rank * 2 * ld_) {}

    void solve() {
        me_.wait();
        if (me_.rank == 0) {
            w_.flags = 0, w_.empty_column = false;
            for (int slot : {0, 1}) w_.rejected[slot] = 0, w_.unsettled[slot] = 0;
        }
        me_.wait();
        w_.flags |= k_.prepare(cost_, row_begin_, row_end_, w_.shift);
        me_.wait();
        const unsigned flags = w_.flags;
        if (flags & kHasInvalid) return abandon(kInvalid);
        if (flags & kHasEmptyRow) return abandon(kInfeasible);
        std::fill(w_.u + row_begin_, w_.u + row_end_, T(0));
        fill_columns(w_.v, T(0));
        start_from(nullptr, nullptr);

        std::int64_t done = 0;
        for (std::int64_t attempt = 1; done < job_.n_iter; ++attempt) {
            const Outcome outcome = iterate(attempt, done);
            if (outcome == kSettled) break;
            if (outcome == kRejected && !fresh_) {
                absorb();
                continue;
            }
            if (outcome == kRejected && !exact_iteration()) return abandon(kInfeasible);
            if (outcome == kAccepted) fresh_ = false;
            remember(done++);
        }
        finish(done, flags & kHasForbidden);
    }

private:
    enum Outcome { kAccepted, kRejected, kSettled };

    // One iteration by scaling, not accepted where it would leave the bounds.
    Outcome iterate(std::int64_t attempt, std::int64_t done) {
        std::atomic<std::int64_t>&rejected = w_.rejected[attempt & 1], &unsettled = w_.unsettled[attempt & 1];
        fill(partial_, ld_, T(0));
        if (!k_.scale_rows(a_, ld_, row_begin_, row_end_, y_, x_next_, partial_, static_cast<T>(kBound))) rejected = attempt;
        const bool may_settle = job_.tol > 0 && done > 0;
        if (may_settle) {
            for (std::int64_t i = row_begin_; i < row_end_; ++i)
                if (!(std::abs(static_cast<double>(x_[i]) / x_next_[i] - 1) <= job_.tol)) unsettled = attempt;
        }
        me_.wait();
        const T* total = gather_partials();
        const std::int64_t end = std::min(column_end_, m_);
        if (!k_.scale_columns(total, target_, column_begin_, end, y_next_, static_cast<T>(kBound))) rejected = attempt;
        me_.wait();
        if (may_settle && unsettled != attempt) return kSettled;
        if (rejected == attempt) return kRejected;
        std::swap(x_, x_next_);
        std::swap(y_, y_next_);
        return kAccepted;
    }

    // The iteration from potentials alone (x = y = 1), exact at any epsilon; false where a column has no allowed entry.
    bool exact_iteration() {
        k_.lse_rows(cost_, row_begin_, row_end_, w_.v, w_.u);
        T *high = partial_, *sum = partial_ + ld_;
        k_.lse_columns(cost_, row_begin_, row_end_, w_.u, high, sum);
        me_.wait();
        const std::int64_t end = std::min(column_end_, m_);
        for (std::int64_t j = column_begin_; j < end; ++j) {
            T top = -std::numeric_limits<T>::infinity();
            for (int rank = 0; rank < me_.size; ++rank) top = std::max(top, w_.partial[rank * 2 * ld_ + j]);
            if (std::isinf(top)) {
                w_.empty_column = true;
                continue;
            }
            T total = 0;
            for (int rank = 0; rank < me_.size; ++rank) {
                const T* part = w_.partial + rank * 2 * ld_;
                if (!std::isinf(part[j])) total += part[ld_ + j] * std::exp(part[j] - top);
            }
            w_.v[j] = std::log(target_) - (top + std::log(total));
        }
        me_.wait();
        if (w_.empty_column) return false;
        start_from(w_.u, w_.v);
        return true;
    }

    void absorb() {
        k_.add_log(w_.u + row_begin_, x_ + row_begin_, row_end_ - row_begin_, w_.u + row_begin_);
        const std::int64_t end = std::min(column_end_, m_);
        if (end > column_begin_) k_.add_log(w_.v + column_begin_, y_ + column_begin_, end - column_begin_, w_.v + column_begin_);
        me_.wait();
        start_from(w_.u, w_.v);
    }

    void start_from(const T* u, const T* v) {
        me_.wait();
        k_.exp_rows(cost_, row_begin_, row_end_, u, v, a_, ld_);
        std::fill(x_ + row_begin_, x_ + row_end_, T(1));
        fill_columns(y_, T(1));
        fresh_ = true;
        me_.wait();
    }

    void remember(std::int64_t iteration) {
        if (!job_.history) return;
        T* entry = job_.history + (index_ * job_.n_iter + iteration) * m_;
        const std::int64_t end = std::min(column_end_, m_);
        if (end > column_begin_) k_.add_log(w_.v + column_begin_, y_ + column_begin_, end - column_begin_, entry + column_begin_);
    }

    void finish(std::int64_t done, bool has_forbidden) {
        fill(partial_, ld_, T(0));
        k_.write_plan(a_, ld_, row_begin_, row_end_, m_, x_, y_, plan_, w_.rows, partial_);
        me_.wait();
        const T* columns = gather_partials();
        me_.wait();
        if (me_.rank == 0) {
            double error = 0, total = 0;
            for (std::int64_t i = 0; i < n_; ++i) {
                const double deviation = std::abs(static_cast<double>(w_.rows[i]) - 1);
                error = std::max(error, deviation), total += deviation;
            }
            for (std::int64_t j = 0; j < m_; ++j) error = std::max(error, std::abs(static_cast<double>(columns[j]) - target_));
            // an infeasible problem is off by 2 gcd / m at least (see the reference); what is nearer has a plan
            const bool doubtful = has_forbidden && total * static_cast<double>(m_) >= static_cast<double>(std::gcd(n_, m_));
            if (doubtful && !allows_plan()) w_.flags |= kInfeasibleFlag;
            report(done, error, error <= (job_.tol > 0 ? job_.tol : kConvergedBelow) ? kConverged : kNotConverged);
        }
        me_.wait();
        if (w_.flags & kInfeasibleFlag) abandon(kInfeasible);
    }

    bool allows_plan() const {
        return has_plan(n_, m_, [this](std::int64_t i, std::int64_t j) {
            const std::int64_t at = i * m_ + j;
            return !(cost_.mask && cost_.mask[at]) && !(cost_.cost[at] == std::numeric_limits<T>::infinity());
        });
    }

    void abandon(Status status) {
        const T value = status == kInvalid ? std::numeric_limits<T>::quiet_NaN() : T(0);
        std::fill(plan_ + row_begin_ * m_, plan_ + row_end_ * m_, value);
        if (me_.rank == 0) report(0, status == kInvalid ? value : std::max(1.0, static_cast<double>(target_)), status);
    }

    void report(std::int64_t iterations, double error, Status status) {
        const auto narrow = static_cast<float>(error);
        std::int32_t* entry = job_.info + index_;
        entry[0] = static_cast<std::int32_t>(iterations);
        std::memcpy(entry + job_.batch, &narrow, sizeof(narrow));
        entry[2 * job_.batch] = status;
    }

    // The sum of the team's partial column sums; every member sums its own columns, and reads only those.
    const T* gather_partials() {
        for (int rank = 1; rank < me_.size; ++rank) {
            const T* part = w_.partial + rank * 2 * ld_;
            for (std::int64_t j = column_begin_; j < column_end_; ++j) w_.partial[j] += part[j];
        }
        return w_.partial;
    }

    static void fill(T* values, std::int64_t count, T value) { std::fill(values, values + count, value); }
    void fill_columns(T* values, T value) {
        const std::int64_t end = std::min(column_end_, m_);
        if (end > column_begin_) std::fill(values + column_begin_, values + end, value);
    }

    static constexpr unsigned kInfeasibleFlag = 8;
    const Kernels<T>& k_;
    const Forward<T>& job_;
    const std::int64_t index_;
    Workspace<T>& w_;
    const Member me_;
    const std::int64_t n_, m_, ld_;
    T *plan_, *a_;
    const Cost<T> cost_;
    const T target_;
    const std::int64_t row_begin_, row_end_, column_begin_, column_end_;
    T *x_, *x_next_, *y_, *y_next_, *partial_;
    bool fresh_ = true;
};

}  // namespace

template <typename T>
void forward(const Kernels<T>& kernels, const Forward<T>& job, int threads) {
    const std::int64_t entries = job.n * job.m;
    const std::int64_t useful = std::max<std::int64_t>(1, job.batch * entries * (job.n_iter + 40) / kEntriesPerThread);
    const int size = static_cast<int>(std::min<std::int64_t>(threads, useful));
    if (job.batch < size && entries >= 2 * kEntriesPerTeamMember) {
        const int team = static_cast<int>(std::min<std::int64_t>(size, entries / kEntriesPerTeamMember));
        Workspace<T> space(job.n, job.m, kernels.lanes, team);
        parallel(team, [&](int rank, int granted) {
            for (std::int64_t b = 0; b < job.batch; ++b) Problem<T>(kernels, job, b, space, {space.barrier, rank, granted}).solve();
        });
        return;
    }
    const int workers = static_cast<int>(std::min<std::int64_t>(size, job.batch));
    std::vector<std::unique_ptr<Workspace<T>>> spaces;
    for (int rank = 0; rank < workers; ++rank) spaces.push_back(std::make_unique<Workspace<T>>(job.n, job.m, kernels.lanes, 1));
    std::atomic<std::int64_t> next{0};
    parallel(workers, [&](int rank, int) {
        Workspace<T>& space = *spaces[static_cast<std::size_t>(rank)];
        for (std::int64_t b = next++; b < job.batch; b = next++) Problem<T>(kernels, job, b, space, {space.barrier, 0, 1}).solve();
    });
}

template void forward(const Kernels<float>&, const Forward<float>&, int);
template void forward(const Kernels<double>&, const Forward<double>&, int);

}  // namespace hystar_fast::sinkhorn
