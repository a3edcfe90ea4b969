// The results of the extension's functions, computed in double on the host. hystar_fast/ref defines them.
#pragma once

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <functional>
#include <thread>
#include <vector>

#include "device.h"

namespace runner {

using Doubles = std::vector<double>;

// Calls work(i) for i < count, on all threads of the host.
inline void in_parallel(int64_t count, const std::function<void(int64_t)>& work) {
    std::atomic<int64_t> next{0};
    const auto take = [&] {
        for (int64_t i = next++; i < count; i = next++) work(i);
    };
    std::vector<std::thread> helpers;
    for (int64_t t = 1; t < std::min<int64_t>(device::threads(), count); ++t) helpers.emplace_back(take);
    take();
    for (std::thread& helper : helpers) helper.join();
}

// One Sinkhorn problem: the matrix A = exp((lowest_i - cost) / epsilon), 0 if forbidden, and the scalings of every
// iteration that is kept. The plan is a_i A_ij b_j.
class Problem {
  public:
    Problem(const float* cost, const uint8_t* mask, int64_t n, int64_t m, double epsilon)
        : n_(n), m_(m), epsilon_(epsilon), matrix_(n * m), b_(m, 1.0), a_(n, 1.0) {
        for (int64_t i = 0; i < n; ++i) {
            double lowest = INFINITY;
            for (int64_t j = 0; j < m; ++j)
                if (mask == nullptr || mask[i * m + j] == 0) lowest = std::min(lowest, double{cost[i * m + j]});
            for (int64_t j = 0; j < m; ++j) {
                const bool forbidden = (mask != nullptr && mask[i * m + j] != 0) || cost[i * m + j] == INFINITY;
                matrix_[i * m + j] = forbidden ? 0.0 : std::exp((lowest - cost[i * m + j]) / epsilon);
            }
        }
    }

    // Runs `n_iter` iterations, or fewer with a tolerance: until the rows are met. Returns how many it ran.
    int64_t iterate(int64_t n_iter, bool keep, double tol = 0) {
        constexpr int64_t BAND = 64;
        const int64_t bands = (n_ + BAND - 1) / BAND;
        const bool large = n_ * m_ > (1 << 22);
        std::vector<Doubles> sums(bands, Doubles(m_));
        for (int64_t k = 0; k < n_iter; ++k) {
            if (tol > 0 && k > 0 && worst_row() <= tol) return k;
            if (keep) history_b_.push_back(b_);
            const auto rows = [&](int64_t band) {
                std::fill(sums[band].begin(), sums[band].end(), 0.0);
                for (int64_t i = band * BAND; i < std::min(n_, (band + 1) * BAND); ++i) {
                    const double* row = &matrix_[i * m_];
                    double sum = 0;
                    for (int64_t j = 0; j < m_; ++j) sum += row[j] * b_[j];
                    a_[i] = 1 / sum;
                    for (int64_t j = 0; j < m_; ++j) sums[band][j] += row[j] * a_[i];
                }
            };
            if (large) in_parallel(bands, rows);
            else
                for (int64_t band = 0; band < bands; ++band) rows(band);
            for (int64_t j = 0; j < m_; ++j) {
                double sum = 0;
                for (const Doubles& part : sums) sum += part[j];
                b_[j] = static_cast<double>(n_) / static_cast<double>(m_) / sum;
            }
            if (keep) history_a_.push_back(a_);
        }
        return n_iter;
    }

    double plan(int64_t i, int64_t j) const { return a_[i] * matrix_[i * m_ + j] * b_[j]; }
    double worst_row() const {
        double worst = 0;
        for (int64_t i = 0; i < n_; ++i) {
            double sum = 0;
            for (int64_t j = 0; j < m_; ++j) sum += plan(i, j);
            worst = std::max(worst, std::fabs(sum - 1));
        }
        return worst;
    }

    // d<dplan, plan> / dcost through all iterations, which must have been kept.
    Doubles unrolled(const float* dplan) const {
        Doubles gradient(n_ * m_), du(n_, 0.0), dv(m_, 0.0);
        for (int64_t i = 0; i < n_; ++i)
            for (int64_t j = 0; j < m_; ++j) {
                const double moved = plan(i, j) * dplan[i * m_ + j];
                gradient[i * m_ + j] = moved;
                du[i] += moved;
                dv[j] += moved;
            }
        const double columns = static_cast<double>(m_) / static_cast<double>(n_);
        for (int64_t k = static_cast<int64_t>(history_a_.size()) - 1; k >= 0; --k) {
            const Doubles &a = history_a_[k], &before = history_b_[k];
            const Doubles& after = k + 1 < static_cast<int64_t>(history_b_.size()) ? history_b_[k + 1] : b_;
            Doubles next(m_, 0.0);
            for (int64_t i = 0; i < n_; ++i) {
                const double* row = &matrix_[i * m_];
                for (int64_t j = 0; j < m_; ++j) {
                    const double flow = dv[j] * columns * a[i] * row[j] * after[j];
                    du[i] -= flow;
                    gradient[i * m_ + j] -= flow;
                }
                for (int64_t j = 0; j < m_; ++j) {
                    const double flow = du[i] * a[i] * row[j] * before[j];
                    next[j] -= flow;
                    gradient[i * m_ + j] -= flow;
                }
            }
            dv = next;
            std::fill(du.begin(), du.end(), 0.0);
        }
        for (double& value : gradient) value /= -epsilon_;
        return gradient;
    }

  private:
    int64_t n_, m_;
    double epsilon_;
    Doubles matrix_, b_, a_;
    std::vector<Doubles> history_a_, history_b_;
};

// d<dplan, plan> / dcost of a plan whose marginals stay as they are: conjugate gradients on the marginals' Jacobian,
// which is singular and consistent.
inline Doubles implicit_gradient(const float* plan, const float* dplan, int64_t n, int64_t m, double epsilon) {
    Doubles moved(n * m), diagonal(n + m, 0.0), residual(n + m, 0.0), x(n + m, 0.0);
    for (int64_t i = 0; i < n; ++i)
        for (int64_t j = 0; j < m; ++j) {
            const double p = plan[i * m + j];
            moved[i * m + j] = p * dplan[i * m + j];
            diagonal[i] += p;
            diagonal[n + j] += p;
            residual[i] += moved[i * m + j];
            residual[n + j] += moved[i * m + j];
        }
    const auto precondition = [&](const Doubles& from) {
        Doubles to(n + m);
        for (int64_t i = 0; i < n + m; ++i) to[i] = diagonal[i] > 0 ? from[i] / diagonal[i] : 0.0;
        return to;
    };
    const auto dot = [](const Doubles& left, const Doubles& right) {
        double sum = 0;
        for (size_t i = 0; i < left.size(); ++i) sum += left[i] * right[i];
        return sum;
    };
    Doubles scaled = precondition(residual), direction = scaled;
    double size = dot(residual, scaled);
    const double small = 1e-28 * size;
    for (int64_t step = 0; step < 4 * (n + m) && size > small; ++step) {
        Doubles image(n + m);
        for (int64_t i = 0; i < n + m; ++i) image[i] = diagonal[i] * direction[i];
        for (int64_t i = 0; i < n; ++i)
            for (int64_t j = 0; j < m; ++j) {
                image[i] += double{plan[i * m + j]} * direction[n + j];
                image[n + j] += double{plan[i * m + j]} * direction[i];
            }
        const double rate = size / dot(direction, image);
        for (int64_t i = 0; i < n + m; ++i) {
            x[i] += rate * direction[i];
            residual[i] -= rate * image[i];
        }
        scaled = precondition(residual);
        const double next = dot(residual, scaled);
        for (int64_t i = 0; i < n + m; ++i) direction[i] = scaled[i] + next / size * direction[i];
        size = next;
    }
    for (int64_t i = 0; i < n; ++i)
        for (int64_t j = 0; j < m; ++j)
            moved[i * m + j] = (plan[i * m + j] * (x[i] + x[n + j]) - moved[i * m + j]) / epsilon;
    return moved;
}

// The loss of every row and d loss_i / d sim_ij times the temperature; docs/algorithms/style_nce.md.
struct NceReference {
    Doubles loss, slope;
};
struct NceOptions {
    int64_t n, n_iter;
    double temperature, gamma, lam, epsilon;  // gamma 0: "auto"
    int weights;
};
inline NceReference style_nce(const float* sim, const uint8_t* mask, const NceOptions& options) {
    const int64_t n = options.n;
    std::vector<float> cost(n * n);
    for (int64_t i = 0; i < n; ++i)
        for (int64_t j = 0; j < n; ++j) {
            const bool negative = i != j && (mask == nullptr || mask[i * n + j] == 0);
            const double s = sim[i * n + j];
            const double c = options.weights == 0 ? std::exp(std::min((1 - s) / options.lam, 60.0)) : s - 1;
            cost[i * n + j] = negative ? static_cast<float>(c) : INFINITY;
        }
    Problem problem(cost.data(), nullptr, n, n, options.weights == 0 ? options.epsilon : options.lam);
    if (options.weights != 2) problem.iterate(options.n_iter, false);
    NceReference result{Doubles(n), Doubles(n * n)};
    for (int64_t i = 0; i < n; ++i) {
        double negatives = 0, sum = 0;
        for (int64_t j = 0; j < n; ++j) negatives += cost[i * n + j] != INFINITY;
        const double gamma = options.gamma > 0 ? options.gamma : 80.0 / 47.0 * std::max(negatives, 1.0);
        double* slope = &result.slope[i * n];
        for (int64_t j = 0; j < n; ++j) {
            if (cost[i * n + j] == INFINITY) continue;
            const double weight = options.weights == 2 ? 1 / negatives : problem.plan(i, j);
            slope[j] = gamma * weight * std::exp((double{sim[i * n + j]} - sim[i * n + i]) / options.temperature);
            sum += slope[j];
        }
        for (int64_t j = 0; j < n; ++j) slope[j] /= 1 + sum;
        slope[i] = -sum / (1 + sum);
        result.loss[i] = std::log1p(sum);
    }
    return result;
}

}  // namespace runner
