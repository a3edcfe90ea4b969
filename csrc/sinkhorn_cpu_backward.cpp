// The two backward passes of the CPU Sinkhorn.
//
// Unrolled, with W = plan * grad, du = W 1, dv = W^T 1, from the last iteration k to the first:
//     Q_ij = exp(K + u_k + v_k) / (n/m)    du -= Q dv       (du starts from 0 but for the last iteration)
//     R_ij = exp(K + u_k + v_{k-1})        dv  = -R^T du
//     dK -= Q_ij dv_j + R_ij du_i
// Q and R are one matrix A, the plan at first, between diagonal scalings: alpha = 1 / (A beta_{k-1}) and
// beta_k = (n/m) / (A^T alpha), recomputed from the stored v_{k-1} so that R's rows and Q's columns sum to 1 to
// rounding (from stored u and v they would to rounding times |u| only, which small epsilon cannot bear). The rank-one
// terms of up to kTerms / 2 iterations are settled together, as one product of matrices. A is built anew, by
// logsumexp, where a scaling leaves [1/kBound, kBound]; where even then the two half-steps are too far apart each gets a
// matrix of its own.
//
// Implicit, at the fixed point: dK = W - plan_ij (alpha_i + beta_j), where the marginals of the right side vanish.
// alpha is eliminated and (diag(b) - P^T diag(1/a) P) beta = W^T 1 - P^T (W 1 / a) solved by conjugate gradients in
// double: singular (constants move between alpha and beta in every connected part of the support) but consistent,
// and the result does not depend on the solution picked.
#include "sinkhorn_cpu.h"
#include "sinkhorn_cpu_team.h"

#include <algorithm>
#include <cmath>
#include <vector>

namespace hystar_fast::sinkhorn {
namespace {

constexpr double kBound = 1e8;
constexpr std::int64_t kTerms = 256;                 // rank-one terms gathered before they are settled
constexpr std::int64_t kEntriesPerThread = 1 << 21;  // entries times iterations that pay for starting a thread

std::int64_t padded(std::int64_t count, std::int64_t lanes) { return (count + lanes - 1) / lanes * lanes; }

// A stride of at least `count` that is an odd number of cache lines, so that columns do not fall into few cache sets.
template <typename T>
std::int64_t spread(std::int64_t count) {
    const std::int64_t line = 64 / static_cast<std::int64_t>(sizeof(T));
    return (padded(count, line) / line | 1) * line;
}

template <typename T>
class Unrolled {
public:
    Unrolled(const Kernels<T>& kernels, const UnrolledBackward<T>& job)
        : k_(kernels), job_(job), n_(job.n), m_(job.m), tall_(spread<T>(n_)), wide_(spread<T>(m_)), ld_(padded(m_, kernels.lanes)),
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
        flush();
    }

private:
    const T* v_at(std::int64_t iteration) const { return iteration == 0 ? zeros_ : history_ + (iteration - 1) * m_; }
    T* left(std::int64_t term) const { return left_.get() + (terms_ + term) * tall_; }
    T* right(std::int64_t term) const { return right_.get() + (terms_ + term) * wide_; }

    void step(std::int64_t iteration) {
        if (terms_ + 2 > capacity_) flush();
        if (step_near(iteration)) return;
        flush();
        const T *before = v_at(iteration - 1), *after = v_at(iteration);
        k_.lse_rows(cost_, 0, n_, before, u_);
        build(before);
        if (step_near(iteration)) return;

        build(after);  // with u_k: this is Q, its columns still to be scaled
        transpose_product(row_ones_);
        k_.scale_columns(total_, target_, 0, m_, beta_, static_cast<T>(kBound));
        column_step();
        std::copy(row_ones_, row_ones_ + n_, left(0));
        sweep(right(0), du_, factor_, row_ones_, du_);
        ++terms_;
        flush();
        build(before);
        std::fill(total_, total_ + wide_, T(0));
        k_.scale_rows(a_, ld_, 0, n_, ones_, left(0), total_, static_cast<T>(kBound));
        for (std::int64_t i = 0; i < n_; ++i) left(0)[i] *= du_[i];
        transpose_product(left(0));
        row_step(ones_, 0);
        ++terms_;
    }

    // An iteration from the present A; false where a scaling would leave the bounds.
    bool step_near(std::int64_t iteration) {
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

    // The column half-step's term: right(0) = beta dv / (n/m), and factor = -1.
    void column_step() {
        T* p = right(0);
        for (std::int64_t j = 0; j < m_; ++j) p[j] = beta_[j] * dv_[j] / target_;
        std::fill(factor_, factor_ + n_, T(-1));
    }

    // dv of the iteration before, from total = A^T h; its term's right side is `before`.
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

    // Settle the terms gathered so far, which belong to the present A; the first time together with W.
    void flush() {
        if (terms_ == 0 && !start_) return;
        k_.subtract_outer(a_, ld_, 0, n_, m_, left_.get(), tall_, right_.get(), wide_, terms_, start_, -1 / job_.epsilon, out_,
                          start_ == nullptr);
        terms_ = 0, start_ = nullptr;
    }

    const Kernels<T>& k_;
    const UnrolledBackward<T>& job_;
    const std::int64_t n_, m_, tall_, wide_, ld_;
    const T target_;
    Scratch<T> matrix_, vectors_;
    const std::int64_t capacity_;
    Scratch<T> left_, right_;
    T *shift_, *u_, *du_, *factor_, *row_zeros_, *row_ones_, *v_, *beta_, *dv_, *total_, *zeros_, *ones_, *out_ = nullptr;
    const T *a_ = nullptr, *history_ = nullptr, *start_ = nullptr;
    Cost<T> cost_{};
    std::int64_t terms_ = 0;
};

class Implicit {
public:
    Implicit(const Kernels<double>& kernels, const ImplicitBackward& job)
        : k_(kernels), job_(job), n_(job.n), m_(job.m), tall_(padded(n_, kernels.lanes)), wide_(padded(m_, kernels.lanes)),
          matrix_(n_ * wide_), vectors_(8 * tall_ + 8 * wide_) {
        double* next = vectors_.get();
        for (double** vector : {&row_weight_, &row_product_, &row_zeros_, &row_ones_, &inverse_rows_, &alpha_}) *vector = next, next += tall_;
        for (double** vector : {&column_sum_, &residual_, &direction_, &image_, &beta_, &ones_}) *vector = next, next += wide_;
        left_ = next, right_ = next + 2 * tall_;
        std::fill(row_ones_, row_ones_ + n_, 1.0);
        std::fill(ones_, ones_ + m_, 1.0);
    }

    void solve(std::int64_t index) {
        const double *plan = job_.plan + index * n_ * m_, *grad = job_.grad + index * n_ * m_;
        double* out = job_.dcost + index * n_ * m_;
        std::fill(out, out + n_ * m_, 0.0);
        if (n_ * m_ == 0 || std::isnan(plan[0])) return;
        for (std::int64_t i = 0; i < n_; ++i) std::copy(plan + i * m_, plan + (i + 1) * m_, matrix_.get() + i * wide_);

        sweep(ones_, row_zeros_, row_ones_, row_ones_, inverse_rows_, image_);         // a = P 1
        sweep(ones_, row_ones_, row_zeros_, row_ones_, row_product_, column_sum_);     // b = P^T 1
        for (std::int64_t i = 0; i < n_; ++i) inverse_rows_[i] = inverse_rows_[i] > 0 ? 1 / inverse_rows_[i] : 0;
        std::fill(residual_, residual_ + wide_, 0.0);
        k_.weigh(matrix_.get(), wide_, 0, n_, m_, grad, row_weight_, residual_);
        sweep(ones_, row_weight_, row_zeros_, inverse_rows_, row_product_, image_);    // P^T (W 1 / a)
        for (std::int64_t j = 0; j < m_; ++j) residual_[j] -= image_[j];
        conjugate_gradients();
        sweep(beta_, row_weight_, minus_ones(), inverse_rows_, alpha_, image_);         // (W 1 - P beta) / a

        std::copy(alpha_, alpha_ + n_, left_);
        std::copy(row_ones_, row_ones_ + n_, left_ + tall_);
        std::copy(ones_, ones_ + m_, right_);
        std::copy(beta_, beta_ + m_, right_ + wide_);
        k_.subtract_outer(matrix_.get(), wide_, 0, n_, m_, left_, tall_, right_, wide_, 2, grad, -1 / job_.epsilon, out, false);
    }

private:
    void sweep(const double* p, const double* start, const double* factor, const double* scale, double* h, double* t) {
        std::fill(t, t + wide_, 0.0);
        k_.adjoint_rows(matrix_.get(), wide_, 0, n_, p, start, factor, scale, h, t);
    }
    const double* minus_ones() {
        std::fill(row_product_, row_product_ + n_, -1.0);
        return row_product_;
    }

    // beta from residual_ (the right side), preconditioned by b; it stops at rounding or when the space is used up.
    void conjugate_gradients() {
        const auto preconditioned = [this](std::int64_t j) { return column_sum_[j] > 0 ? residual_[j] / column_sum_[j] : 0; };
        double rho = 0;
        for (std::int64_t j = 0; j < m_; ++j) {
            beta_[j] = 0, direction_[j] = preconditioned(j);
            rho += residual_[j] * direction_[j];
        }
        const double goal = rho * 1e-28;
        for (std::int64_t k = 0; k < 2 * m_ + 20 && rho > goal && rho > 0; ++k) {
            sweep(direction_, row_zeros_, row_ones_, inverse_rows_, row_product_, image_);
            double curvature = 0, size = 0;
            for (std::int64_t j = 0; j < m_; ++j) {
                const double diagonal = column_sum_[j] * direction_[j];
                image_[j] = diagonal - image_[j];
                curvature += direction_[j] * image_[j], size += direction_[j] * diagonal;
            }
            if (!(curvature > 1e-15 * size)) break;  // a direction that moves no marginal
            const double step = rho / curvature, before = rho;
            rho = 0;
            for (std::int64_t j = 0; j < m_; ++j) {
                beta_[j] += step * direction_[j], residual_[j] -= step * image_[j];
                rho += residual_[j] * preconditioned(j);
            }
            for (std::int64_t j = 0; j < m_; ++j) direction_[j] = preconditioned(j) + rho / before * direction_[j];
        }
    }

    const Kernels<double>& k_;
    const ImplicitBackward& job_;
    const std::int64_t n_, m_, tall_, wide_;
    Scratch<double> matrix_, vectors_;
    double *row_weight_, *row_product_, *row_zeros_, *row_ones_, *inverse_rows_, *alpha_;
    double *column_sum_, *residual_, *direction_, *image_, *beta_, *ones_, *left_, *right_;
};

// The problems of a batch over threads, each with a solver of its own.
template <typename Solver, typename K, typename Job>
void solve_batch(const K& kernels, const Job& job, std::int64_t work, int threads) {
    const std::int64_t useful = std::max<std::int64_t>(1, work / kEntriesPerThread);
    const int workers = static_cast<int>(std::min({static_cast<std::int64_t>(threads), useful, job.batch}));
    std::vector<std::unique_ptr<Solver>> solvers;
    for (int rank = 0; rank < workers; ++rank) solvers.push_back(std::make_unique<Solver>(kernels, job));
    std::atomic<std::int64_t> next{0};
    parallel(workers, [&](int rank, int) {
        for (std::int64_t b = next++; b < job.batch; b = next++) solvers[static_cast<std::size_t>(rank)]->solve(b);
    });
}

}  // namespace

template <typename T>
void unrolled_backward(const Kernels<T>& kernels, const UnrolledBackward<T>& job, int threads) {
    solve_batch<Unrolled<T>>(kernels, job, job.batch * job.n * job.m * 2 * (job.n_iter + 20), threads);
}

void implicit_backward(const Kernels<double>& kernels, const ImplicitBackward& job, int threads) {
    solve_batch<Implicit>(kernels, job, job.batch * job.n * job.m * 40, threads);
}

template void unrolled_backward(const Kernels<float>&, const UnrolledBackward<float>&, int);
template void unrolled_backward(const Kernels<double>&, const UnrolledBackward<double>&, int);

}  // namespace hystar_fast::sinkhorn
