// The parts that all CUDA Sinkhorn kernels share: the problem, the mathematics of one entry, reductions over lanes.
//
// The block algorithms (tile, stream, sweep, feasibility) are templates over `Block`. Under nvcc this is the thread
// block of the GPU (device_block.cuh). Under g++ it is an emulation with one fiber for each thread
// (tests/support/cuda_host/block.h). So the tests execute the source that runs on the GPU.
//
// Numerics: logarithms have base 2. x_ij = (lowest_i - cost_ij) / (epsilon ln 2) <= 0 is the kernel, with every row
// shifted to a maximum of 0. u and v are potentials of x, so plan_ij = 2^(x_ij + u_i + v_j).
#pragma once

#include <cmath>
#include <cstdint>

#include "constants.h"

#ifdef __CUDACC__
#define HYSTAR_DEVICE __device__ __forceinline__
#define HYSTAR_BOTH __host__ __device__ __forceinline__
#else
#define HYSTAR_DEVICE inline
#define HYSTAR_BOTH inline
#endif

namespace hystar_fast {

// Returns the value at an address if `there`, else the other value. This is a predicated load; without it the compiler
// would make a branch for each load.
#ifdef __CUDACC__
HYSTAR_DEVICE float read_if(bool there, const float* at, float otherwise) {
    asm volatile("{.reg .pred p; setp.ne.s32 p, %2, 0; @p ld.global.f32 %0, [%1];}"
                 : "+f"(otherwise) : "l"(at), "r"(static_cast<int>(there)));
    return otherwise;
}
HYSTAR_DEVICE int read_if(bool there, const uint8_t* at) {
    int value = 0;
    asm volatile("{.reg .pred p; setp.ne.s32 p, %2, 0; @p ld.global.u8 %0, [%1];}"
                 : "+r"(value) : "l"(at), "r"(static_cast<int>(there)));
    return value;
}
#else
inline float read_if(bool there, const float* at, float otherwise) { return there ? *at : otherwise; }
inline int read_if(bool there, const uint8_t* at) { return there ? *at : 0; }
#endif

// Read and write a number that another block may write or read at the same time. Any reader must be content with the old
// value and with the new one.
HYSTAR_DEVICE int read_relaxed(const int* at) { return *static_cast<const volatile int*>(at); }
HYSTAR_DEVICE void write_relaxed(int* at, int value) { *static_cast<volatile int*>(at) = value; }

// A batch of problems, as the caller passed it.
struct Batch {
    const float* cost;      // [batch, N, M]
    const uint8_t* mask;    // [batch, N, M], nonzero forbids; null: nothing is forbidden
    float* plan;            // [batch, N, M]
    float* u;               // [batch, N], in units of cost
    float* v;               // [batch, M]
    int* status;            // [batch]
    float* error;           // [batch]
    int* iterations;        // [batch]
    int n, m, n_iter;
    float tol;              // 0: exactly n_iter iterations run
    float scale, scale_low; // their sum is 1 / (epsilon ln 2)
    float unit;             // epsilon ln 2
    float floor;            // a lower limit of lowest - cost, which keeps x finite
    float column_mass;      // N / M
    float row_mass;         // gcd(N, M) / M; if the sum of |row - 1| is smaller, a plan exists
    int divisor;            // gcd(N, M)

    // The batch without the problems before `first`.
    Batch from(int64_t first) const {
        const int64_t size = static_cast<int64_t>(n) * m;
        Batch rest = *this;
        rest.cost += first * size;
        if (mask != nullptr) rest.mask += first * size;
        rest.plan += first * size;
        rest.u += first * n;
        rest.v += first * m;
        rest.status += first;
        rest.error += first;
        rest.iterations += first;
        return rest;
    }
};

inline Batch make_batch(const float* cost, const uint8_t* mask, float* plan, float* u, float* v, int* status,
                        float* error, int* iterations, int n, int m, double epsilon, int n_iter, double tol) {
    const double unit = epsilon * LN2;
    const double scale = fmin(1 / unit, 1e38);
    const auto scale_high = static_cast<float>(scale);
    int divisor = n;
    for (int b = m; b != 0;) {
        const int rest = divisor % b;
        divisor = b;
        b = rest;
    }
    return {cost, mask, plan, u, v, status, error, iterations, n, m, n_iter, static_cast<float>(tol), scale_high,
            static_cast<float>(scale - scale_high), static_cast<float>(unit),
            static_cast<float>(fmax(-1e30 * epsilon, -3e38)), static_cast<float>(n) / static_cast<float>(m),
            static_cast<float>(divisor) / static_cast<float>(m), divisor};
}

// One problem of a batch. Its pointers are computed when they are used, which saves a kernel 16 registers.
struct Problem : Batch {
    HYSTAR_DEVICE Problem(const Batch& batch, long long at) : Batch(batch), index(at) {}

    HYSTAR_DEVICE const float* cost() const { return Batch::cost + index * size(); }
    HYSTAR_DEVICE const uint8_t* mask() const {
        return Batch::mask == nullptr ? nullptr : Batch::mask + index * size();
    }
    HYSTAR_DEVICE float* plan() const { return Batch::plan + index * size(); }
    HYSTAR_DEVICE float* u() const { return Batch::u + index * n; }
    HYSTAR_DEVICE float* v() const { return Batch::v + index * m; }
    HYSTAR_DEVICE int* status() const { return Batch::status + index; }
    HYSTAR_DEVICE float* error() const { return Batch::error + index; }
    HYSTAR_DEVICE int* iterations() const { return Batch::iterations + index; }
    HYSTAR_DEVICE long long size() const { return static_cast<long long>(n) * m; }
    HYSTAR_DEVICE long long at(int row, int column) const { return static_cast<long long>(row) * m + column; }

    // The cost of an entry; +inf if it is forbidden or outside the matrix.
    HYSTAR_DEVICE float allowed_cost(int row, int column) const {
        if (row >= n || column >= m) return INFINITY;
        if (Batch::mask != nullptr && mask()[at(row, column)] != 0) return INFINITY;
        return cost()[at(row, column)];
    }

    // Reads the costs of COUNT entries of a row: every 32nd from `first` on. All loads are in flight at the same time.
    template <int COUNT>
    HYSTAR_DEVICE void allowed_costs(float (&values)[COUNT], int row, int first) const {
        const float* costs = cost() + at(row, first);
#pragma unroll
        for (int k = 0; k < COUNT; ++k) values[k] = read_if(first + 32 * k < m && row < n, costs + 32 * k, INFINITY);
        if (Batch::mask == nullptr) return;
        const uint8_t* forbids = mask() + at(row, first);
#pragma unroll
        for (int k = 0; k < COUNT; ++k)
            if (read_if(first + 32 * k < m && row < n, forbids + 32 * k) != 0) values[k] = INFINITY;
    }

    // x of an entry with this cost in a row whose lowest cost is `lowest`; -inf if forbidden, NaN if the cost is NaN.
    HYSTAR_DEVICE float exponent(float cost_ij, float lowest) const {
        const float gap = lowest - cost_ij;
        const float kept = gap < floor ? floor : gap;
        return cost_ij == INFINITY ? -INFINITY : fmaf(kept, scale, kept * scale_low);
    }

    HYSTAR_DEVICE float converged_below() const { return tol > 0 ? tol : static_cast<float>(CONVERGED_BELOW); }
    HYSTAR_DEVICE int outcome(float worst) const { return worst <= converged_below() ? CONVERGED : NOT_CONVERGED; }

    const long long index;
};

// Returns true if an allowed entry makes its problem invalid: NaN or -inf.
HYSTAR_DEVICE bool is_invalid(float cost) { return !(cost >= -3.402823466e38f); }

// The approximate instructions. The relative error of 2^x is 2^-22 and that of 1 / x is 2^-23. The error of log2 x is
// 2^-22, absolute for x in [1/2, 2] and relative elsewhere. Numbers below 2^-126 are 0. On the host,
// tests/support/cuda_host/block.h defines them with the same errors.
#ifdef __CUDACC__
#define HYSTAR_APPROXIMATE(name, instruction)                                \
    HYSTAR_DEVICE float name(float x) {                                      \
        float y;                                                             \
        asm(instruction ".approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));       \
        return y;                                                            \
    }
HYSTAR_APPROXIMATE(power_of_two, "ex2")
HYSTAR_APPROXIMATE(reciprocal, "rcp")
HYSTAR_APPROXIMATE(log2_of, "lg2")
#undef HYSTAR_APPROXIMATE
#else
inline float power_of_two(float x);
inline float reciprocal(float x);
inline float log2_of(float x);
#endif

// 1 / x of a positive sum; 0 for an empty row or column.
HYSTAR_DEVICE float inverse(float x) { return x > 0 ? reciprocal(x) : 0.0f; }

// 2^(x + u + v). The rounding error of u + v is added too, because large potentials may cancel x.
HYSTAR_DEVICE float plan_entry(float x, float u, float v) {
    const float sum = u + v;
    const float part = sum - u;
    const float lost = (u - (sum - part)) + (v - part);
    return power_of_two((x + sum) + lost);
}

// Returns true if a scaling is so large or small that it is moved into the potentials. This happens long before a
// product can leave the range of fp32.
template <class T>
HYSTAR_DEVICE bool is_far(float scaling) {
    return scaling > T::FAR || (scaling > 0 && scaling < 1 / T::FAR);
}

struct Sum {
    static constexpr float NEUTRAL = 0;
    HYSTAR_DEVICE static float apply(float a, float b) { return a + b; }
};
struct Max {
    static constexpr float NEUTRAL = -INFINITY;
    HYSTAR_DEVICE static float apply(float a, float b) { return fmaxf(a, b); }
};

// Reduces a value over the lanes of a warp that differ in the bits below LANES. Every lane gets the result.
template <class Op, int LANES = 32, class Block>
HYSTAR_DEVICE float reduce_warp(Block& block, float value) {
#pragma unroll
    for (int mask = LANES / 2; mask > 0; mask /= 2) value = Op::apply(value, block.shuffle_xor(value, mask));
    return value;
}

// Reduces a value over the block in a fixed order. `scratch` has one float for each warp. Every thread gets the result,
// and sees what the other threads wrote before.
template <class Op, class Block>
HYSTAR_DEVICE float reduce_block(Block& block, float value, float* scratch) {
    value = reduce_warp<Op>(block, value);
    if constexpr (Block::WARPS > 1) {
        block.sync();
        if (block.lane() == 0) scratch[block.warp()] = value;
        block.sync();
        value = scratch[0];
        for (int warp = 1; warp < Block::WARPS; ++warp) value = Op::apply(value, scratch[warp]);
    } else {
        block.sync_warp();  // shuffles order no memory
    }
    return value;
}

// The transposed butterfly: reduces COUNT values of each lane over the lanes that differ in the bits MASK, MASK / 2,
// ..., LAST. Each lane keeps the results of a few of the values: in every step it sends one half of its values and
// keeps the other half. So 12 values over 8 lanes take 6 + 3 + 2 shuffles instead of 36.
template <class Op, int COUNT, int MASK, int LAST, class Block>
HYSTAR_DEVICE void reduce_scatter(Block& block, float* values) {
    if constexpr (MASK >= LAST) {
        constexpr int HALF = (COUNT + 1) / 2;
        const bool upper = (block.lane() & MASK) != 0;
#pragma unroll
        for (int i = 0; i < HALF; ++i) {
            const float high = i + HALF < COUNT ? values[i + HALF] : Op::NEUTRAL;
            const float kept = upper ? high : values[i];
            values[i] = Op::apply(kept, block.shuffle_xor(upper ? values[i] : high, MASK));
        }
        reduce_scatter<Op, HALF, MASK / 2, LAST>(block, values);
    }
}

// The values that a lane has after reduce_scatter: values[0 .. count) are the values number first, first + 1, ...
struct Owned {
    int first, count;
};
template <int COUNT, int MASK, int LAST>
HYSTAR_DEVICE Owned owned_by(int lane, Owned owned = {0, COUNT}) {
    if constexpr (MASK >= LAST) {
        constexpr int HALF = (COUNT + 1) / 2;
        const bool upper = (lane & MASK) != 0;
        const int count = upper ? owned.count - HALF : (owned.count < HALF ? owned.count : HALF);
        return owned_by<HALF, MASK / 2, LAST>(lane, {owned.first + (upper ? HALF : 0), count});
    } else {
        return owned;
    }
}
template <int COUNT, int MASK, int LAST>
constexpr int most_owned() {
    if constexpr (MASK >= LAST) return most_owned<(COUNT + 1) / 2, MASK / 2, LAST>();
    return COUNT;
}

// Reads COUNT consecutive floats from a 16-byte aligned address.
struct alignas(16) Float4 {
    float value[4];
};
template <int COUNT>
HYSTAR_DEVICE void load_aligned(float (&values)[COUNT], const float* from) {
#pragma unroll
    for (int i = 0; i < COUNT; i += 4) {
        const Float4 four = *reinterpret_cast<const Float4*>(from + i);
#pragma unroll
        for (int k = 0; k < 4; ++k)
            if (i + k < COUNT) values[i + k] = four.value[k];
    }
}

// Writes COUNT consecutive floats, a multiple of four, to a 16-byte aligned address.
template <int COUNT>
HYSTAR_DEVICE void store_aligned(float* to, const float (&values)[COUNT]) {
    static_assert(COUNT % 4 == 0);
#pragma unroll
    for (int i = 0; i < COUNT; i += 4)
        *reinterpret_cast<Float4*>(to + i) = {{values[i], values[i + 1], values[i + 2], values[i + 3]}};
}

// Writes the results of a problem without a plan: zeros if it is infeasible, NaN if it is invalid.
template <class Block>
HYSTAR_DEVICE void write_without_plan(Block& block, const Problem& problem, int status) {
    const float value = status == INVALID ? NAN : 0.0f;
    for (long long i = block.thread(); i < problem.size(); i += Block::THREADS) problem.plan()[i] = value;
    for (int i = block.thread(); i < problem.n; i += Block::THREADS) problem.u()[i] = value;
    for (int j = block.thread(); j < problem.m; j += Block::THREADS) problem.v()[j] = value;
    if (block.thread() == 0) {
        *problem.status() = status;
        *problem.error() = status == INVALID ? NAN : fmaxf(1.0f, problem.column_mass);
        *problem.iterations() = 0;
    }
}

}  // namespace hystar_fast
