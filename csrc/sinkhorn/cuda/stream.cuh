// Computes: Sinkhorn for any N and M. The cost stays in global memory, and an iteration is two launches.
// Grid: (rows / 8 or columns / 32, problems) blocks of 8 warps.
// Each warp owns: one row (row kernels). In the column kernels a block owns 32 columns, and a warp every eighth row of
//   them.
// Memory traffic: the cost twice an iteration, coalesced; N + M potentials.
// Numerics: the iteration in the log domain. The potentials of the step before are the shift: then the sum of 2^(x + u
//   + v) is in [1 / max(N, M), max(N, M)], so only the first column half-step needs a maximum.
#pragma once

#include "sinkhorn/cuda/feasibility.cuh"

namespace hystar_fast {

// The part of the workspace of one problem. There are two u: iteration k reads u(k) and writes u(k + 1).
struct Workspace {
    enum RowState : int { HAS_INVALID = 1, HAS_FORBIDDEN = 2 };
    float *lowest, *row_error, *even, *odd;
    int* row_state;
    int* feasibility;

    static HYSTAR_BOTH constexpr long long words(int n, int m) { return 5LL * n + feasibility_words(n, m); }
    HYSTAR_DEVICE Workspace(float* base, const Problem& problem, long long index) {
        const int n = problem.n;
        lowest = base + index * words(n, problem.m);
        row_error = lowest + n;
        even = row_error + n;
        odd = even + n;
        row_state = reinterpret_cast<int*>(odd + n);
        feasibility = row_state + n;
    }
    HYSTAR_DEVICE float* u(int iteration) const { return iteration % 2 == 0 ? even : odd; }
};

// The row half-step of iteration k for the row of this warp. Iteration 0 also sets the row state.
template <class Block>
HYSTAR_DEVICE void stream_row(Block& block, const Problem& problem, const Workspace& work, int row, int k) {
    if (row >= problem.n || (k > 0 && *problem.iterations() < k)) return;
    if (k == 0) {
        float negative = -INFINITY, invalid = 0, forbidden = 0;
        for (int j = block.lane(); j < problem.m; j += 32) {
            const float cost = problem.allowed_cost(row, j);
            invalid += is_invalid(cost);
            forbidden += cost == INFINITY;
            negative = fmaxf(negative, -cost);
        }
        negative = reduce_warp<Max>(block, negative);
        invalid = reduce_warp<Sum>(block, invalid);
        forbidden = reduce_warp<Sum>(block, forbidden);
        if (block.lane() == 0) {
            work.lowest[row] = -negative;
            work.row_state[row] = (invalid > 0 ? Workspace::HAS_INVALID : 0) |
                                  (forbidden > 0 ? Workspace::HAS_FORBIDDEN : 0);
        }
        block.sync_warp();
    }
    const float lowest = work.lowest[row], u = k == 0 ? 0.0f : work.u(k)[row];
    float sum = 0;
#pragma unroll 8
    for (int j = block.lane(); j < problem.m; j += 32) {
        const float x = problem.exponent(problem.allowed_cost(row, j), lowest);
        sum += k == 0 ? power_of_two(x) : plan_entry(x, u, problem.v()[j]);
    }
    sum = reduce_warp<Sum>(block, sum);
    if (block.lane() == 0) {
        work.u(k + 1)[row] = u - log2f(sum);
        work.row_error[row] = fabsf(sum - 1);
    }
}

// Reduces entry(row) over the rows of a column: each warp takes every eighth row. Every warp gets the result.
template <class Op, class Block, class Entry>
HYSTAR_DEVICE float reduce_column(Block& block, int rows, float* scratch, Entry entry) {
    float total = Op::NEUTRAL;
#pragma unroll 8
    for (int i = block.warp(); i < rows; i += Block::WARPS) total = Op::apply(total, entry(i));
    block.sync();
    scratch[block.thread()] = total;
    block.sync();
    total = scratch[block.lane()];
    for (int warp = 1; warp < Block::WARPS; ++warp) total = Op::apply(total, scratch[warp * 32 + block.lane()]);
    return total;
}

// The column half-step of iteration k for 32 columns. With a tolerance, it does nothing if the problem has met it.
// `scratch` has one float for each thread.
template <class Block>
HYSTAR_DEVICE void stream_columns(Block& block, const Problem& problem, const Workspace& work, int chunk, int k,
                                  float* scratch) {
    if (k > 0 && read_relaxed(problem.iterations()) < k) return;
    if (k > 0 && problem.tol > 0) {
        float worst = 0;
        for (int i = block.thread(); i < problem.n; i += Block::THREADS) worst = fmaxf(worst, work.row_error[i]);
        if (reduce_block<Max>(block, worst, scratch) <= problem.tol) return;
    }
    const int column = chunk * 32 + block.lane();
    const float* u = work.u(k + 1);
    const bool inside = column < problem.m;
    const auto x = [&](int i) { return problem.exponent(problem.allowed_cost(i, column), work.lowest[i]); };
    float v = k > 0 && inside ? problem.v()[column] : 0.0f;
    if (k == 0) v = -reduce_column<Max>(block, problem.n, scratch, [&](int i) { return x(i) + u[i]; });
    const float sum = reduce_column<Sum>(block, problem.n, scratch, [&](int i) { return plan_entry(x(i), u[i], v); });
    if (inside && block.warp() == 0) problem.v()[column] = v + log2f(problem.column_mass) - log2f(sum);
    if (chunk == 0 && block.thread() == 0) write_relaxed(problem.iterations(), k + 1);
}

// Writes the row of the plan of this warp, and the error of its sum.
template <class Block>
HYSTAR_DEVICE void stream_plan(Block& block, const Problem& problem, const Workspace& work, int row) {
    if (row >= problem.n) return;
    const float lowest = work.lowest[row], u = work.u(*problem.iterations())[row];
    float sum = 0;
    for (int j = block.lane(); j < problem.m; j += 32) {
        const float x = problem.exponent(problem.allowed_cost(row, j), lowest);
        const float entry = plan_entry(x, u, problem.v()[j]);
        problem.plan()[problem.at(row, j)] = entry;
        sum += entry;
    }
    sum = reduce_warp<Sum>(block, sum);
    if (block.lane() == 0) {
        work.row_error[row] = fabsf(sum - 1);
        problem.u()[row] = u * problem.unit + lowest;
    }
}

// Writes the status and the error of a problem; one block. `scratch` has one float for each warp. Returns true if
// check_feasibility must decide whether a plan exists.
template <class Block>
HYSTAR_DEVICE bool stream_outcome(Block& block, const Problem& problem, const Workspace& work, float* scratch) {
    float worst = 0, missing = 0;
    bool invalid = false, forbidden = false, empty = false;
    for (int i = block.thread(); i < problem.n; i += Block::THREADS) {
        worst = fmaxf(worst, work.row_error[i]);
        missing += work.row_error[i];
        invalid |= (work.row_state[i] & Workspace::HAS_INVALID) != 0;
        forbidden |= (work.row_state[i] & Workspace::HAS_FORBIDDEN) != 0;
        empty |= work.lowest[i] == INFINITY;
    }
    for (int j = block.thread(); j < problem.m; j += Block::THREADS) {
        empty |= !(fabsf(problem.v()[j]) < INFINITY);  // the potential of a column without an allowed entry is not finite
        problem.v()[j] *= problem.unit;
    }
    const int refused = block.any(invalid) ? INVALID : block.any(empty) ? INFEASIBLE : CONVERGED;
    if (refused != CONVERGED) {
        write_without_plan(block, problem, refused);
        return false;
    }
    worst = reduce_block<Max>(block, worst, scratch);
    missing = reduce_block<Sum>(block, missing, scratch);
    if (block.thread() == 0) {
        *problem.status() = problem.outcome(worst);
        *problem.error() = worst;
    }
    return block.any(forbidden) && missing >= problem.row_mass;
}

}  // namespace hystar_fast
