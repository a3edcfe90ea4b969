// The loop over rows, for any vector width: the compiler turns the loops over columns into vectors.
// Computes: scaled = values * scale, and sums += sum over rows of values * others, in one pass.
// Each call owns: some columns of the rows of one sample.
// Memory traffic: values and others once, scaled once; the sums stay in the first-level cache.
// Numerics: products in float32, rounded once to T, to the nearest even; NaN stays NaN. Sums in float32, first over
// kRows rows and then over those sums, so that the error grows with the square root of the number of tokens at most.
#pragma once

#include <algorithm>
#include <cstring>

#include "svd_linear/cpu/rows.h"

#if defined(__clang__)
#define HYSTAR_NO_CARRIED_DEPENDENCY _Pragma("clang loop vectorize(assume_safety)")
#else
#define HYSTAR_NO_CARRIED_DEPENDENCY _Pragma("GCC ivdep")
#endif

namespace hystar_fast::svd_linear {
namespace {

constexpr std::int64_t kRows = 32, kColumns = 512;

inline float widen(float value) { return value; }
inline float widen(Bfloat16 value) {
    const std::uint32_t bits = static_cast<std::uint32_t>(value.bits) << 16;
    float wide;
    std::memcpy(&wide, &bits, sizeof(wide));
    return wide;
}

inline void narrow(float value, float& to) { to = value; }
inline void narrow(float value, Bfloat16& to) {
    std::uint32_t bits;
    std::memcpy(&bits, &value, sizeof(bits));
    const std::uint32_t rounded = (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
    to.bits = static_cast<std::uint16_t>(value != value ? 0x7fc0u : rounded);
}

template <typename T, bool kSums, bool kScaled>
void columns_pass(const Block<T>& block, std::int64_t first, std::int64_t count) {
    alignas(64) float sums[kColumns], scale[kColumns];
    if (kScaled) std::copy_n(block.scale + first, count, scale);
    for (std::int64_t top = 0; top < block.rows; top += kRows) {
        if (kSums) std::fill_n(sums, count, 0.0f);
        for (std::int64_t row = top; row < std::min(top + kRows, block.rows); ++row) {
            const T* values = block.values + row * block.stride + first;
            const T* others = kSums ? block.others + row * block.stride + first : nullptr;
            T* scaled = kScaled ? block.scaled + row * block.stride + first : nullptr;
            HYSTAR_NO_CARRIED_DEPENDENCY
            for (std::int64_t i = 0; i < count; ++i) {
                const float value = widen(values[i]);
                if constexpr (kSums) sums[i] += value * widen(others[i]);
                if constexpr (kScaled) narrow(value * scale[i], scaled[i]);
            }
        }
        if (kSums)
            for (std::int64_t i = 0; i < count; ++i) block.sums[first + i] += sums[i];
    }
}

template <typename T>
void pass(const Block<T>& block) {
    for (std::int64_t first = 0; first < block.columns; first += kColumns) {
        const std::int64_t count = std::min(kColumns, block.columns - first);
        if (!block.scaled) columns_pass<T, true, false>(block, first, count);
        else if (block.others) columns_pass<T, true, true>(block, first, count);
        else columns_pass<T, false, true>(block, first, count);
    }
}

template <typename T>
constexpr Kernels<T> kKernels{&pass<T>};

}  // namespace
}  // namespace hystar_fast::svd_linear
