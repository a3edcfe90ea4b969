// The forward pass of the CPU Sinkhorn: stabilised scaling, with exact steps in the log domain where scaling would lose
// digits.
//
// With A = exp(K + u + v), an iteration is x = 1 / (A y), y = (n/m) / (A^T x): two multiply-adds an entry and no exp.
// If a scaling leaves [1/kBound, kBound], the iteration is rejected: the scalings so far are absorbed into u and v, A
// is built again, and the iteration is repeated. If even the first iteration with a new A leaves the bounds, that
// iteration is done by logsumexps. In each case an iteration is the row half-step of the reference and then its column
// half-step.
#include "sinkhorn/cpu/sinkhorn.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <limits>
#include <new>
#include <numeric>

#include "cpu/scratch.h"
#include "sinkhorn/cpu/batch.h"

namespace hystar_fast::sinkhorn {
namespace {

using cpu::round_up;

constexpr std::int64_t kEntriesPerTeamMember = 1 << 16;  // entries worth two barriers an iteration
constexpr std::int64_t kLargestTeam = 32;                // a barrier takes longer the more threads meet at it

// The memory of one problem while it is solved, shared by its team.
template <typename T>
struct Workspace {
    std::int64_t n, width;  // rows, padded columns
    bool in_place;          // A needs no padding and is stored in the plan
    cpu::Scratch<T> matrix, vectors;
    cpu::Barrier barrier;
    std::atomic<unsigned> flags{0};
    // The last attempt that left the bounds, and the last attempt whose rows were off by more than tol. There are two
    // slots, because one member may already write for the next attempt while another still reads.
    std::atomic<std::int64_t> rejected[2], unconverged[2];
    std::atomic<bool> empty_column{false};

    T *shift, *u, *v, *x, *x_next, *y, *y_next, *rows, *partial;

    Workspace(std::int64_t n, std::int64_t m, std::int64_t lanes, int team)
        : n(n), width(round_up(m, lanes)), in_place(width == m), matrix(in_place ? 0 : n * width, false),
          vectors(5 * round_up(n, lanes) + (3 + 2 * team) * width) {
        T* next = vectors.get();
        for (T** rows_vector : {&shift, &u, &x, &x_next, &rows}) *rows_vector = next, next += round_up(n, lanes);
        for (T** column_vector : {&v, &y, &y_next, &partial}) *column_vector = next, next += width;
    }
};

template <typename T>
class Problem {
public:
    Problem(const Kernels<T>& kernels, const Forward<T>& job, std::int64_t index, Workspace<T>& space, cpu::Member member)
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
            for (int slot : {0, 1}) w_.rejected[slot] = 0, w_.unconverged[slot] = 0;
        }
        me_.wait();
        w_.flags |= k_.prepare(cost_, row_begin_, row_end_, w_.shift);
        me_.wait();
        const unsigned flags = w_.flags;
        if (flags & kHasInvalid) return abandon(INVALID);
        if (flags & kHasEmptyRow) return abandon(INFEASIBLE);
        std::fill(w_.u + row_begin_, w_.u + row_end_, T(0));
        fill_columns(w_.v, T(0));
        start_from(nullptr, nullptr);

        std::int64_t done = 0;
        for (std::int64_t attempt = 1; done < job_.n_iter; ++attempt) {
            const Outcome outcome = iterate(attempt, done);
            if (outcome == kConverged) break;
            if (outcome == kRejected && !fresh_) {
                absorb();
                continue;
            }
            if (outcome == kRejected && !exact_iteration()) return abandon(INFEASIBLE);
            if (outcome == kAccepted) fresh_ = false;
            keep_history(done++);
        }
        finish(done, flags & kHasForbidden);
    }

private:
    enum Outcome { kAccepted, kRejected, kConverged };  // kConverged: the plan already meets the tolerance

    // One iteration by scaling. It is rejected, and changes nothing, if a scaling leaves the bounds.
    Outcome iterate(std::int64_t attempt, std::int64_t done) {
        std::atomic<std::int64_t>&rejected = w_.rejected[attempt & 1], &unconverged = w_.unconverged[attempt & 1];
        fill(partial_, ld_, T(0));
        if (!k_.scale_rows(a_, ld_, row_begin_, row_end_, y_, x_next_, partial_, static_cast<T>(kBound))) rejected = attempt;
        const bool may_converge = job_.tol > 0 && done > 0;
        if (may_converge) {
            for (std::int64_t i = row_begin_; i < row_end_; ++i)
                if (!(std::abs(static_cast<double>(x_[i]) / x_next_[i] - 1) <= job_.tol)) unconverged = attempt;
        }
        me_.wait();
        const T* total = gather_partials();
        const std::int64_t end = std::min(column_end_, m_);
        if (!k_.scale_columns(total, target_, column_begin_, end, y_next_, static_cast<T>(kBound))) rejected = attempt;
        me_.wait();
        if (may_converge && unconverged != attempt) return kConverged;
        if (rejected == attempt) return kRejected;
        std::swap(x_, x_next_);
        std::swap(y_, y_next_);
        return kAccepted;
    }

    // One iteration from the potentials alone (x = y = 1), exact at any epsilon. Returns false if a column has no
    // allowed entry.
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

    void keep_history(std::int64_t iteration) {
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
            // the row sums of an infeasible problem are off by at least 2 gcd / m (see the reference); half of that
            // decides
            const bool doubtful = has_forbidden && total * static_cast<double>(m_) >= static_cast<double>(std::gcd(n_, m_));
            try {
                if (doubtful && !allows_plan()) w_.flags |= kHasNoPlan;
            } catch (const std::bad_alloc&) {  // the others wait at the barrier: all of them leave after it
                w_.flags |= kOutOfMemory;
            }
            report(done, error, error <= (job_.tol > 0 ? job_.tol : CONVERGED_BELOW) ? CONVERGED : NOT_CONVERGED);
        }
        me_.wait();
        if (w_.flags & kOutOfMemory) throw std::bad_alloc();
        if (w_.flags & kHasNoPlan) abandon(INFEASIBLE);
    }

    bool allows_plan() const {
        return has_plan(n_, m_, [this](std::int64_t i, std::int64_t j) {
            const std::int64_t at = i * m_ + j;
            return !(cost_.mask && cost_.mask[at]) && !(cost_.cost[at] == std::numeric_limits<T>::infinity());
        });
    }

    void abandon(Status status) {
        const T value = status == INVALID ? std::numeric_limits<T>::quiet_NaN() : T(0);
        std::fill(plan_ + row_begin_ * m_, plan_ + row_end_ * m_, value);
        if (me_.rank == 0) report(0, status == INVALID ? value : std::max(1.0, static_cast<double>(target_)), status);
    }

    void report(std::int64_t iterations, double error, Status status) {
        const auto narrow = static_cast<float>(error);
        std::int32_t* entry = job_.info + index_;
        entry[0] = static_cast<std::int32_t>(iterations);
        std::memcpy(entry + job_.batch, &narrow, sizeof(narrow));
        entry[2 * job_.batch] = status;
    }

    // Adds up the team's partial column sums. Every member adds its own columns, and reads only those.
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

    static constexpr unsigned kHasNoPlan = 8, kOutOfMemory = 16;  // beside RowFlags
    const Kernels<T>& k_;
    const Forward<T>& job_;
    const std::int64_t index_;
    Workspace<T>& w_;
    const cpu::Member me_;
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
    const int size = useful_threads(job.batch * entries * (job.n_iter + 40), threads);
    if (job.batch < size && entries >= 2 * kEntriesPerTeamMember) {  // the threads share each problem
        const int team = static_cast<int>(std::min<std::int64_t>({size, entries / kEntriesPerTeamMember, kLargestTeam}));
        Workspace<T> space(job.n, job.m, kernels.lanes, team);
        cpu::run_on_threads(team, [&](int rank, int granted) {
            const cpu::FlushDenormals flush;
            for (std::int64_t b = 0; b < job.batch; ++b) Problem<T>(kernels, job, b, space, {space.barrier, rank, granted}).solve();
        });
        return;
    }
    solve_batch(
        job.batch, size, [&] { return std::make_unique<Workspace<T>>(job.n, job.m, kernels.lanes, 1); },
        [&](Workspace<T>& space, std::int64_t index) { Problem<T>(kernels, job, index, space, {space.barrier, 0, 1}).solve(); });
}

template void forward(const Kernels<float>&, const Forward<float>&, int);
template void forward(const Kernels<double>&, const Forward<double>&, int);

}  // namespace hystar_fast::sinkhorn
