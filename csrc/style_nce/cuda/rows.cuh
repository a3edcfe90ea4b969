// Computes: StyleNCE around its plan: unit rows, the cost of the cosines, loss and slope from the plan, projection.
// Grid: a warp a row of the N x N matrices, a block a row of the embeddings.
// Memory traffic: N x N: sim read and cost written; plan and sim read, slope written over the plan, read and written.
// Numerics: as in hystar_fast/ref/style_nce.py, every logarithm of base 2, and exp of nothing that is positive. The
//   products between these steps are the caller's, the plan is the Sinkhorn's.
//
// Block algorithms as in sinkhorn/cuda/problem.cuh: what runs on the GPU is what tests/support/cuda_host executes.
#pragma once

#include "sinkhorn/cuda/problem.cuh"

namespace hystar_fast::style_nce_cuda {

constexpr float LN2_FLOAT = static_cast<float>(LN2), LOG2E_FLOAT = static_cast<float>(1 / LN2);

struct Job {
    const float* sim;      // [N, N]
    const float* lengths;  // [2, N], as `unit` writes them
    const uint8_t* mask;   // [N, N], nonzero is no negative; null: none
    float* slope;          // [N, N], the plan before
    float* loss;           // [N], or with `mean` one number
    int n;
    bool mean;
    Weights weights;
    float gamma;           // 0: "auto"
    float per_lam;         // 1 / lam
    float per_temperature; // 1 / (temperature ln 2)
    float per_entropy;     // 1 / (entropy of the plan times ln 2)
    float *cost, *losses;  // [N, N], [N]
    float* count;          // [N], admissible negatives
    int *status, *arrived; // of the plan; blocks that have written their losses

    HYSTAR_DEVICE bool is_barred(int sample) const {
        return lengths[sample] == -INFINITY || lengths[n + sample] == -INFINITY;
    }
    HYSTAR_DEVICE long long at(int row, int column) const { return static_cast<long long>(row) * n + column; }
};

// Where everything lies that is neither given nor returned.
struct Workspace {
    float *cost, *u, *v, *losses, *count, *error;
    int *status, *iterations, *arrived;
    char* sinkhorn;

    static constexpr int64_t words(int64_t n) { return (n * n + 4 * n + 4 + 3) / 4 * 4; }
    Workspace(void* base, int64_t n) {
        cost = static_cast<float*>(base);
        u = cost + n * n;
        v = u + n;
        losses = v + n;
        count = losses + n;
        error = count + n;
        status = reinterpret_cast<int*>(error + 1);
        iterations = status + 1;
        arrived = status + 2;
        sinkhorn = static_cast<char*>(base) + 4 * words(n);
    }
};

inline Job make_job(const float* sim, const float* lengths, const uint8_t* mask, float* slope, float* loss, int n,
                    bool mean, int weights, double temperature, double gamma, double lam, double epsilon,
                    const Workspace& work) {
    const double entropy = weights == PAPER ? epsilon : lam;
    return {sim, lengths, mask, slope, loss, n, mean, static_cast<Weights>(weights), static_cast<float>(gamma),
            static_cast<float>(1 / lam), static_cast<float>(1 / (temperature * LN2)),
            static_cast<float>(fmin(1 / (entropy * LN2), 1e38)), work.cost, mean ? work.losses : loss, work.count, work.status,
            work.arrived};
}

// y = x / |x|; the length is +inf for a zero row and -inf for one with NaN or inf, and y zero. A row whose squares sum to
// something between 1e-24 and 1e24 has lost nothing to overflow or underflow; any other is divided by its peak first.
template <class Block>
HYSTAR_DEVICE void unit(Block& block, const float* x, int d, float* y, float* length, float* scratch) {
    float squares = 0, peak = 1;
    for (int k = block.thread(); k < d; k += Block::THREADS) squares = fmaf(x[k], x[k], squares);
    squares = reduce_block<Sum>(block, squares, scratch);
    if (!(squares >= 1e-24f && squares <= 1e24f)) {
        bool infinite = false;
        peak = squares = 0;
        for (int k = block.thread(); k < d; k += Block::THREADS) {
            infinite |= !(fabsf(x[k]) < INFINITY);
            peak = fmaxf(peak, fabsf(x[k]));
        }
        infinite = block.any(infinite);
        peak = reduce_block<Max>(block, peak, scratch);
        if (infinite || peak == 0) {
            for (int k = block.thread(); k < d; k += Block::THREADS) y[k] = 0;
            if (block.thread() == 0) *length = infinite ? -INFINITY : INFINITY;
            return;
        }
        for (int k = block.thread(); k < d; k += Block::THREADS) squares = fmaf(x[k] / peak, x[k] / peak, squares);
        squares = reduce_block<Sum>(block, squares, scratch);
    }
    const float root = sqrtf(squares), inverse = 1 / root;
    for (int k = block.thread(); k < d; k += Block::THREADS) y[k] = (peak == 1 ? x[k] : x[k] / peak) * inverse;
    if (block.thread() == 0) *length = root * peak;
}

// The cost of this warp's row, +inf where a pair is not admissible, and how many are.
template <class Block>
HYSTAR_DEVICE void cost_row(Block& block, const Job& job, int row) {
    if (row == 0 && block.lane() == 0) *job.arrived = 0;
    if (row >= job.n) return;
    const bool barred = job.is_barred(row);
    float count = 0;
#pragma unroll 4
    for (int j = block.lane(); j < job.n; j += 32) {
        const long long at = job.at(row, j);
        const bool forbidden = barred || j == row || job.is_barred(j) || (job.mask != nullptr && job.mask[at] != 0);
        float cost = job.sim[at] - 1;
        if (job.weights == PAPER) cost = expf(fminf(-cost * job.per_lam, static_cast<float>(MAX_EXPONENT)));
        job.cost[at] = forbidden ? INFINITY : cost;
        count += !forbidden;
    }
    count = reduce_warp<Sum>(block, count);
    if (block.lane() == 0) job.count[row] = count;
}

// log2 of a weight of the row, -inf where it has none: of the plan, or of the softmax of the row's costs, whose largest
// (-least cost) and sum are `peak` and `total`.
struct RowWeights {
    const Job& job;
    bool alone;
    float peak, log_total;

    HYSTAR_DEVICE float operator()(long long at) const {
        if (job.weights != UNIFORM && !alone) {
            const float weight = job.slope[at];
            return weight > 0 ? log2f(weight) : -INFINITY;
        }
        const float cost = job.cost[at];
        if (cost == INFINITY) return -INFINITY;
        return alone ? (-cost - peak) * job.per_entropy - log_total : 0.0f;
    }
};

template <class Block>
HYSTAR_DEVICE RowWeights row_weights(Block& block, const Job& job, int row) {
    const bool alone = job.weights != UNIFORM && *job.status == INFEASIBLE;
    if (!alone) return {job, false, 0, 0};
    float peak = -INFINITY, total = 0;
    for (int j = block.lane(); j < job.n; j += 32) peak = fmaxf(peak, -job.cost[job.at(row, j)]);
    peak = reduce_warp<Max>(block, peak);
    for (int j = block.lane(); j < job.n; j += 32) {
        const float cost = job.cost[job.at(row, j)];
        total += cost == INFINITY ? 0.0f : power_of_two((-cost - peak) * job.per_entropy);
    }
    return {job, true, peak, log2f(reduce_warp<Sum>(block, total))};
}

HYSTAR_DEVICE float softplus(float x) { return fmaxf(x, 0.0f) + log1pf(expf(-fabsf(x))); }

// Loss and slope of this warp's row.
template <class Block>
HYSTAR_DEVICE void loss_row(Block& block, const Job& job, int row) {
    if (row >= job.n) return;
    const RowWeights weight = row_weights(block, job, row);
    const float positive = job.sim[job.at(row, row)], count = fmaxf(job.count[row], 1.0f);
    const float gamma = job.gamma > 0 ? job.gamma : static_cast<float>(AUTO_GAMMA) * count;
    const float strength = logf(job.weights == UNIFORM ? gamma / count : gamma);
    float top = -INFINITY, total = 0;  // of 2^z, z relative to the positive; total is in units of 2^top
#pragma unroll 4
    for (int j = block.lane(); j < job.n; j += 32) {
        const long long at = job.at(row, j);
        const float z = (job.sim[at] - positive) * job.per_temperature + weight(at);
        job.slope[at] = z;
        if (z > -INFINITY) {
            const float ratio = power_of_two(-fabsf(z - top));
            total = z > top ? fmaf(total, ratio, 1.0f) : total + ratio;
            top = fmaxf(z, top);
        }
    }
    const float highest = reduce_warp<Max>(block, top);
    total = reduce_warp<Sum>(block, top > -INFINITY ? total * power_of_two(top - highest) : 0.0f);
    const bool has_negatives = total > 0;
    const float excess = has_negatives ? highest * LN2_FLOAT + logf(total) + strength : -INFINITY;
    const float loss = has_negatives ? softplus(excess) : 0.0f;
    const float offset = (strength - loss) * LOG2E_FLOAT;
#pragma unroll 4
    for (int j = block.lane(); j < job.n; j += 32) {
        const long long at = job.at(row, j);
        const float z = job.slope[at];
        job.slope[at] = j == row ? -expf(excess - loss) : z > -INFINITY ? power_of_two(z + offset) : 0.0f;
    }
    if (block.lane() == 0) job.losses[row] = job.is_barred(row) ? NAN : loss;
}

// What the blocks of loss_row end with: the last of them adds the losses up.
template <class Block>
HYSTAR_DEVICE void mean_of_losses(Block& block, const Job& job, int blocks, float* scratch) {
    if (!job.mean || !block.arrives_last(job.arrived, blocks)) return;
    float total = 0;
    for (int i = block.thread(); i < job.n; i += Block::THREADS) total += job.losses[i];
    total = reduce_block<Sum>(block, total, scratch);
    if (block.thread() == 0) *job.loss = total / static_cast<float>(job.n);
}

struct Projection {
    float *dquery, *dtarget;  // [N, D] or null
    const float* units;       // [2, N, D]
    const float* lengths;     // [2, N]
    const float* dloss;       // at i * dloss_stride, for row i
    int64_t dloss_stride;     // 0 where all rows share one
    int64_t n, d;
    float scale;
};

// Row `index` of the gradients wanted, one after the other: dy becomes factor * (dy - y <y, dy>) / length.
template <class Block>
HYSTAR_DEVICE void project_row(Block& block, const Projection& job, int64_t index, float* scratch) {
    const bool of_query = job.dquery != nullptr && index < job.n;
    const int64_t row = job.dquery != nullptr && !of_query ? index - job.n : index, unit = of_query ? row : job.n + row;
    float* dy = (of_query ? job.dquery : job.dtarget) + row * job.d;
    const float* y = job.units + unit * job.d;
    const float length = job.lengths[unit];
    // the rows that made dtarget have had their own upstream gradients
    const bool scaled = of_query || job.dloss_stride == 0;
    const float factor = scaled ? job.scale * job.dloss[of_query ? row * job.dloss_stride : 0] : job.scale;
    float radial = 0;
    for (int64_t k = block.thread(); k < job.d; k += Block::THREADS) radial = fmaf(dy[k], y[k], radial);
    radial = reduce_block<Sum>(block, radial, scratch);
    const float inverse = factor / length;
    const bool at_once = fabsf(inverse) < INFINITY;  // else the quotient comes last
    for (int64_t k = block.thread(); k < job.d; k += Block::THREADS) {
        const float tangent = dy[k] - y[k] * radial;
        dy[k] = at_once ? tangent * inverse : tangent * factor / length;
    }
}

}  // namespace hystar_fast::style_nce_cuda
