// The perturbed top-K on the CPU: the declarations that its source files share. The loop over the samples of the noise
// is compiled once for each instruction set (kernels_per_isa.cpp, from kernels.h) and called through a table, Kernels.
#pragma once

#include <cstdint>
#include <string>

#include "cpu/instruction_sets.h"

namespace hystar_fast::perturbed_topk {

// One item of the batch. More than k of its n positions are open. Both vectors are padded to a multiple of the lanes.
template <typename T>
struct Item {
    const T* scores;      // -inf for closed positions and for the padding
    const T* lowest;      // a lower bound of the perturbed scores: -inf there, and the lowest finite number elsewhere
    std::int64_t n, k;
    T sigma;
    T* perturbed;         // room for two padded vectors
};

// The loops that depend on the instruction set.
template <typename T>
struct Kernels {
    std::int64_t lanes;
    // For each of `samples` vectors of noise [n]: chooses the k largest of scores + sigma * noise, of equal ones the
    // first, writes their positions in ascending order to chosen [samples, k] (which may be null), and adds 1 to
    // counts [k, n] at the position of each.
    void (*choose)(const Item<T>&, const float* noise, std::int64_t samples, std::int32_t* chosen, std::int32_t* counts);
};
HYSTAR_KERNELS_PER_ISA

template <typename T>
struct Forward {
    const T* scores;                // [batch, n]
    const float* noise;             // [batch, samples, n]
    const std::uint8_t* forbidden;  // [batch, n]
    std::int64_t batch, samples, n, k;
    T sigma;
    T* soft;                        // [batch, k, n]
    std::int32_t* chosen;           // [batch, samples, min(k, n)], n where no position is left; or null
};

template <typename T>
void forward(const Kernels<T>&, const Forward<T>&, int threads);

// Returns the k-th largest of n values, and reorders them. It is compiled for any CPU.
template <typename T>
T kth_largest(T* values, std::int64_t n, std::int64_t k);

}  // namespace hystar_fast::perturbed_topk
