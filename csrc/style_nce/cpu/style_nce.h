// StyleNCE on the CPU: the declarations that its source files share. The inner loops are compiled once for each
// instruction set (kernels_per_isa.cpp, from kernels.h) and called through a table, Kernels.
#pragma once

#include <cstdint>

#include "sinkhorn/cpu/sinkhorn.h"

namespace hystar_fast::style_nce {

// The loops over rows. Matrices, n x n or with rows of d, are contiguous unless a stride is given.
template <typename T>
struct Kernels {
    // y = x / |x|; returns |x|. For a zero row y is 0 and the result +inf; for a row with NaN or inf y is 0 and the
    // result -inf
    T (*unit)(const T* x, std::int64_t d, T* y);
    // sim_ij = <q_i, t_j> for rows [begin, end)
    void (*similarity)(const T* q, const T* t, std::int64_t n, std::int64_t d, std::int64_t begin, std::int64_t end, T* sim);
    // One row of the cost: +inf on the diagonal (column `own`), where the mask is set, and where excluded_j is +inf.
    // With UNIFORM weights: 1 where the cost would be finite, and 0 elsewhere. `out` may be `sim`. Returns the number
    // of finite costs
    std::int64_t (*cost)(const T* sim, const std::uint8_t* mask, const T* excluded, std::int64_t own, std::int64_t n, T lam,
                         Weights weights, T* out);
    // out = softmax(-cost / epsilon), or zeros if every cost is +inf
    void (*softmax)(const T* cost, std::int64_t n, T epsilon, T* out);
    // With z_j = (sim_j - sim_own) / temperature + log weight_j and `top` the largest z: replaces weight_j by exp(z_j -
    // top) and returns the sum of these; logsumexp z is top plus its logarithm. Returns 0 for a row without weight
    T (*exponentials)(const T* sim, std::int64_t own, std::int64_t n, T temperature, T* weight, T* top);
    // values *= factor
    void (*scale)(T* values, std::int64_t count, T factor);
    // out_i = sum_k a(i, k) b_k for the rows [begin, end) of out, [., d]; a(i, k) is at a + i * row + k * step
    void (*product)(const T* a, std::int64_t row, std::int64_t step, std::int64_t begin, std::int64_t end, std::int64_t count,
                    const T* b, std::int64_t d, T* out);
    // dy = factor * (dy - y <y, dy>) / length
    void (*project)(T* dy, const T* y, std::int64_t d, T factor, T length);
};
HYSTAR_KERNELS_PER_ISA

template <typename T>
struct Rows {
    const T* data;
    std::int64_t stride;
};

template <typename T>
struct Forward {
    Rows<T> query, target;     // [n, d], rows contiguous
    const std::uint8_t* mask;  // [n, n] or null
    std::int64_t n, d;
    double temperature, gamma, lam, epsilon;  // gamma 0 means "auto"
    std::int64_t n_iter;
    Weights weights;
    T* loss;     // [n], or one number if `mean`
    bool mean;
    T* slope;    // [n, n]: p_ij off the diagonal, p_ii - 1 on it; only scratch memory if keep_slope is false
    bool keep_slope;
    T* units;    // [2, n, d]
    T* lengths;  // [2, n], as Kernels::unit returns them
    T* sim;      // [n, n], the product of the unit rows; null: it is computed here
};

template <typename T>
struct Backward {
    const T* dloss;             // of row i at i * dloss_stride
    std::int64_t dloss_stride;  // 0: all rows share one number
    const T* slope;
    const T* units;
    const T* lengths;
    std::int64_t n, d;
    double scale;               // a factor of both gradients
    T *dquery, *dtarget;        // [n, d] or null
};

// Computes the unit rows and their lengths.
template <typename T>
void normalise(const Kernels<T>&, const Forward<T>&, int threads);
// Computes the loss and the slope, from the unit rows; if sim is null, the unit rows and their lengths too.
template <typename T>
void forward(const Kernels<T>&, const sinkhorn::Kernels<T>&, const Forward<T>&, int threads);
// Computes the gradients of both inputs: the two products and their projections.
template <typename T>
void backward(const Kernels<T>&, const Backward<T>&, int threads);
// Projects dy [n, d], a product that was computed elsewhere, and multiplies it by factor.
template <typename T>
void project(const Kernels<T>&, T* dy, const T* units, const T* lengths, std::int64_t n, std::int64_t d, T factor, int threads);

}  // namespace hystar_fast::style_nce
