// StyleNCE on the CPU: what its translation units share. The kernels are built once an instruction set
// (style_nce_cpu_baseline / _avx2 / _avx512.cpp from style_nce_cpu_kernels.h) and picked at run time through a table.
#pragma once

#include "sinkhorn_cpu.h"

#include <cstdint>

namespace hystar_fast::style_nce {

enum Weights { kPaper = 0, kAuthors = 1, kUniform = 2 };

// The loops over rows. Matrices are contiguous, n x n or rows of d, unless a stride is given.
template <typename T>
struct Kernels {
    // y = x / |x|; returns |x|, or +inf for a zero row and -inf for one with NaN or inf: both have y = 0
    T (*unit)(const T* x, std::int64_t d, T* y);
    // sim_ij = <q_i, t_j> for rows [begin, end)
    void (*similarity)(const T* q, const T* t, std::int64_t n, std::int64_t d, std::int64_t begin, std::int64_t end, T* sim);
    // One row of the cost, +inf where mask is set or barred_j is +inf (else 0); for kUniform 1 where it would be
    // finite and 0 elsewhere. sim may be out. Returns how many are finite; the diagonal, at `own`, never is.
    std::int64_t (*cost)(const T* sim, const std::uint8_t* mask, const T* barred, std::int64_t own, std::int64_t n, T lam,
                         Weights weights, T* out);
    // out = softmax(-cost / epsilon); zeros for a row of +inf
    void (*softmax)(const T* cost, std::int64_t n, T epsilon, T* out);
    // With z_j = (sim_j - sim_own) / temperature + log weight_j: weight_j becomes exp(z_j - top), `top` the largest z.
    // Returns logsumexp z less top, as the sum whose logarithm it is; 0 for a row without weight.
    T (*exponentials)(const T* sim, std::int64_t own, std::int64_t n, T temperature, T* weight, T* top);
    void (*scale)(T* values, std::int64_t count, T factor);
    // out_i = sum_k a(i, k) b_k for rows [begin, end) of out, [., d]; a(i, k) stands at a + i * row + k * step
    void (*product)(const T* a, std::int64_t row, std::int64_t step, std::int64_t begin, std::int64_t end, std::int64_t count,
                    const T* b, std::int64_t d, T* out);
    // dy becomes factor * (dy - y <y, dy>) / length
    void (*project)(T* dy, const T* y, std::int64_t d, T factor, T length);
};

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
    double temperature, gamma, lam, epsilon;  // gamma 0: "auto"
    std::int64_t n_iter;
    Weights weights;
    T* loss;     // [n], or with `mean` one number
    bool mean;
    T* slope;    // [n, n]: p_ij off the diagonal, p_ii - 1 on it; with keep_slope false only worked in
    bool keep_slope;
    T* units;    // [2, n, d]
    T* lengths;  // [2, n], as Kernels::unit returns them
    T* sim;      // [n, n], what the GEMM of the units gave; null to compute it here
};

template <typename T>
struct Backward {
    const T* dloss;             // at i * dloss_stride, for row i
    std::int64_t dloss_stride;  // 0 where all rows share one
    const T* slope;
    const T* units;
    const T* lengths;
    std::int64_t n, d;
    double scale;               // of both gradients
    T *dquery, *dtarget;        // [n, d] or null
};

// The unit rows and their lengths alone.
template <typename T>
void normalise(const Kernels<T>&, const Forward<T>&, int threads);
// Everything else; the units and lengths too where sim is null.
template <typename T>
void forward(const Kernels<T>&, const sinkhorn::Kernels<T>&, const Forward<T>&, int threads);
// Both products and projections.
template <typename T>
void backward(const Kernels<T>&, const Backward<T>&, int threads);
// The projection of a product that is in dy [n, d] already, times factor.
template <typename T>
void project(const Kernels<T>&, T* dy, const T* units, const T* lengths, std::int64_t n, std::int64_t d, T factor, int threads);

template <typename T>
const Kernels<T>& baseline_kernels();
#if defined(__x86_64__)
template <typename T>
const Kernels<T>& avx2_kernels();
template <typename T>
const Kernels<T>& avx512_kernels();
#endif

}  // namespace hystar_fast::style_nce
