// The gradient of the CPU Sinkhorn through all its iterations.
//
// With W = plan * grad, du = W 1 and dv = W^T 1, from the last iteration k to the first:
//     Q_ij = exp(K + u_k + v_k) / (n/m)    du -= Q dv       (du is 0 before this, except in the last iteration)
//     R_ij = exp(K + u_k + v_{k-1})        dv  = -R^T du
//     dK -= Q_ij dv_j + R_ij du_i
// Q and R are one matrix A, at first the plan, between diagonal scalings: alpha = 1 / (A beta_{k-1}) and
// beta_k = (n/m) / (A^T alpha). They are computed again from the stored v_{k-1}, so that the rows of R and the columns
// of Q sum to 1 up to rounding. From stored u and v the sums would be 1 only up to rounding times |u|, which is too
// inexact at small epsilon. The rank-one terms of up to kTerms / 2 iterations are added together, as one product of
// matrices. If a scaling leaves [1/kBound, kBound], A is built again, by logsumexp. If even then the scalings of the
// two half-steps are too far apart, each half-step gets a matrix of its own.
#include "sinkhorn/cpu/sinkhorn.h"

#include <algorithm>

#include "cpu/scratch.h"
#include "sinkhorn/cpu/batch.h"

namespace hystar_fast::sinkhorn {
namespace {

using cpu::round_up;

constexpr std::int64_t kTerms = 256;  // rank-one terms that are gathered before they are added

// A stride of at least `count` that is an odd number of cache lines: then a column uses many cache sets.
template <typename T>
std::int64_t spread(std::int64_t count) {
    const std::int64_t line = 64 / static_cast<std::int64_t>(sizeof(T));
    return (round_up(count, line) / line | 1) * line;
}

template <typename T>
class Unrolled {
public:
    Unrolled(const Kernels<T>& kernels, const UnrolledBackward<T>& job)
        : k_(kernels), job_(job), n_(job.n), m_(job.m), tall_(spread<T>(n_)), wide_(spread<T>(m_)), ld_(round_up(m_, kernels.lanes)),
          target_(static_cast<T>(static_cast<double>(n_) / static_cast<double>(m_))), matrix_(n_ * ld_, false),
          vectors_(6 * tall_ + 6 * wide_), capacity_(std::min(2 * job.n_iter, kTerms)), left_(capacity_ * tall_),
          right_(capacity_ * wide_) {
        T* next = vectors_.get();
        for (T** vector : {&shift_, &u_, &du_, &factor_, &row_zeros_, &row_ones_}) *vector = next, next += tall_;
        for (T** vector : {&v_, &beta_, &dv_, &total_, &zeros_, &ones_}) *vector = next, next += wide_;
        std::fill(row_ones_, row_ones_ + n_, T(1));
        std::fill(ones_, ones_ + m_, T(1));
    }

    void solve(std::int64_t index) {
        const T *grad = job_.grad + index * n_ * m_, *plan = job_.plan + index * n_ * m_;
        out_ = job_.dcost + index * n_ * m_;
        const std::int64_t done = job_.info[index];
        if (done == 0) {  // infeasible or invalid: the plan does not depend on the cost
            std::fill(out_, out_ + n_ * m_, T(0));
            return;
        }
        cost_ = {job_.cost + index * n_ * m_, job_.mask ? job_.mask + index * job_.mask_stride : nullptr, n_, m_, job_.epsilon, shift_};
        history_ = job_.history + index * job_.n_iter * m_;
        k_.prepare(cost_, 0, n_, shift_);

        terms_ = 0, start_ = grad, a_ = plan;
        if (ld_ != m_) {
            for (std::int64_t i = 0; i < n_; ++i) {
                T* row = matrix_.get() + i * ld_;
                std::copy(plan + i * m_, plan + (i + 1) * m_, row);
                std::fill(row + m_, row + ld_, T(0));
            }
            a_ = matrix_.get();
        }
        std::copy(v_at(done), v_at(done) + m_, v_);
        std::fill(dv_, dv_ + wide_, T(0));
        k_.weigh(a_, ld_, 0, n_, m_, grad, du_, dv_);
        for (std::int64_t iteration = done; iteration >= 1; --iteration) {
            step(iteration);
            std::fill(du_, du_ + n_, T(0));
        }
        add_terms();
    }

private:
    const T* v_at(std::int64_t iteration) const { return iteration == 0 ? zeros_ : history_ + (iteration - 1) * m_; }
    T* left(std::int64_t term) const { return left_.get() + (terms_ + term) * tall_; }
    T* right(std::int64_t term) const { return right_.get() + (terms_ + term) * wide_; }

    void step(std::int64_t iteration) {
        if (terms_ + 2 > capacity_) add_terms();
        if (step_with_present_matrix(iteration)) return;
        add_terms();
        const T *before = v_at(iteration - 1), *after = v_at(iteration);
        k_.lse_rows(cost_, 0, n_, before, u_);
        build(before);
        if (step_with_present_matrix(iteration)) return;

        build(after);  // with u_k this is Q before its columns are scaled
        transpose_product(row_ones_);
        k_.scale_columns(total_, target_, 0, m_, beta_, static_cast<T>(kBound));
        column_step();
        std::copy(row_ones_, row_ones_ + n_, left(0));
        sweep(right(0), du_, factor_, row_ones_, du_);
        ++terms_;
        add_terms();
        build(before);
        std::fill(total_, total_ + wide_, T(0));
        k_.scale_rows(a_, ld_, 0, n_, ones_, left(0), total_, static_cast<T>(kBound));
        for (std::int64_t i = 0; i < n_; ++i) left(0)[i] *= du_[i];
        transpose_product(left(0));
        row_step(ones_, 0);
        ++terms_;
    }

    // Undoes an iteration with the present A. Returns false, with nothing changed, if a scaling leaves the bounds.
    bool step_with_present_matrix(std::int64_t iteration) {
        T *alpha = left(0), *h = left(1), *before = right(1);
        const T bound = static_cast<T>(kBound);
        if (!k_.exp_difference(v_at(iteration - 1), v_, m_, before, bound)) return false;
        std::fill(total_, total_ + wide_, T(0));
        if (!k_.scale_rows(a_, ld_, 0, n_, before, alpha, total_, bound)) return false;
        if (!k_.scale_columns(total_, target_, 0, m_, beta_, bound)) return false;
        column_step();
        for (std::int64_t i = 0; i < n_; ++i) factor_[i] *= alpha[i];
        sweep(right(0), du_, factor_, alpha, h);
        row_step(before, 1);
        terms_ += 2;
        return true;
    }

    // Sets the term of the column half-step: right(0) = beta dv / (n/m), and factor = -1.
    void column_step() {
        T* p = right(0);
        for (std::int64_t j = 0; j < m_; ++j) p[j] = beta_[j] * dv_[j] / target_;
        std::fill(factor_, factor_ + n_, T(-1));
    }

    // Sets dv of the iteration before from total = A^T h; the right side of its term is `before`.
    void row_step(const T* before, std::int64_t term) {
        for (std::int64_t j = 0; j < m_; ++j) dv_[j] = -before[j] * total_[j];
        if (right(term) != before) std::copy(before, before + m_, right(term));
    }

    // h = scale (start + factor A p), total = A^T h
    void sweep(const T* p, const T* start, const T* factor, const T* scale, T* h) {
        std::fill(total_, total_ + wide_, T(0));
        k_.adjoint_rows(a_, ld_, 0, n_, p, start, factor, scale, h, total_);
    }
    void transpose_product(const T* h) { sweep(zeros_, h, row_zeros_, row_ones_, factor_); }

    void build(const T* v) {
        std::copy(v, v + m_, v_);
        k_.exp_rows(cost_, 0, n_, u_, v_, matrix_.get(), ld_);
        a_ = matrix_.get();
    }

    // Adds the terms gathered so far, which belong to the present A, to the gradient; the first time together with W.
    void add_terms() {
        if (terms_ == 0 && !start_) return;
        k_.subtract_outer(a_, ld_, 0, n_, m_, left_.get(), tall_, right_.get(), wide_, terms_, start_, -1 / job_.epsilon, out_,
                          start_ == nullptr);
        terms_ = 0, start_ = nullptr;
    }

    const Kernels<T>& k_;
    const UnrolledBackward<T>& job_;
    const std::int64_t n_, m_, tall_, wide_, ld_;
    const T target_;
    cpu::Scratch<T> matrix_, vectors_;
    const std::int64_t capacity_;
    cpu::Scratch<T> left_, right_;
    T *shift_, *u_, *du_, *factor_, *row_zeros_, *row_ones_, *v_, *beta_, *dv_, *total_, *zeros_, *ones_, *out_ = nullptr;
    const T *a_ = nullptr, *history_ = nullptr, *start_ = nullptr;
    Cost<T> cost_{};
    std::int64_t terms_ = 0;
};

}  // namespace

template <typename T>
void unrolled_backward(const Kernels<T>& kernels, const UnrolledBackward<T>& job, int threads) {
    const std::int64_t work = job.batch * job.n * job.m * 2 * (job.n_iter + 20);
    solve_batch(
        job.batch, useful_threads(work, threads), [&] { return std::make_unique<Unrolled<T>>(kernels, job); },
        [](Unrolled<T>& solver, std::int64_t index) { solver.solve(index); });
}

template void unrolled_backward(const Kernels<float>&, const UnrolledBackward<float>&, int);
template void unrolled_backward(const Kernels<double>&, const UnrolledBackward<double>&, int);

}  // namespace hystar_fast::sinkhorn
