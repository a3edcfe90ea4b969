// The parts that the two gradients of a problem in registers share; see unrolled_gradient.cuh and
// implicit_gradient.cuh.
#pragma once

#include "sinkhorn/cuda/tile.cuh"

namespace hystar_fast {

// The arguments of a gradient beside the Batch of its forward pass. It does not use the potentials, status and error of
// that.
struct Upstream {
    const float* dplan;  // [batch, N, M]
    float* dcost;        // [batch, N, M]
    float inverse_epsilon;
};

template <class T, class Block>
class TileGradient : protected TileSolver<T, Block> {
  protected:
    using Base = TileSolver<T, Block>;
    using Base::a_, Base::block_, Base::problem_, Base::shared_;

    HYSTAR_DEVICE TileGradient(Block& block, const Problem& problem, typename T::Shared& shared, const Upstream& upstream)
        : Base(block, problem, shared), upstream_(upstream) {}

    // Writes a gradient of zero and returns true for infeasible and invalid problems: their plan does not depend on the
    // cost.
    HYSTAR_DEVICE bool is_zero() {
        if constexpr (Block::CLUSTERED) block_.sync_cluster();
        shared_.zero = shared_.turn = 0;  // every thread writes them, so none waits for another
        if (*problem_.iterations() > 0) return false;
#pragma unroll 1
        for (int i = 0; i < T::ROWS; ++i) {
            const Entries own = entries(i);
            for (int k = 0; own.has(k); ++k) upstream_.dcost[own.first + T::LANE_COLUMNS * k] = 0;
        }
        return true;
    }

    // The entries of a row of the lane: entry k is LANE_COLUMNS * k after the first, and exists if that is below
    // `left`. `zero` is 0, but it is read from memory, so that the compiler does not keep addresses in registers from
    // one row or pass to the next: A needs all registers.
    struct Entries {
        long long first;
        int left;
        HYSTAR_DEVICE bool has(int k) const { return T::LANE_COLUMNS * k < left; }
    };
    HYSTAR_DEVICE Entries entries(int i) const {
        const int zero = *static_cast<volatile int*>(&shared_.zero), at = this->row(i) + zero;
        return {problem_.index * problem_.size() + problem_.at(at, this->lane_column()),
                at < problem_.n ? problem_.m - this->lane_column() : 0};
    }
    HYSTAR_DEVICE void read(float (&values)[T::COLUMNS], const float* matrix, const Entries& own) const {
#pragma unroll
        for (int k = 0; k < T::COLUMNS; ++k)
            values[k] = read_if(own.has(k), matrix + own.first + T::LANE_COLUMNS * k, 0.0f);
    }

    // Sums over the rows and columns of the lane. `slots` must be memory that no lane reads any more.
    HYSTAR_DEVICE void add_rows(float (&values)[T::ROWS], float* slots) {
        this->template reduce_rows<Sum>(values, slots, [](float sum, int) { return sum; });
    }
    HYSTAR_DEVICE void add_columns(float (&values)[T::COLUMNS], float* slots) {
        this->template reduce_columns<Sum>(values, slots, [](float sum) { return sum; });
    }

    // A x for the rows of the lane, and A' y for its columns, over its own entries.
    HYSTAR_DEVICE void times(const float (&x)[T::COLUMNS], float (&y)[T::ROWS]) const {
#pragma unroll
        for (int i = 0; i < T::ROWS; ++i) {
            y[i] = a_[i][0] * x[0];
#pragma unroll
            for (int k = 1; k < T::COLUMNS; ++k) y[i] = fmaf(a_[i][k], x[k], y[i]);
        }
    }
    HYSTAR_DEVICE void transposed_times(const float (&y)[T::ROWS], float (&x)[T::COLUMNS]) const {
#pragma unroll
        for (int k = 0; k < T::COLUMNS; ++k) {
            x[k] = a_[0][k] * y[0];
#pragma unroll
            for (int i = 1; i < T::ROWS; ++i) x[k] = fmaf(a_[i][k], y[i], x[k]);
        }
    }

    const Upstream& upstream_;
};

}  // namespace hystar_fast
