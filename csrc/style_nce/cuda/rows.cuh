// Computes: the steps of StyleNCE: unit rows, the cost of the cosines, loss and slope from the plan, projection.
// Grid: one warp for each row of the N x N matrices, one block for each row of the embeddings.
// Memory traffic: of N x N matrices: sim is read and the cost written; plan and sim are read, and the slope is written
//   over the plan, read and written.
// Numerics: as in hystar_fast/ref/style_nce.py, but logarithms have base 2. exp is never called with a positive number.
//   The caller computes the products between these steps, and Sinkhorn the plan.
//
// Block algorithms as in problem.cuh: tests/support/cuda_host executes the source that runs on the GPU.
#pragma once

#include "sinkhorn/cuda/problem.cuh"

namespace hystar_fast::style_nce_cuda {

constexpr float LN2_FLOAT = static_cast<float>(LN2), LOG2E_FLOAT = static_cast<float>(1 / LN2);

struct Job {
    const float* sim;      // [N, N]
    const float* lengths;  // [2, N], as `unit` writes them
    const uint8_t* mask;   // [N, N], nonzero: not a negative; null: all are negatives
    float* slope;          // [N, N], at first the plan
    float* loss;           // [N], or one number if `mean`
    int n;
    bool mean;
    Weights weights;
    float gamma;           // 0 means "auto"
    float per_lam;         // 1 / lam
    float per_temperature; // 1 / (temperature ln 2)
    float per_entropy;     // 1 / (entropy of the plan times ln 2)
    float *cost, *losses;  // [N, N], [N]
    float* count;          // [N], the number of negatives
    int *status, *arrived; // status of the plan; number of blocks that have written their losses

    // Returns true if a sample is not finite, so that it is no negative and its own loss is NaN.
    HYSTAR_DEVICE bool is_excluded(int sample) const {
        return lengths[sample] == -INFINITY || lengths[n + sample] == -INFINITY;
    }
    HYSTAR_DEVICE long long at(int row, int column) const { return static_cast<long long>(row) * n + column; }
};

// The memory of everything that is neither an argument nor a result.
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

// y = x / |x|. For a zero row the length is +inf, for a row with NaN or inf it is -inf, and y is zero. If the sum of
// squares is between 1e-24 and 1e24, no digits were lost; any other row is divided by its largest value first.
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

// Writes the cost of this warp's row, +inf if a pair is not a negative, and the number of negatives.
template <class Block>
HYSTAR_DEVICE void cost_row(Block& block, const Job& job, int row) {
    if (row == 0 && block.lane() == 0) *job.arrived = 0;
    if (row >= job.n) return;
    const bool excluded = job.is_excluded(row);
    float count = 0;
#pragma unroll 4
    for (int j = block.lane(); j < job.n; j += 32) {
        const long long at = job.at(row, j);
        const bool forbidden = excluded || j == row || job.is_excluded(j) || (job.mask != nullptr && job.mask[at] != 0);
        float cost = job.sim[at] - 1;
        if (job.weights == PAPER) cost = expf(fminf(-cost * job.per_lam, static_cast<float>(MAX_EXPONENT)));
        job.cost[at] = forbidden ? INFINITY : cost;
        count += !forbidden;
    }
    count = reduce_warp<Sum>(block, count);
    if (block.lane() == 0) job.count[row] = count;
}

// log2 of a weight of the row, or -inf if it is zero. It is a weight of the plan or, if no plan exists, of the softmax
// of the row's costs; `peak` is the largest value of -cost, and log_total the logarithm of the sum.
struct RowWeights {
    const Job& job;
    bool softmax;
    float peak, log_total;

    HYSTAR_DEVICE float operator()(long long at) const {
        if (job.weights != UNIFORM && !softmax) {
            const float weight = job.slope[at];
            return weight > 0 ? log2f(weight) : -INFINITY;
        }
        const float cost = job.cost[at];
        if (cost == INFINITY) return -INFINITY;
        return softmax ? (-cost - peak) * job.per_entropy - log_total : 0.0f;
    }
};

template <class Block>
HYSTAR_DEVICE RowWeights row_weights(Block& block, const Job& job, int row) {
    const bool softmax = job.weights != UNIFORM && *job.status == INFEASIBLE;
    if (!softmax) return {job, false, 0, 0};
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

// Writes the loss and the slope of this warp's row.
template <class Block>
HYSTAR_DEVICE void loss_row(Block& block, const Job& job, int row) {
    if (row >= job.n) return;
    const RowWeights weight = row_weights(block, job, row);
    const float positive = job.sim[job.at(row, row)], count = fmaxf(job.count[row], 1.0f);
    const float gamma = job.gamma > 0 ? job.gamma : static_cast<float>(AUTO_GAMMA) * count;
    const float strength = logf(job.weights == UNIFORM ? gamma / count : gamma);
    float top = -INFINITY, total = 0;  // the sum of 2^z is total 2^top; z is relative to the positive
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
    if (block.lane() == 0) job.losses[row] = job.is_excluded(row) ? NAN : loss;
}

// The end of the loss kernel: the last block that arrives adds up the losses.
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
    const float* dloss;       // of row i at i * dloss_stride
    int64_t dloss_stride;     // 0: all rows share one number
    int64_t n, d;
    float scale;
};

// dy = factor * (dy - y <y, dy>) / length for row `index` of the gradients: the rows of dquery, and then those of
// dtarget.
template <class Block>
HYSTAR_DEVICE void project_row(Block& block, const Projection& job, int64_t index, float* scratch) {
    const bool of_query = job.dquery != nullptr && index < job.n;
    const int64_t row = job.dquery != nullptr && !of_query ? index - job.n : index, unit = of_query ? row : job.n + row;
    float* dy = (of_query ? job.dquery : job.dtarget) + row * job.d;
    const float* y = job.units + unit * job.d;
    const float length = job.lengths[unit];
    // the rows of query in the product dtarget were multiplied by their upstream gradients before
    const bool scaled = of_query || job.dloss_stride == 0;
    const float factor = scaled ? job.scale * job.dloss[of_query ? row * job.dloss_stride : 0] : job.scale;
    float radial = 0;
    for (int64_t k = block.thread(); k < job.d; k += Block::THREADS) radial = fmaf(dy[k], y[k], radial);
    radial = reduce_block<Sum>(block, radial, scratch);
    const float inverse = factor / length;
    const bool at_once = fabsf(inverse) < INFINITY;  // otherwise the division comes last
    for (int64_t k = block.thread(); k < job.d; k += Block::THREADS) {
        const float tangent = dy[k] - y[k] * radial;
        dy[k] = at_once ? tangent * inverse : tangent * factor / length;
    }
}

}  // namespace hystar_fast::style_nce_cuda
