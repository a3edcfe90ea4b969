// The loops of StyleNCE on the CPU for any vector width; Kernels in style_nce.h says what each of them computes.
// Computes: unit rows, cosines, cost, softmax and slope, the two products of the backward and their projections.
// Memory traffic: a small batch stays in the second-level cache; the products keep a tile of sums in registers.
// Numerics: the type of the inputs throughout; exp and log are exact to about one ulp; sums in vector lanes.
#pragma once

#include "cpu/vector.h"
#include "style_nce/cpu/style_nce.h"

namespace hystar_fast::style_nce {
namespace {

using namespace cpu;

constexpr bool kManyRegisters = HYSTAR_VECTOR_BYTES == 64;
template <typename T>
constexpr T kSmallestNormal = std::numeric_limits<T>::min();

// Calls body(j, count) for every vector of [0, length). `count` is the number of its entries that exist: in the last
// vector there may be fewer than lanes.
template <typename T, typename Body>
HYSTAR_INLINE void over(std::int64_t length, const Body& body) {
    std::int64_t j = 0;
    for (; j + kLanes<T> <= length; j += kLanes<T>) body(j, kLanes<T>);
    if (j < length) body(j, length - j);
}

template <typename T>
HYSTAR_INLINE T dot(const T* x, const T* y, std::int64_t d) {
    V<T> total[4] = {};
    std::int64_t k = 0;
    for (; k + 4 * kLanes<T> <= d; k += 4 * kLanes<T>)
        for (int c = 0; c < 4; ++c) total[c] += load(x + k + c * kLanes<T>) * load(y + k + c * kLanes<T>);
    over<T>(d - k, [&](std::int64_t j, std::int64_t count) HYSTAR_ALWAYS_INLINE {
        total[0] += load_part<T>(x + k + j, count, T(0)) * load_part<T>(y + k + j, count, T(0));
    });
    return sum<T>((total[0] + total[1]) + (total[2] + total[3]));
}

template <typename T>
void scale(T* values, std::int64_t length, T factor) {
    over<T>(length, [&](std::int64_t j, std::int64_t count) HYSTAR_ALWAYS_INLINE {
        store_part<T>(values + j, load_part<T>(values + j, count, T(0)) * factor, count);
    });
}

template <typename T>
T unit(const T* x, std::int64_t d, T* y) {
    // a sum of squares between these limits has lost no digits; any other row is divided by its largest value first
    constexpr T low = sizeof(T) == 4 ? T(1e-24) : T(1e-280), high = 1 / low;
    T squares = dot<T>(x, x, d), peak = 1;
    if (!(squares >= low && squares <= high)) {
        bool finite = true;
        peak = 0;
        for (std::int64_t k = 0; k < d; ++k) {
            const T value = x[k] < 0 ? -x[k] : x[k];
            finite &= value < kInfinity<T>;
            peak = value > peak ? value : peak;
        }
        if (!finite || peak == 0) {
            for (std::int64_t k = 0; k < d; ++k) y[k] = 0;
            return finite ? kInfinity<T> : -kInfinity<T>;
        }
        for (std::int64_t k = 0; k < d; ++k) y[k] = x[k] / peak;
        x = y;
        squares = dot<T>(x, x, d);
    }
    const T length = static_cast<T>(__builtin_sqrt(static_cast<double>(squares))), inverse = 1 / length;
    over<T>(d, [&](std::int64_t k, std::int64_t count) HYSTAR_ALWAYS_INLINE {
        store_part<T>(y + k, load_part<T>(x + k, count, T(0)) * inverse, count);
    });
    return length * peak;
}

// R x C cosines: as many sums of products, whose lanes are added together at the end.
template <typename T, int R, int C>
HYSTAR_INLINE void cosine_tile(const T* q, const T* t, std::int64_t n, std::int64_t d, T* sim) {
    constexpr int P = kLanes<T> < R * C ? kLanes<T> : R * C;  // sums whose lanes are added together
    V<T> total[R * C] = {};
    const auto add = [&](auto from) HYSTAR_ALWAYS_INLINE {
        V<T> right[C];
        for (int c = 0; c < C; ++c) right[c] = from(t + c * d);
        for (int r = 0; r < R; ++r) {
            const V<T> left = from(q + r * d);
            for (int c = 0; c < C; ++c) total[r * C + c] += left * right[c];
        }
    };
    std::int64_t k = 0;
    for (; k + kLanes<T> <= d; k += kLanes<T>) add([k](const T* p) HYSTAR_ALWAYS_INLINE { return load(p + k); });
    if (k < d) add([k, d](const T* p) HYSTAR_ALWAYS_INLINE { return load_part<T>(p + k, d - k, T(0)); });
    T sums[R * C];
    if constexpr (2 * P < kLanes<T>) {
        for (int s = 0; s < R * C; ++s) sums[s] = sum<T>(total[s]);
    } else {
        for (int s = 0; s < R * C; s += P) {
            V<T> part[P];
            for (int i = 0; i < P; ++i) part[i] = total[s + i];
            lane_sums<T, P>(part, sums + s);
        }
    }
    for (int r = 0; r < R; ++r)
        for (int c = 0; c < C; ++c) sim[r * n + c] = sums[r * C + c];
}

template <typename T>
void similarity(const T* q, const T* t, std::int64_t n, std::int64_t d, std::int64_t begin, std::int64_t end, T* sim) {
    constexpr int R = 4, C = kManyRegisters ? 4 : 2;
    std::int64_t i = begin;
    const auto rows = [&](auto height) {
        constexpr int H = decltype(height)::value;
        std::int64_t j = 0;
        for (; j + C <= n; j += C) cosine_tile<T, H, C>(q + i * d, t + j * d, n, d, sim + i * n + j);
        for (; j < n; ++j) cosine_tile<T, H, 1>(q + i * d, t + j * d, n, d, sim + i * n + j);
        i += H;
    };
    while (i + R <= end) rows(Constant<R>{});
    while (i < end) rows(Constant<1>{});
}

template <typename T>
HYSTAR_INLINE V<T> forbid(V<T> value, const std::uint8_t* mask, std::int64_t count) {
    return bytes_part<T>(mask, count) != 0 ? all<T>(kInfinity<T>) : value;
}

template <typename T>
std::int64_t cost(const T* sim, const std::uint8_t* mask, const T* excluded, std::int64_t own, std::int64_t n, T lam,
                  Weights weights, T* out) {
    const T inverse = 1 / lam;
    typename Vector<T>::I counted{};
    over<T>(n, [&](std::int64_t j, std::int64_t left) HYSTAR_ALWAYS_INLINE {
        V<T> value{};
        if (weights != UNIFORM) value = load_part<T>(sim + j, left, T(0)) - 1;
        if (weights == PAPER) value = exponential<T>(smaller<T>(-value * inverse, all<T>(T(MAX_EXPONENT))));
        value += load_part<T>(excluded + j, left, kInfinity<T>);
        if (mask) value = forbid<T>(value, mask + j, left);
        if (own >= j && own - j < kLanes<T>) value[own - j] = kInfinity<T>;
        counted -= value < kInfinity<T>;
        if (weights == UNIFORM) value = value < kInfinity<T> ? all<T>(1) : V<T>{};
        store_part<T>(out + j, value, left);
    });
    std::int64_t count = 0;
    for (std::int64_t lane = 0; lane < kLanes<T>; ++lane) count += counted[lane];
    return count;
}

template <typename T>
void softmax(const T* cost, std::int64_t n, T epsilon, T* out) {
    V<T> low = all<T>(kInfinity<T>), total{};
    over<T>(n, [&](std::int64_t j, std::int64_t count) HYSTAR_ALWAYS_INLINE {
        low = smaller<T>(low, load_part<T>(cost + j, count, kInfinity<T>));
    });
    const T least = -largest<T>(-low);
    if (least == kInfinity<T>) {
        for (std::int64_t j = 0; j < n; ++j) out[j] = 0;
        return;
    }
    over<T>(n, [&](std::int64_t j, std::int64_t count) HYSTAR_ALWAYS_INLINE {
        const V<T> value = exponential<T>((least - load_part<T>(cost + j, count, kInfinity<T>)) / epsilon);
        total += value;
        store_part<T>(out + j, value, count);
    });
    scale<T>(out, n, 1 / sum<T>(total));
}

template <typename T>
T exponentials(const T* sim, std::int64_t own, std::int64_t n, T temperature, T* weight, T* top) {
    const T inverse = 1 / temperature, positive = sim[own];
    V<T> high = -all<T>(kInfinity<T>), total{};
    over<T>(n, [&](std::int64_t j, std::int64_t count) HYSTAR_ALWAYS_INLINE {
        const V<T> w = load_part<T>(weight + j, count, T(0));
        const V<T> z = (load_part<T>(sim + j, count, T(0)) - positive) * inverse + logarithm<T>(w);
        const V<T> held = w >= kSmallestNormal<T> ? z : -all<T>(kInfinity<T>);
        high = larger<T>(high, held);
        store_part<T>(weight + j, held, count);
    });
    *top = largest<T>(high);
    if (*top == -kInfinity<T>) {
        for (std::int64_t j = 0; j < n; ++j) weight[j] = 0;
        return 0;
    }
    over<T>(n, [&](std::int64_t j, std::int64_t count) HYSTAR_ALWAYS_INLINE {
        const V<T> e = exponential<T>(load_part<T>(weight + j, count, -kInfinity<T>) - *top);
        total += e;
        store_part<T>(weight + j, e, count);
    });
    return sum<T>(total);
}

// R rows and C vectors of columns of a product, summed in registers. The last vector may have only `left` columns.
template <typename T, int R, int C>
HYSTAR_INLINE void product_tile(const T* a, std::int64_t row, std::int64_t step, std::int64_t count, const T* b, std::int64_t d,
                                std::int64_t left, T* out) {
    V<T> total[R][C] = {};
    for (std::int64_t k = 0; k < count; ++k) {
        V<T> right[C];
        for (int c = 0; c < C; ++c) right[c] = C == 1 ? load_part<T>(b + k * d, left, T(0)) : load(b + k * d + c * kLanes<T>);
        for (int r = 0; r < R; ++r)
            for (int c = 0; c < C; ++c) total[r][c] += right[c] * a[r * row + k * step];
    }
    for (int r = 0; r < R; ++r)
        for (int c = 0; c < C; ++c) {
            if (C == 1) store_part<T>(out + r * d, total[r][c], left);
            else store(out + r * d + c * kLanes<T>, total[r][c]);
        }
}

template <typename T>
void product(const T* a, std::int64_t row, std::int64_t step, std::int64_t begin, std::int64_t end, std::int64_t count,
             const T* b, std::int64_t d, T* out) {
    constexpr int R = kManyRegisters ? 6 : 4, C = kManyRegisters ? 4 : 2;
    std::int64_t j = 0;
    const auto columns = [&](auto width) {
        constexpr int W = decltype(width)::value;
        std::int64_t i = begin;
        for (; i + R <= end; i += R) product_tile<T, R, W>(a + i * row, row, step, count, b + j, d, d - j, out + i * d + j);
        for (; i < end; ++i) product_tile<T, 1, W>(a + i * row, row, step, count, b + j, d, d - j, out + i * d + j);
        j += W * kLanes<T>;
    };
    while (j + C * kLanes<T> <= d) columns(Constant<C>{});
    while (j < d) columns(Constant<1>{});
}

template <typename T>
void project(T* dy, const T* y, std::int64_t d, T factor, T length) {
    const T radial = dot<T>(dy, y, d), inverse = factor / length;
    if (inverse > -kInfinity<T> && inverse < kInfinity<T>) factor = inverse, length = 1;  // otherwise the division comes last
    over<T>(d, [&](std::int64_t k, std::int64_t count) HYSTAR_ALWAYS_INLINE {
        const V<T> tangent = load_part<T>(dy + k, count, T(0)) - load_part<T>(y + k, count, T(0)) * radial;
        store_part<T>(dy + k, length == 1 ? tangent * factor : tangent * factor / length, count);
    });
}

template <typename T>
constexpr Kernels<T> kKernels = {unit<T>,  similarity<T>, cost<T>,    softmax<T>, exponentials<T>,
                                 scale<T>, product<T>,    project<T>};

}  // namespace
}  // namespace hystar_fast::style_nce
