// Sinkhorn on the CPU: what its translation units share. The kernels are built once an instruction set
// (sinkhorn_cpu_baseline / _avx2 / _avx512.cpp from sinkhorn_cpu_kernels.h) and picked at run time through a table.
#pragma once

#include <cstdint>
#include <functional>

namespace hystar_fast::sinkhorn {

// Values of the status column of `info`, as hystar_fast.ref.sinkhorn.SinkhornStatus has them.
enum Status { kConverged = 0, kNotConverged = 1, kInfeasible = 2, kInvalid = 3 };

// One problem's cost, forbidden where +inf or where the mask is set.
template <typename T>
struct Cost {
    const T* cost;             // [n, m] contiguous
    const std::uint8_t* mask;  // [n, m] or null
    std::int64_t n, m;
    T epsilon;
    const T* shift;  // [n] smallest allowed cost of each row: the kernel is (shift_i - cost_ij) / epsilon <= 0
};

enum RowFlags : unsigned { kHasForbidden = 1, kHasInvalid = 2, kHasEmptyRow = 4 };

// The loops over a matrix, for rows [begin, end). Vectors over columns are padded to `lanes` and their padding is
// zero; a matrix A has a padded row stride `ld` and zero padding.
template <typename T>
struct Kernels {
    std::int64_t lanes;
    // shift_i = the smallest allowed cost; returns RowFlags
    unsigned (*prepare)(const Cost<T>&, std::int64_t begin, std::int64_t end, T* shift);
    // A = exp(K + u + v); without u and v (both null) exp(K)
    void (*exp_rows)(const Cost<T>&, std::int64_t begin, std::int64_t end, const T* u, const T* v, T* a, std::int64_t ld);
    // u_i = -logsumexp_j(K_ij + v_j)
    void (*lse_rows)(const Cost<T>&, std::int64_t begin, std::int64_t end, const T* v, T* u);
    // high_j = max_i(K_ij + u_i), sum_j = sum_i exp(K_ij + u_i - high_j); high_j = -inf for an empty column
    void (*lse_columns)(const Cost<T>&, std::int64_t begin, std::int64_t end, const T* u, T* high, T* sum);
    // x_i = 1 / (A y)_i, t += A^T x; false where an x_i leaves [1/bound, bound]
    bool (*scale_rows)(const T* a, std::int64_t ld, std::int64_t begin, std::int64_t end, const T* y, T* x, T* t, T bound);
    // y_j = target / t_j for j in [begin, end); false where a y_j leaves [1/bound, bound]
    bool (*scale_columns)(const T* t, T target, std::int64_t begin, std::int64_t end, T* y, T bound);
    // out_i = base_i + log x_i
    void (*add_log)(const T* base, const T* x, std::int64_t count, T* out);
    // plan_ij = x_i A_ij y_j; rows_i = sum_j plan_ij, columns_j += plan_ij
    void (*write_plan)(const T* a, std::int64_t ld, std::int64_t begin, std::int64_t end, std::int64_t m, const T* x,
                       const T* y, T* plan, T* rows, T* columns);
    // out_i = exp(value_i - base_i); false where one leaves [1/bound, bound]
    bool (*exp_difference)(const T* value, const T* base, std::int64_t count, T* out, T bound);
    // w_i = sum_j A_ij g_ij, columns_j += A_ij g_ij
    void (*weigh)(const T* a, std::int64_t ld, std::int64_t begin, std::int64_t end, std::int64_t m, const T* g, T* w, T* columns);
    // h_i = scale_i * (start_i + factor_i * (A p)_i), t += A^T h
    void (*adjoint_rows)(const T* a, std::int64_t ld, std::int64_t begin, std::int64_t end, const T* p, const T* start,
                         const T* factor, const T* scale, T* h, T* t);
    // out_ij (+)= coefficient * A_ij * (start_ij - sum_k left_k,i right_k,j); start may be null (0)
    void (*subtract_outer)(const T* a, std::int64_t ld, std::int64_t begin, std::int64_t end, std::int64_t m, const T* left,
                           std::int64_t left_stride, const T* right, std::int64_t right_stride, std::int64_t count,
                           const T* start, T coefficient, T* out, bool accumulate);
};

// A batch of problems and where its results go.
template <typename T>
struct Forward {
    const T* cost;                 // [batch, n, m]
    const std::uint8_t* mask;      // [batch, n, m], [n, m] (mask_stride 0) or null
    std::int64_t mask_stride, batch, n, m;
    T epsilon;
    std::int64_t n_iter;
    double tol;                    // stop early at this row error; 0 never
    T* plan;                       // [batch, n, m]
    T* history;                    // [batch, n_iter, m]: v after each iteration; or null
    std::int32_t* info;            // [3, batch]: iterations, largest marginal error (the bits of a float), status
};

// The vector-Jacobian product of all iterations, from the column potentials that the forward pass stored.
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
    const T* grad;  // [batch, n, m], of the plan
    T* dcost;       // [batch, n, m]
};

// The same at the fixed point, from the plan alone.
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

// Whether non-negative entries where allowed(i, j) can have rows of sum 1 and columns of sum n/m (maximum flow).
bool has_plan(std::int64_t n, std::int64_t m, const std::function<bool(std::int64_t, std::int64_t)>& allowed);

template <typename T>
const Kernels<T>& baseline_kernels();
#if defined(__x86_64__)
template <typename T>
const Kernels<T>& avx2_kernels();
template <typename T>
const Kernels<T>& avx512_kernels();
#endif

}  // namespace hystar_fast::sinkhorn
