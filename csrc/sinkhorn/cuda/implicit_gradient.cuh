// Computes: the gradient of the cost through the converged plan P of a problem in registers.
// Grid: blocks or clusters, each of which takes one problem after the other.
// Each thread owns: a piece of P, like that of A in TileSolver, and the column vectors of its columns.
// Memory traffic: the plan once, its gradient twice, dcost once.
// Numerics: with W = P * dplan, a = P 1, b = P' 1,
//     dK = P * (dplan - alpha_i - beta_j),   alpha = (W 1 - P beta) / a,   W' 1 - P' alpha - diag(b) beta = 0,
//   where beta is found by conjugate gradients, preconditioned by b. The matrix is a graph Laplacian, which is
//   singular, but the system is consistent, and the result does not depend on the solution found. All in fp32, like P:
//   where this is not exact enough, the digits of P are not enough either.
#pragma once

#include "sinkhorn/cuda/gradient.cuh"

namespace hystar_fast {

template <class T, class Block>
class TileImplicit : TileGradient<T, Block> {
    using Base = TileGradient<T, Block>;
    using typename Base::Entries;
    using Base::a_, Base::block_, Base::problem_, Base::shared_, Base::upstream_;
    using Vector = float[T::COLUMNS];

  public:
    HYSTAR_DEVICE TileImplicit(Block& block, const Problem& problem, typename T::Shared& shared, const Upstream& upstream)
        : Base(block, problem, shared, upstream) {}

    HYSTAR_DEVICE void solve() {
        if (this->is_zero()) return;
        float alpha[T::ROWS];
        Vector beta = {}, residual;
        load();
        alphas(beta, alpha);
        this->transposed_times(alpha, residual);
        this->add_columns(residual, shared_.b);
#pragma unroll
        for (int k = 0; k < T::COLUMNS; ++k) residual[k] = weighted_columns_[k] - residual[k];
        solve_for(beta, residual);
        alphas(beta, alpha);
        write(alpha, beta);
    }

  private:
    // Loads P, and computes the sums of its rows and columns, and those of W.
    HYSTAR_DEVICE void load() {
        float rows[T::ROWS] = {};
#pragma unroll
        for (int k = 0; k < T::COLUMNS; ++k) columns_[k] = weighted_columns_[k] = 0;
#pragma unroll
        for (int i = 0; i < T::ROWS; ++i) {
            const Entries own = this->entries(i);
            float given[T::COLUMNS];
            this->read(a_[i], problem_.Batch::plan, own);
            this->read(given, upstream_.dplan, own);
            weighted_rows_[i] = 0;
#pragma unroll
            for (int k = 0; k < T::COLUMNS; ++k) {
                const float w = a_[i][k] * given[k];
                rows[i] += a_[i][k];
                columns_[k] += a_[i][k];
                weighted_rows_[i] += w;
                weighted_columns_[k] += w;
            }
        }
        this->add_rows(rows, shared_.u);
        this->add_rows(weighted_rows_, shared_.a);
        this->add_columns(columns_, shared_.v);
        this->add_columns(weighted_columns_, shared_.b);
#pragma unroll
        for (int i = 0; i < T::ROWS; ++i) inverse_rows_[i] = inverse(rows[i]);
    }

    HYSTAR_DEVICE void alphas(const Vector& beta, float (&alpha)[T::ROWS]) {
        this->times(beta, alpha);
        this->add_rows(alpha, shared_.a);
#pragma unroll
        for (int i = 0; i < T::ROWS; ++i) alpha[i] = (weighted_rows_[i] - alpha[i]) * inverse_rows_[i];
    }

    // The dot product of two column vectors: the same in every lane, because all rows of lanes have the same columns.
    HYSTAR_DEVICE float dot(const Vector& x, const Vector& y) {
        float total = x[0] * y[0];
#pragma unroll
        for (int k = 1; k < T::COLUMNS; ++k) total = fmaf(x[k], y[k], total);
        return reduce_warp<Sum, T::LANE_COLUMNS>(block_, total);
    }

    // Conjugate gradients from beta = 0. `residual` is the right side at first.
    HYSTAR_DEVICE void solve_for(Vector& beta, Vector& residual) {
        Vector direction, image, preconditioned;
        const auto precondition = [&] {
#pragma unroll
            for (int k = 0; k < T::COLUMNS; ++k) preconditioned[k] = residual[k] * inverse(columns_[k]);
        };
        precondition();
#pragma unroll
        for (int k = 0; k < T::COLUMNS; ++k) direction[k] = preconditioned[k];
        float rho = dot(residual, preconditioned);
        const float goal = rho * SMALL;
        for (int k = 0; k < 2 * problem_.m + 20 && rho > goal; ++k) {
            float rows[T::ROWS];
            this->times(direction, rows);
            this->add_rows(rows, shared_.a);
#pragma unroll
            for (int i = 0; i < T::ROWS; ++i) rows[i] *= inverse_rows_[i];
            this->transposed_times(rows, image);
            this->add_columns(image, shared_.b);
#pragma unroll
            for (int c = 0; c < T::COLUMNS; ++c) {
                preconditioned[c] = columns_[c] * direction[c];
                image[c] = preconditioned[c] - image[c];
            }
            const float curvature = dot(direction, image), size = dot(direction, preconditioned);
            if (!(curvature > FLAT * size)) return;  // the direction changes no marginal
            const float step = rho / curvature, before = rho;
#pragma unroll
            for (int c = 0; c < T::COLUMNS; ++c) {
                beta[c] = fmaf(step, direction[c], beta[c]);
                residual[c] = fmaf(-step, image[c], residual[c]);
            }
            precondition();
            rho = dot(residual, preconditioned);
            const float keep = rho / before;
#pragma unroll
            for (int c = 0; c < T::COLUMNS; ++c) direction[c] = fmaf(keep, direction[c], preconditioned[c]);
        }
    }

    HYSTAR_DEVICE void write(const float (&alpha)[T::ROWS], const Vector& beta) {
#pragma unroll
        for (int i = 0; i < T::ROWS; ++i) {
            const Entries own = this->entries(i);
            float given[T::COLUMNS];
            this->read(given, upstream_.dplan, own);
            float* out = upstream_.dcost + own.first;
#pragma unroll
            for (int k = 0; k < T::COLUMNS; ++k)
                if (own.has(k))
                    out[T::LANE_COLUMNS * k] = -upstream_.inverse_epsilon * a_[i][k] * (given[k] - alpha[i] - beta[k]);
        }
    }

    static constexpr float SMALL = 1e-13f;  // the square of the relative residual at which rounding dominates in fp32
    static constexpr float FLAT = 1e-6f;

    float columns_[T::COLUMNS], weighted_columns_[T::COLUMNS];
    float inverse_rows_[T::ROWS], weighted_rows_[T::ROWS];
};

}  // namespace hystar_fast
