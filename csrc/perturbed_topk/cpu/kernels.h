// The loop over the samples of the noise for any vector width.
// Computes: for each sample, the positions of the k largest perturbed scores, and how often each was chosen.
// Each call owns: samples of one item of the batch, one after the other, so that a threshold is a guess for the next.
// Memory traffic: the noise once; perturbed scores and counts stay in the first-level cache.
// Numerics: a product and a sum, rounded one after the other, as in the reference; counts are whole numbers.
#pragma once

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include "cpu/vector.h"
#include "perturbed_topk/cpu/perturbed_topk.h"

namespace hystar_fast::perturbed_topk {
namespace {

using namespace cpu;

constexpr int kGuesses = 16;  // thresholds to try before the selection that always ends

// Bit i is set where lane i of the values is at least the threshold.
template <typename T>
HYSTAR_INLINE unsigned reach(V<T> values, V<T> threshold) {
#if HYSTAR_VECTOR_BYTES == 64
    if constexpr (sizeof(T) == 4) return _mm512_cmp_ps_mask((__m512)values, (__m512)threshold, _CMP_GE_OQ);
    else return _mm512_cmp_pd_mask((__m512d)values, (__m512d)threshold, _CMP_GE_OQ);
#elif HYSTAR_VECTOR_BYTES == 32
    if constexpr (sizeof(T) == 4) return static_cast<unsigned>(_mm256_movemask_ps((__m256)(values >= threshold)));
    else return static_cast<unsigned>(_mm256_movemask_pd((__m256d)(values >= threshold)));
#else
    const typename Vector<T>::I reached = values >= threshold;
    unsigned bits = 0;
    for (int lane = 0; lane < kLanes<T>; ++lane) bits |= static_cast<unsigned>(reached[lane] & 1) << lane;
    return bits;
#endif
}

template <typename T>
HYSTAR_INLINE std::int64_t count_reached(const T* x, std::int64_t n, T threshold) {
    const V<T> limit = all<T>(threshold);
#if HYSTAR_VECTOR_BYTES == 16
    typename Vector<T>::I negative{};
    for (std::int64_t j = 0; j < n; j += kLanes<T>) negative += load(x + j) >= limit;
    std::int64_t count = 0;
    for (int lane = 0; lane < kLanes<T>; ++lane) count -= negative[lane];
    return count;
#else
    std::int64_t count = 0;
    for (std::int64_t j = 0; j < n; j += kLanes<T>) count += __builtin_popcount(reach<T>(load(x + j), limit));
    return count;
#endif
}

// Moves the threshold until exactly k entries reach it: by their spacing, then by interpolation between a threshold that
// too many reach and one that too few do. Returns false if that fails, as it does where equal entries stand at the limit.
template <typename T>
HYSTAR_INLINE bool find_threshold(const T* x, std::int64_t n, std::int64_t k, T& threshold, T& spacing) {
    T low = -kInfinity<T>, high = kInfinity<T>, t = threshold, step = spacing;
    std::int64_t at_low = 0, at_high = 0;
    for (int guess = 0; guess < kGuesses; ++guess) {
        const std::int64_t count = count_reached(x, n, t);
        if (count == k) {
            threshold = t;
            return true;
        }
        if (count > k) low = t, at_low = count;
        else high = t, at_high = count;
        if (low > -kInfinity<T> && high < kInfinity<T>) {
            spacing = (high - low) / static_cast<T>(at_low - at_high);
            t = low + spacing * static_cast<T>(at_low - k);
        } else {
            t += step * static_cast<T>(count - k);
            step *= 2;
        }
        if (!(t > low && t < high)) return false;
    }
    return false;
}

template <typename T>
void choose(const Item<T>& item, const float* noise, std::int64_t samples, std::int32_t* chosen, std::int32_t* counts) {
    const std::int64_t n = item.n, k = item.k, padded = (n + kLanes<T> - 1) / kLanes<T> * kLanes<T>;
    T *x = item.perturbed, *work = x + padded;
    T threshold = kInfinity<T>, spacing = 0;
    for (std::int64_t s = 0; s < samples; ++s, noise += n) {
        for (std::int64_t j = 0; j < padded; j += kLanes<T>) {
            V<T> z;
            if constexpr (sizeof(T) == 4) {
                z = load_part<float>(noise + j, n - j, 0.0f);
            } else {
                for (int lane = 0; lane < kLanes<T>; ++lane) z[lane] = j + lane < n ? static_cast<T>(noise[j + lane]) : T(0);
            }
            const V<T> moved = z * item.sigma;
            store(x + j, larger<T>(load(item.scores + j) + moved, load(item.lowest + j)));
        }
        std::int64_t row = 0;
        const auto take = [&](std::int64_t j) HYSTAR_ALWAYS_INLINE {
            if (chosen) chosen[row] = static_cast<std::int32_t>(j);
            ++counts[row++ * n + j];
        };
        if (find_threshold<T>(x, padded, k, threshold, spacing)) {
            for (std::int64_t j = 0; j < n; j += kLanes<T>)
                for (unsigned bits = reach<T>(load(x + j), all<T>(threshold)); bits; bits &= bits - 1)
                    take(j + __builtin_ctz(bits));
        } else {
            for (std::int64_t j = 0; j < n; ++j) work[j] = x[j];
            const T last = kth_largest(work, n, k);
            std::int64_t equal = k;
            for (std::int64_t j = 0; j < n; ++j) equal -= x[j] > last;
            for (std::int64_t j = 0; j < n; ++j)
                if (x[j] > last || (x[j] == last && equal-- > 0)) take(j);
            if (spacing == 0 || !(spacing < kInfinity<T>)) spacing = item.sigma / static_cast<T>(n);
            threshold = last;
        }
        if (chosen) chosen += k;
    }
}

template <typename T>
constexpr Kernels<T> kKernels = {kLanes<T>, choose<T>};

}  // namespace
}  // namespace hystar_fast::perturbed_topk
