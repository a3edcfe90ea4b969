// The gradient of the CPU Sinkhorn at the fixed point.
//
// dK = W - plan_ij (alpha_i + beta_j) with W = plan * grad, where the marginals of the right side are zero. alpha is
// eliminated, and (diag(b) - P^T diag(1/a) P) beta = W^T 1 - P^T (W 1 / a) is solved by conjugate gradients in double.
// The matrix is singular, because constants move between alpha and beta in every connected part of the support, but the
// system is consistent, and the result does not depend on the solution found.
#include "sinkhorn/cpu/sinkhorn.h"

#include <algorithm>
#include <cmath>

#include "cpu/scratch.h"
#include "sinkhorn/cpu/batch.h"

namespace hystar_fast::sinkhorn {
namespace {

using cpu::round_up;

class Implicit {
public:
    Implicit(const Kernels<double>& kernels, const ImplicitBackward& job)
        : k_(kernels), job_(job), n_(job.n), m_(job.m), tall_(round_up(n_, kernels.lanes)), wide_(round_up(m_, kernels.lanes)),
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

    // Solves for beta. residual_ holds the right side at first, and b preconditions. The iteration stops at rounding,
    // or when it has searched as many directions as there are, and some more.
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
            if (!(curvature > 1e-15 * size)) break;  // the direction changes no marginal
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
    cpu::Scratch<double> matrix_, vectors_;
    double *row_weight_, *row_product_, *row_zeros_, *row_ones_, *inverse_rows_, *alpha_;
    double *column_sum_, *residual_, *direction_, *image_, *beta_, *ones_, *left_, *right_;
};

}  // namespace

void implicit_backward(const Kernels<double>& kernels, const ImplicitBackward& job, int threads) {
    const std::int64_t work = job.batch * job.n * job.m * 40;
    solve_batch(
        job.batch, useful_threads(work, threads), [&] { return std::make_unique<Implicit>(kernels, job); },
        [](Implicit& solver, std::int64_t index) { solver.solve(index); });
}

}  // namespace hystar_fast::sinkhorn
