// Computes: whether a problem that is far from its marginals has a plan (status INFEASIBLE if not).
// Grid: called by the block that owns the problem, after it wrote the plan. It is called only if entries are forbidden
//   and the errors of the row sums add up to at least gcd(N, M) / M; if they are smaller, a plan exists.
// Each thread owns: every THREADS-th row or column of a breadth-first search.
// Memory traffic: the cost twice if the degrees decide, as they do for diagonal and same-class masks; else once for
//   each augmenting path. The flow is stored in the memory of the plan, and the plan is then computed again.
// Numerics: whole numbers, so the answer is exact.
#pragma once

#include "sinkhorn/cuda/problem.cuh"

namespace hystar_fast {

HYSTAR_BOTH constexpr int feasibility_words(int n, int m) { return 2 * (n + m) + 34; }

// Returns true if the least row degree / M + the least column degree / N is at least 1. Then Hall's condition holds: a
// set of rows S with too few columns has |S| / N > degree_row / M, and all rows of a column outside these columns are
// outside S.
template <class Block>
HYSTAR_DEVICE bool degrees_suffice(Block& block, const Problem& problem, float* scratch) {
    float row_degree = -INFINITY, column_degree = -INFINITY;  // negated, because the reduction is Max
    for (int i = block.warp(); i < problem.n; i += Block::WARPS) {
        float degree = 0;
        for (int j = block.lane(); j < problem.m; j += 32) degree += problem.allowed_cost(i, j) != INFINITY;
        row_degree = fmaxf(row_degree, -reduce_warp<Sum>(block, degree));
    }
    for (int j = block.thread(); j < problem.m; j += Block::THREADS) {
        float degree = 0;
        for (int i = 0; i < problem.n; ++i) degree += problem.allowed_cost(i, j) != INFINITY;
        column_degree = fmaxf(column_degree, -degree);
    }
    const long long row = static_cast<long long>(-reduce_block<Max>(block, row_degree, scratch));
    const long long column = static_cast<long long>(-reduce_block<Max>(block, column_degree, scratch));
    return row * problem.n + column * problem.m >= static_cast<long long>(problem.n) * problem.m;
}

// A maximum flow from rows, each of which supplies M/g, to columns, each of which demands N/g, along allowed entries.
// It is found by shortest augmenting paths.
template <class Block>
class Flow {
  public:
    HYSTAR_DEVICE Flow(Block& block, const Problem& problem, int* words)
        : block_(block), problem_(problem), flow_(problem.plan()), demand_(words),
          reached_from_(words + problem.m), gives_up_(words + 2 * problem.m), order_(words + 2 * problem.m + problem.n),
          box_(words + 2 * (problem.m + problem.n)), scratch_(reinterpret_cast<float*>(box_ + 2)) {}

    HYSTAR_DEVICE bool saturates() {
        block_.sync();
        for (long long e = block_.thread(); e < problem_.size(); e += Block::THREADS) flow_[e] = 0;
        for (int j = block_.thread(); j < problem_.m; j += Block::THREADS) demand_[j] = problem_.n / problem_.divisor;
        for (int start = 0; start < problem_.n; ++start) {
            for (int supply = problem_.m / problem_.divisor; supply > 0;) {
                const int end = search(start);
                if (end < 0) return false;
                if (block_.thread() == 0) box_[0] = augment(start, end, supply);
                block_.sync();
                supply -= box_[0];
            }
        }
        return true;
    }

  private:
    // Returns the first column with demand left that a path from `start` reaches, or -1.
    HYSTAR_DEVICE int search(int start) {
        for (int j = block_.thread(); j < problem_.m; j += Block::THREADS) reached_from_[j] = -1;
        for (int i = block_.thread(); i < problem_.n; i += Block::THREADS) gives_up_[i] = i == start ? problem_.m : -1;
        if (block_.thread() == 0) order_[0] = start;
        block_.sync();
        for (int from = 0, to = 1; from < to;) {
            int end = problem_.m;
            for (int j = block_.thread(); j < problem_.m; j += Block::THREADS) {
                for (int r = from; r < to && reached_from_[j] < 0; ++r)
                    if (problem_.allowed_cost(order_[r], j) != INFINITY) reached_from_[j] = order_[r];
                if (reached_from_[j] >= 0 && demand_[j] > 0 && j < end) end = j;
            }
            end = -static_cast<int>(reduce_block<Max>(block_, -static_cast<float>(end), scratch_));
            if (end < problem_.m) return end;
            for (int i = block_.thread(); i < problem_.n; i += Block::THREADS)
                for (int j = 0; j < problem_.m && gives_up_[i] < 0; ++j)
                    if (reached_from_[j] >= 0 && flow_[problem_.at(i, j)] > 0) gives_up_[i] = j;
            block_.sync();
            if (block_.thread() == 0) box_[1] = extend(to);
            block_.sync();
            from = to;
            to = box_[1];
        }
        return -1;
    }

    // Appends the rows that were reached in this step to the order of search, and returns its new length.
    HYSTAR_DEVICE int extend(int to) {
        const int known = to;
        for (int i = 0; i < problem_.n; ++i) {
            bool listed = gives_up_[i] < 0;
            for (int r = 0; r < known && !listed; ++r) listed = order_[r] == i;
            if (!listed) order_[to++] = i;
        }
        return to;
    }

    // Sends as much as possible along the path from `start` to the column `end`, and returns the amount.
    HYSTAR_DEVICE int augment(int start, int end, int supply) {
        int amount = demand_[end] < supply ? demand_[end] : supply;
        for (int i = reached_from_[end]; i != start; i = reached_from_[gives_up_[i]]) {
            const float held = flow_[problem_.at(i, gives_up_[i])];
            amount = held < amount ? static_cast<int>(held) : amount;
        }
        demand_[end] -= amount;
        for (int j = end;;) {
            const int i = reached_from_[j];
            flow_[problem_.at(i, j)] += static_cast<float>(amount);
            if (i == start) return amount;
            j = gives_up_[i];
            flow_[problem_.at(i, j)] -= static_cast<float>(amount);
        }
    }

    Block& block_;
    const Problem& problem_;
    float* flow_;        // [N, M], whole numbers
    int* demand_;        // the demand that a column has left
    int* reached_from_;  // the row from which a column was reached; -1: not reached
    int* gives_up_;      // the column through which a row was reached, and from which it can take flow; -1: not reached
    int* order_;         // the rows that were reached, in the order of the search
    int* box_;           // two words that one thread passes to all
    float* scratch_;     // one float for each warp
};

// Replaces the plan by zeros, and the status by INFEASIBLE, if no plan exists. `words` has feasibility_words(N, M)
// ints.
template <class Block>
HYSTAR_DEVICE void check_feasibility(Block& block, const Problem& problem, int* words) {
    if (degrees_suffice(block, problem, reinterpret_cast<float*>(words))) return;
    if (!Flow<Block>(block, problem, words).saturates()) return write_without_plan(block, problem, INFEASIBLE);
    for (long long e = block.thread(); e < problem.size(); e += Block::THREADS) {
        const int i = static_cast<int>(e / problem.m), j = static_cast<int>(e % problem.m);
        const float cost = problem.allowed_cost(i, j);
        const float gap = (problem.u()[i] - cost) + problem.v()[j];
        problem.plan()[e] = cost == INFINITY ? 0.0f : power_of_two(gap * problem.scale);
    }
}

}  // namespace hystar_fast
