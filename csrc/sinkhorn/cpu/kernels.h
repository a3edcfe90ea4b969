// The loops of the CPU Sinkhorn for any vector width; Kernels in sinkhorn.h says what each of them computes.
// Computes: one iteration is one sweep over A = exp(K + u + v): x = 1 / (A y) for a block of rows, and then A^T x while
// those rows are still in the first-level cache.
// Memory traffic: A once an iteration.
// Numerics: the type of the cost throughout; exp and log are exact to about one ulp; sums in vector lanes.
#pragma once

#include <cmath>

#include "cpu/vector.h"
#include "sinkhorn/cpu/sinkhorn.h"

namespace hystar_fast::sinkhorn {
namespace {

using namespace cpu;

// One row of K = (shift - cost) / epsilon, a vector at a time: -inf where forbidden and in the padding.
template <typename T>
struct KernelRow {
    const T* cost;
    const std::uint8_t* mask;
    std::int64_t m;
    T shift, reciprocal, remainder;  // 1 / epsilon in two parts

    HYSTAR_INLINE KernelRow(const Cost<T>& c, std::int64_t i, T row_shift)
        : cost(c.cost + i * c.m), mask(c.mask ? c.mask + i * c.m : nullptr), m(c.m), shift(row_shift), reciprocal(1 / c.epsilon),
          remainder(std::fma(-reciprocal, c.epsilon, T(1)) * reciprocal) {}

    // +inf where forbidden and in the padding
    HYSTAR_INLINE V<T> raw(std::int64_t j) const {
        V<T> value = load_part<T>(cost + j, m - j, kInfinity<T>);
        if (mask) value = bytes_part<T>(mask + j, m - j) != 0 ? all<T>(kInfinity<T>) : value;
        return value;
    }
    // (shift - value) / epsilon; -inf or NaN where forbidden
    HYSTAR_INLINE V<T> scaled(V<T> value) const {
        const V<T> difference = shift - value;
        return difference * reciprocal + difference * remainder;
    }
    HYSTAR_INLINE V<T> operator[](std::int64_t j) const {
        const V<T> value = raw(j);
        const V<T> k = larger<T>(scaled(value), all<T>(Vector<T>::kFloor));
        return value == kInfinity<T> ? -all<T>(kInfinity<T>) : k;
    }
};

// The RowFlags of a row that has entries that are not finite.
template <typename T>
unsigned row_flags(const KernelRow<T>& row) {
    typename Vector<T>::I forbidden{}, invalid{};
    bool forbidden_at_the_end = false;  // of the last, partial vector: its padding does not count
    for (std::int64_t j = 0; j < row.m; j += kLanes<T>) {
        const V<T> value = row.raw(j);
        invalid |= (value != value) | (value == -kInfinity<T>);
        if (j + kLanes<T> <= row.m) {
            forbidden |= value == kInfinity<T>;
        } else {
            for (std::int64_t t = j; t < row.m; ++t) forbidden_at_the_end |= value[t - j] == kInfinity<T>;
        }
    }
    return (any<T>(forbidden) || forbidden_at_the_end ? kHasForbidden : 0u) | (any<T>(invalid) ? kHasInvalid : 0u);
}

template <typename T>
unsigned prepare(const Cost<T>& c, std::int64_t begin, std::int64_t end, T* shift) {
    unsigned flags = 0;
    for (std::int64_t i = begin; i < end; ++i) {
        const KernelRow<T> row(c, i, T(0));
        V<T> low = all<T>(kInfinity<T>), total{};
        std::int64_t j = 0;
        for (; j + kLanes<T> <= c.m; j += kLanes<T>) {
            const V<T> value = row.raw(j);
            low = smaller<T>(value, low);
            total += value;
        }
        if (j < c.m) {
            const V<T> value = row.raw(j);
            low = smaller<T>(value, low);
            for (std::int64_t t = j; t < c.m; ++t) total[0] += value[t - j];
        }
        shift[i] = -largest<T>(-low);
        const T check = sum<T>(total);  // finite only if every entry is
        if (!(check - check == 0)) flags |= row_flags(row);
        if (shift[i] == kInfinity<T>) flags |= kHasEmptyRow;
    }
    return flags;
}

template <typename T>
void exp_rows(const Cost<T>& c, std::int64_t begin, std::int64_t end, const T* u, const T* v, T* a, std::int64_t ld) {
    for (std::int64_t i = begin; i < end; ++i) {
        const KernelRow<T> row(c, i, c.shift[i]);
        for (std::int64_t j = 0; j < c.m; j += kLanes<T>)
            // without potentials the floor and the test for forbidden entries are not needed: exp gives zero for both
            store(a + i * ld + j, exponential<T>(u ? (row[j] + u[i]) + load(v + j) : row.scaled(row.raw(j))));
    }
}

template <typename T>
void lse_rows(const Cost<T>& c, std::int64_t begin, std::int64_t end, const T* v, T* u) {
    for (std::int64_t i = begin; i < end; ++i) {
        const KernelRow<T> row(c, i, c.shift[i]);
        V<T> high = -all<T>(kInfinity<T>), total{};
        for (std::int64_t j = 0; j < c.m; j += kLanes<T>) high = larger<T>(high, row[j] + load(v + j));
        const T top = largest<T>(high);
        for (std::int64_t j = 0; j < c.m; j += kLanes<T>) total += exponential<T>((row[j] + load(v + j)) - top);
        u[i] = -(top + logarithm<T>(all<T>(sum<T>(total)))[0]);
    }
}

template <typename T>
void lse_columns(const Cost<T>& c, std::int64_t begin, std::int64_t end, const T* u, T* high, T* sum) {
    for (std::int64_t j = 0; j < c.m; j += kLanes<T>) {
        store(high + j, -all<T>(kInfinity<T>));
        store(sum + j, V<T>{});
    }
    for (std::int64_t i = begin; i < end; ++i) {
        const KernelRow<T> row(c, i, c.shift[i]);
        for (std::int64_t j = 0; j < c.m; j += kLanes<T>) store(high + j, larger<T>(load(high + j), row[j] + u[i]));
    }
    for (std::int64_t i = begin; i < end; ++i) {
        const KernelRow<T> row(c, i, c.shift[i]);
        for (std::int64_t j = 0; j < c.m; j += kLanes<T>) {
            const V<T> top = load(high + j), entry = row[j] + u[i];
            store(sum + j, load(sum + j) + (entry > -kInfinity<T> ? exponential<T>(entry - top) : V<T>{}));
        }
    }
}

// t += rows^T s
template <typename T, int R>
HYSTAR_INLINE void add_rows(const T* rows, std::int64_t ld, const T* s, T* t) {
    for (std::int64_t j = 0; j < ld; j += kLanes<T>) {
        V<T> total = load(t + j);
        for (int r = 0; r < R; ++r) total += load(rows + r * ld + j) * s[r];
        store(t + j, total);
    }
}

// For the rows i: s = A p, h = op(i, s), t += A^T h. Works on blocks of four rows. The second product of a block runs
// in one loop with the first product of the next block: one loads from the first-level cache while the other waits for
// the second-level cache.
template <typename T, typename Op>
HYSTAR_INLINE void sweep(const T* a, std::int64_t ld, std::int64_t begin, std::int64_t end, const T* p, T* h, T* t,
                         const Op& op) {
    constexpr int R = 4, P = kLanes<T> < R ? kLanes<T> : R;
    T s[R] = {};
    std::int64_t i = begin, back = 0;  // the block before begins `back` entries earlier; before the first block, s = 0
    for (; i + R <= end; i += R, back = R * ld) {
        const T* rows[R];
        for (int r = 0; r < R; ++r) rows[r] = a + (i + r) * ld;
        V<T> dot[R] = {};
        for (std::int64_t j = 0; j < ld; j += kLanes<T>) {
            const V<T> weight = load(p + j);
            V<T> total = load(t + j);
            for (int r = 0; r < R; ++r) {
                dot[r] += load(rows[r] + j) * weight;
                total += load(rows[r] + j - back) * s[r];
            }
            store(t + j, total);
        }
        for (int r = 0; r < R; r += P) {
            V<T> part[P];
            for (int k = 0; k < P; ++k) part[k] = dot[r + k];
            lane_sums<T, P>(part, s + r);
        }
        for (int r = 0; r < R; ++r) s[r] = op(i + r, s[r]);
        std::memcpy(h + i, s, sizeof(s));
    }
    if (i > begin) add_rows<T, R>(a + (i - R) * ld, ld, s, t);
    for (; i < end; ++i) {
        V<T> dot{};
        for (std::int64_t j = 0; j < ld; j += kLanes<T>) dot += load(a + i * ld + j) * load(p + j);
        h[i] = op(i, sum<T>(dot));
        add_rows<T, 1>(a + i * ld, ld, h + i, t);
    }
}

// Returns true if all values are in [1/bound, bound]. NaN is outside.
template <typename T>
bool within(const T* values, std::int64_t begin, std::int64_t end, T bound) {
    const V<T> low = all<T>(1 / bound), high = all<T>(bound);
    typename Vector<T>::I outside{};
    for (std::int64_t i = begin; i < end; i += kLanes<T>) {
        const V<T> value = load_part<T>(values + i, end - i, T(1));
        outside |= ~((value >= low) & (value <= high));
    }
    return !any<T>(outside);
}

template <typename T>
bool scale_rows(const T* a, std::int64_t ld, std::int64_t begin, std::int64_t end, const T* y, T* x, T* t, T bound) {
    sweep(a, ld, begin, end, y, x, t, [](std::int64_t, T s) { return 1 / s; });
    return within(x, begin, end, bound);
}

template <typename T>
bool scale_columns(const T* t, T target, std::int64_t begin, std::int64_t end, T* y, T bound) {
    for (std::int64_t j = begin; j < end; ++j) y[j] = target / t[j];
    return within(y, begin, end, bound);
}

template <typename T>
void add_log(const T* base, const T* x, std::int64_t count, T* out) {
    for (std::int64_t i = 0; i < count; i += kLanes<T>) {
        const std::int64_t left = count - i;
        const V<T> value = load_part<T>(base + i, left, T(0)) + logarithm<T>(load_part<T>(x + i, left, T(1)));
        store_part<T>(out + i, value, left);
    }
}

template <typename T>
void write_plan(const T* a, std::int64_t ld, std::int64_t begin, std::int64_t end, std::int64_t m, const T* x, const T* y,
                T* plan, T* rows, T* columns) {
    for (std::int64_t i = begin; i < end; ++i) {
        V<T> total{};
        for (std::int64_t j = 0; j < m; j += kLanes<T>) {
            const V<T> entry = load(a + i * ld + j) * x[i] * load(y + j);
            total += entry;
            store(columns + j, load(columns + j) + entry);
            store_part<T>(plan + i * m + j, entry, m - j);
        }
        rows[i] = sum<T>(total);
    }
}

template <typename T>
bool exp_difference(const T* value, const T* base, std::int64_t count, T* out, T bound) {
    for (std::int64_t i = 0; i < count; i += kLanes<T>) {
        const std::int64_t left = count - i;
        const V<T> difference = load_part<T>(value + i, left, T(0)) - load_part<T>(base + i, left, T(0));
        store_part<T>(out + i, exponential<T>(difference), left);
    }
    return within(out, 0, count, bound);
}

template <typename T>
void weigh(const T* a, std::int64_t ld, std::int64_t begin, std::int64_t end, std::int64_t m, const T* g, T* w, T* columns) {
    for (std::int64_t i = begin; i < end; ++i) {
        V<T> total{};
        for (std::int64_t j = 0; j < m; j += kLanes<T>) {
            const V<T> entry = load(a + i * ld + j) * load_part<T>(g + i * m + j, m - j, T(0));
            total += entry;
            store(columns + j, load(columns + j) + entry);
        }
        w[i] = sum<T>(total);
    }
}

template <typename T>
void adjoint_rows(const T* a, std::int64_t ld, std::int64_t begin, std::int64_t end, const T* p, const T* start,
                  const T* factor, const T* scale, T* h, T* t) {
    sweep(a, ld, begin, end, p, h, t, [=](std::int64_t i, T s) { return scale[i] * (start[i] + factor[i] * s); });
}

// R rows and C vectors of columns of out (+)= coefficient * A * (start - left^T right). The outer products are summed
// in registers.
template <typename T, int R, int C>
HYSTAR_INLINE void outer_block(const T* a, std::int64_t ld, std::int64_t i, std::int64_t j, std::int64_t m, const T* left,
                               std::int64_t left_stride, const T* right, std::int64_t right_stride, std::int64_t count,
                               const T* start, T coefficient, T* out, bool accumulate) {
    V<T> product[R][C] = {};
    for (std::int64_t k = 0; k < count; ++k) {
        V<T> weights[C];
        for (int c = 0; c < C; ++c) weights[c] = load(right + k * right_stride + j + c * kLanes<T>);
        for (int r = 0; r < R; ++r)
            for (int c = 0; c < C; ++c) product[r][c] += weights[c] * left[k * left_stride + i + r];
    }
    for (int r = 0; r < R; ++r)
        for (int c = 0; c < C; ++c) {
            const std::int64_t column = j + c * kLanes<T>, offset = (i + r) * m + column, width = m - column;
            V<T> value = -product[r][c];
            if (start) value += load_part<T>(start + offset, width, T(0));
            value = value * load(a + (i + r) * ld + column) * coefficient;
            if (accumulate) value += load_part<T>(out + offset, width, T(0));
            store_part<T>(out + offset, value, width);
        }
}

template <typename T>
void subtract_outer(const T* a, std::int64_t ld, std::int64_t begin, std::int64_t end, std::int64_t m, const T* left,
                    std::int64_t left_stride, const T* right, std::int64_t right_stride, std::int64_t count, const T* start,
                    T coefficient, T* out, bool accumulate) {
    constexpr int R = 4, C = HYSTAR_VECTOR_BYTES >= 64 ? 3 : 2;
    std::int64_t j = 0;
    const auto columns = [&](auto width) {
        constexpr int W = decltype(width)::value;
        std::int64_t i = begin;
        for (; i + R <= end; i += R)
            outer_block<T, R, W>(a, ld, i, j, m, left, left_stride, right, right_stride, count, start, coefficient, out, accumulate);
        for (; i < end; ++i)
            outer_block<T, 1, W>(a, ld, i, j, m, left, left_stride, right, right_stride, count, start, coefficient, out, accumulate);
        j += W * kLanes<T>;
    };
    while (j + C * kLanes<T> <= ld) columns(Constant<C>{});
    while (j < ld) columns(Constant<1>{});
}

template <typename T>
constexpr Kernels<T> kKernels = {kLanes<T>,       prepare<T>,  exp_rows<T>,   lse_rows<T>,   lse_columns<T>,
                                 scale_rows<T>,   scale_columns<T>, add_log<T>, write_plan<T>, exp_difference<T>,
                                 weigh<T>,        adjoint_rows<T>, subtract_outer<T>};

}  // namespace
}  // namespace hystar_fast::sinkhorn
