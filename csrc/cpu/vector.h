// Vectors in the compiler's own vector types, with exp and log that are exact to about one ulp. The flags of the
// compiler decide how wide they are. Everything is in an unnamed namespace: each instruction set must have a copy of
// its own, and never one that the linker shares with another.
#pragma once

#include <cstdint>
#include <cstring>
#include <limits>
#include <utility>

#if defined(__AVX512F__)
#include <immintrin.h>
#define HYSTAR_VECTOR_BYTES 64
#elif defined(__AVX2__)
#define HYSTAR_VECTOR_BYTES 32
#else
#define HYSTAR_VECTOR_BYTES 16  // SSE2 on x86-64, NEON on aarch64
#endif

#define HYSTAR_ALWAYS_INLINE __attribute__((always_inline))  // of a lambda
#define HYSTAR_INLINE inline HYSTAR_ALWAYS_INLINE           // of a function
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wpsabi"
#endif

namespace hystar_fast::cpu {
namespace {

template <int Value>
struct Constant {
    static constexpr int value = Value;
};

template <typename T>
struct Vector;

template <>
struct Vector<float> {
    typedef float V __attribute__((vector_size(HYSTAR_VECTOR_BYTES)));
    typedef std::int32_t I __attribute__((vector_size(HYSTAR_VECTOR_BYTES)));
    typedef float Unaligned __attribute__((vector_size(HYSTAR_VECTOR_BYTES), aligned(4), may_alias));
    using Int = std::int32_t;
    static constexpr int kMantissaBits = 23, kBias = 127;
    static constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it leaves the nearest integer in the low bits
    static constexpr float kLowest = -87.33f, kHighest = 88.0f;
    static constexpr float kLn2High = 0.693359375f, kLn2Low = -2.12194440e-4f;
    static constexpr Int kRootHalfBits = 0x3f3504f3;
    static constexpr int kExpTerms = 7, kLogTerms = 5;
    static constexpr float kFloor = -1e30f;
};

template <>
struct Vector<double> {
    typedef double V __attribute__((vector_size(HYSTAR_VECTOR_BYTES)));
    typedef std::int64_t I __attribute__((vector_size(HYSTAR_VECTOR_BYTES)));
    typedef double Unaligned __attribute__((vector_size(HYSTAR_VECTOR_BYTES), aligned(8), may_alias));
    using Int = std::int64_t;
    static constexpr int kMantissaBits = 52, kBias = 1023;
    static constexpr double kRound = 6755399441055744.0;  // 1.5 * 2^52
    static constexpr double kLowest = -708.0, kHighest = 709.0;
    static constexpr double kLn2High = 0.693147180369123816490, kLn2Low = 1.90821492927058770002e-10;
    static constexpr Int kRootHalfBits = 0x3fe6a09e667f3bcd;
    static constexpr int kExpTerms = 13, kLogTerms = 11;
    static constexpr double kFloor = -1e300;
};

template <typename T>
using V = typename Vector<T>::V;
template <typename T>
constexpr std::int64_t kLanes = HYSTAR_VECTOR_BYTES / static_cast<std::int64_t>(sizeof(T));
template <typename T>
constexpr T kInfinity = std::numeric_limits<T>::infinity();

template <typename T>
HYSTAR_INLINE V<T> all(T value) {
    return value - V<T>{};
}
template <typename T>
HYSTAR_INLINE V<T> load(const T* p) {
    return *reinterpret_cast<const typename Vector<T>::Unaligned*>(p);
}
template <typename T>
HYSTAR_INLINE void store(T* p, V<T> value) {
    *reinterpret_cast<typename Vector<T>::Unaligned*>(p) = value;
}
// Loads the first `count` lanes, and sets the others to `fill`. No memory beyond them is read.
template <typename T>
HYSTAR_INLINE V<T> load_part(const T* p, std::int64_t count, T fill) {
    if (count >= kLanes<T>) return load(p);
    T lanes[kLanes<T>];
    for (std::int64_t i = 0; i < kLanes<T>; ++i) lanes[i] = i < count ? p[i] : fill;
    return load(lanes);
}
template <typename T>
HYSTAR_INLINE void store_part(T* p, V<T> value, std::int64_t count) {
    if (count >= kLanes<T>) return store(p, value);
    T lanes[kLanes<T>];
    store(lanes, value);
    for (std::int64_t i = 0; i < count; ++i) p[i] = lanes[i];
}
// Loads the first `count` bytes as integers, and sets the others to 0. No memory beyond them is read.
template <typename T>
HYSTAR_INLINE typename Vector<T>::I bytes_part(const std::uint8_t* p, std::int64_t count) {
    typename Vector<T>::Int lanes[kLanes<T>] = {};
    if (count >= kLanes<T>)
        for (std::int64_t i = 0; i < kLanes<T>; ++i) lanes[i] = p[i];
    else
        for (std::int64_t i = 0; i < count; ++i) lanes[i] = p[i];
    typename Vector<T>::I value;
    std::memcpy(&value, lanes, sizeof(value));
    return value;
}
// The larger and the smaller of two; b if either is NaN. The intrinsics are for GCC, which makes a comparison and a
// blend of the expression for 64-byte vectors.
template <typename T>
HYSTAR_INLINE V<T> larger(V<T> a, V<T> b) {
#if HYSTAR_VECTOR_BYTES == 64
    if constexpr (sizeof(T) == 4) return (V<T>)_mm512_max_ps((__m512)a, (__m512)b);
    else return (V<T>)_mm512_max_pd((__m512d)a, (__m512d)b);
#else
    return a > b ? a : b;
#endif
}
template <typename T>
HYSTAR_INLINE V<T> smaller(V<T> a, V<T> b) {
#if HYSTAR_VECTOR_BYTES == 64
    if constexpr (sizeof(T) == 4) return (V<T>)_mm512_min_ps((__m512)a, (__m512)b);
    else return (V<T>)_mm512_min_pd((__m512d)a, (__m512d)b);
#else
    return a < b ? a : b;
#endif
}
// Lane i of the result is lane Index(i) of a followed by b.
template <typename T, typename Index, int... I>
HYSTAR_INLINE V<T> shuffle(V<T> a, V<T> b, std::integer_sequence<int, I...>) {
#if defined(__clang__)
    return __builtin_shufflevector(a, b, Index::at(I)...);
#else
    return __builtin_shuffle(a, b, typename Vector<T>::I{Index::at(I)...});
#endif
}
template <typename T, typename Index>
HYSTAR_INLINE V<T> shuffle(V<T> a, V<T> b) {
    return shuffle<T, Index>(a, b, std::make_integer_sequence<int, kLanes<T>>{});
}

template <int Distance>
struct Butterfly {
    static constexpr int at(int i) { return i ^ Distance; }
};
template <typename T, int Distance = kLanes<T> / 2>
HYSTAR_INLINE T largest(V<T> value) {
    const V<T> folded = larger<T>(value, shuffle<T, Butterfly<Distance>>(value, value));
    if constexpr (Distance == 1) return folded[0];
    else return largest<T, Distance / 2>(folded);
}
template <typename T, int Distance = kLanes<T> / 2>
HYSTAR_INLINE T sum(V<T> value) {
    const V<T> folded = value + shuffle<T, Butterfly<Distance>>(value, value);
    if constexpr (Distance == 1) return folded[0];
    else return sum<T, Distance / 2>(folded);
}
template <typename T>
HYSTAR_INLINE bool any(typename Vector<T>::I condition) {
    return largest<T>(condition ? all<T>(1) : V<T>{}) > 0;
}

// Merges two vectors of Groups partial sums each into one vector of 2 * Groups partial sums.
template <int Lanes, int Groups, int Second>
struct Halves {
    static constexpr int at(int i) {
        const int width = Lanes / Groups, half = width / 2, group = i / half;
        return group / Groups * Lanes + group % Groups * width + Second * half + i % half;
    }
};
template <typename T, int Groups>
HYSTAR_INLINE V<T> merge(V<T> a, V<T> b) {
    return shuffle<T, Halves<kLanes<T>, Groups, 0>>(a, b) + shuffle<T, Halves<kLanes<T>, Groups, 1>>(a, b);
}

// Sets every lane to the sum of its group of Width neighbours.
template <typename T, int Width>
HYSTAR_INLINE V<T> group_sums(V<T> value) {
    if constexpr (Width == 1) return value;
    else return group_sums<T, Width / 2>(value + shuffle<T, Butterfly<Width / 2>>(value, value));
}

// The lane sums of Rows vectors. Rows is a power of two, and at most the number of lanes. Merging the vectors takes
// fewer instructions than summing each of them.
template <typename T, int Rows, int Groups = 1>
HYSTAR_INLINE void lane_sums(V<T> (&values)[Rows], T* sums) {
    if constexpr (Rows == 1) {
        const V<T> total = group_sums<T, kLanes<T> / Groups>(values[0]);
        for (int r = 0; r < Groups; ++r) sums[r] = total[r * (kLanes<T> / Groups)];
    } else {
        V<T> merged[Rows / 2];
        for (int r = 0; r < Rows / 2; ++r) merged[r] = merge<T, Groups>(values[2 * r], values[2 * r + 1]);
        lane_sums<T, Rows / 2, 2 * Groups>(merged, sums);
    }
}

// 1/k! as a constant of the type
template <typename T>
constexpr T inverse_factorial(int k) {
    double value = 1;
    for (int i = 2; i <= k; ++i) value /= i;
    return static_cast<T>(value);
}

// e^x. Exactly zero where e^x is below the smallest normal number, and for -inf and NaN; constant above kHighest.
template <typename T>
HYSTAR_INLINE V<T> exponential(V<T> x) {
    using S = Vector<T>;
    const V<T> clamped = smaller<T>(larger<T>(x, all<T>(S::kLowest)), all<T>(S::kHighest));
    const V<T> shifted = clamped * static_cast<T>(1.44269504088896340736) + S::kRound;
    const V<T> whole = shifted - S::kRound;
    const V<T> r = (clamped - whole * S::kLn2High) - whole * S::kLn2Low;
    V<T> series = all<T>(inverse_factorial<T>(S::kExpTerms));
    for (int k = S::kExpTerms - 1; k >= 0; --k) series = series * r + inverse_factorial<T>(k);
    // the low bits of `shifted` hold the integer; the bits of kRound above them are shifted out
    const typename S::I power = ((typename S::I)shifted + S::kBias) << S::kMantissaBits;
    return x >= S::kLowest ? series * (V<T>)power : V<T>{};
}

// log x for positive normal x.
template <typename T>
HYSTAR_INLINE V<T> logarithm(V<T> x) {
    using S = Vector<T>;
    const typename S::I bits = (typename S::I)x;
    const typename S::I exponent = (bits - S::kRootHalfBits) >> S::kMantissaBits;
    const V<T> mantissa = (V<T>)(bits - (exponent << S::kMantissaBits));  // in [sqrt(1/2), sqrt(2))
    const V<T> whole = (V<T>)((typename S::I)all<T>(S::kRound) + exponent) - S::kRound;
    const V<T> ratio = (mantissa - 1) / (mantissa + 1), square = ratio * ratio;
    V<T> series = all<T>(static_cast<T>(1.0 / (2 * S::kLogTerms - 1)));
    for (int k = S::kLogTerms - 2; k >= 1; --k) series = series * square + static_cast<T>(1.0 / (2 * k + 1));
    // log mantissa = 2 atanh(ratio); the leading term is added apart from the series, which keeps its last bit
    const V<T> tail = ratio * square * series;
    return whole * S::kLn2High + (2 * ratio + (2 * tail + whole * S::kLn2Low));
}

}  // namespace
}  // namespace hystar_fast::cpu
