// Sinkhorn on the CPU: the declarations that its source files share. The inner loops are compiled once for each
// instruction set (kernels_per_isa.cpp, from kernels.h) and called through a table, Kernels.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "constants.h"
#include "cpu/instruction_sets.h"

namespace hystar_fast::sinkhorn {

// The cost of one problem. An entry is forbidden where the cost is +inf or the mask is set.
template <typename T>
struct Cost {
    const T* cost;             // [n, m] contiguous
    const std::uint8_t* mask;  // [n, m] or null
    std::int64_t n, m;
    T epsilon;
    const T* shift;  // [n], the smallest allowed cost of each row; K_ij = (shift_i - cost_ij) / epsilon <= 0
};

enum RowFlags : unsigned { kHasForbidden = 1, kHasInvalid = 2, kHasEmptyRow = 4 };

// The loops over a matrix, for the rows [begin, end). A vector over columns is padded to a multiple of `lanes`, and its
// padding is zero. The matrix A has a padded row stride, `ld`, and its padding is zero.
template <typename T>
struct Kernels {
    std::int64_t lanes;
    // shift_i = the smallest allowed cost; returns RowFlags
    unsigned (*prepare)(const Cost<T>&, std::int64_t begin, std::int64_t end, T* shift);
    // A = exp(K + u + v), or exp(K) if u and v are null
    void (*exp_rows)(const Cost<T>&, std::int64_t begin, std::int64_t end, const T* u, const T* v, T* a, std::int64_t ld);
    // u_i = -logsumexp_j(K_ij + v_j)
    void (*lse_rows)(const Cost<T>&, std::int64_t begin, std::int64_t end, const T* v, T* u);
    // high_j = max_i(K_ij + u_i), sum_j = sum_i exp(K_ij + u_i - high_j); high_j = -inf for an empty column
    void (*lse_columns)(const Cost<T>&, std::int64_t begin, std::int64_t end, const T* u, T* high, T* sum);
    // x_i = 1 / (A y)_i, t += A^T x; returns false if an x_i is outside [1/bound, bound]
    bool (*scale_rows)(const T* a, std::int64_t ld, std::int64_t begin, std::int64_t end, const T* y, T* x, T* t, T bound);
    // y_j = target / t_j for the columns [begin, end); returns false if a y_j is outside [1/bound, bound]
    bool (*scale_columns)(const T* t, T target, std::int64_t begin, std::int64_t end, T* y, T bound);
    // out_i = base_i + log x_i
    void (*add_log)(const T* base, const T* x, std::int64_t count, T* out);
    // plan_ij = x_i A_ij y_j; rows_i = sum_j plan_ij, columns_j += plan_ij
    void (*write_plan)(const T* a, std::int64_t ld, std::int64_t begin, std::int64_t end, std::int64_t m, const T* x,
                       const T* y, T* plan, T* rows, T* columns);
    // out_i = exp(value_i - base_i); returns false if one is outside [1/bound, bound]
    bool (*exp_difference)(const T* value, const T* base, std::int64_t count, T* out, T bound);
    // w_i = sum_j A_ij g_ij, columns_j += A_ij g_ij
    void (*weigh)(const T* a, std::int64_t ld, std::int64_t begin, std::int64_t end, std::int64_t m, const T* g, T* w, T* columns);
    // h_i = scale_i * (start_i + factor_i * (A p)_i), t += A^T h
    void (*adjoint_rows)(const T* a, std::int64_t ld, std::int64_t begin, std::int64_t end, const T* p, const T* start,
                         const T* factor, const T* scale, T* h, T* t);
    // out_ij (+)= coefficient * A_ij * (start_ij - sum_k left_k,i right_k,j); start may be null, which means 0
    void (*subtract_outer)(const T* a, std::int64_t ld, std::int64_t begin, std::int64_t end, std::int64_t m, const T* left,
                           std::int64_t left_stride, const T* right, std::int64_t right_stride, std::int64_t count,
                           const T* start, T coefficient, T* out, bool accumulate);
};
HYSTAR_KERNELS_PER_ISA

// The forward pass of a batch of problems.
template <typename T>
struct Forward {
    const T* cost;                 // [batch, n, m]
    const std::uint8_t* mask;      // [batch, n, m], [n, m] with mask_stride 0, or null
    std::int64_t mask_stride, batch, n, m;
    T epsilon;
    std::int64_t n_iter;
    double tol;                    // a problem stops early at this row error; 0 means never
    T* plan;                       // [batch, n, m]
    T* history;                    // [batch, n_iter, m], v after each iteration; or null
    std::int32_t* info;            // [3, batch]: iterations, largest marginal error (the bits of a float), Status
};

// The gradient through all iterations, from the column potentials that the forward pass stored.
template <typename T>
struct UnrolledBackward {
    const T* cost;
    const std::uint8_t* mask;
    std::int64_t mask_stride, batch, n, m;
    T epsilon;
    std::int64_t n_iter;
    const T* plan;
    const T* history;
    const std::int32_t* info;
    const T* grad;  // [batch, n, m], the gradient of the plan
    T* dcost;       // [batch, n, m]
};

// The gradient at the fixed point, from the plan alone.
struct ImplicitBackward {
    std::int64_t batch, n, m;
    double epsilon;
    const double* plan;
    const double* grad;
    double* dcost;
};

template <typename T>
void forward(const Kernels<T>&, const Forward<T>&, int threads);
template <typename T>
void unrolled_backward(const Kernels<T>&, const UnrolledBackward<T>&, int threads);
void implicit_backward(const Kernels<double>&, const ImplicitBackward&, int threads);

// Returns true if a non-negative matrix that is zero except where allowed(i, j) can have rows of sum 1 and columns of
// sum n/m. Decided by a maximum flow.
bool has_plan(std::int64_t n, std::int64_t m, const std::function<bool(std::int64_t, std::int64_t)>& allowed);

}  // namespace hystar_fast::sinkhorn
