// The element-wise work of svd_linear on the CPU: the declarations that its source files share. The loop over rows is
// compiled once for each instruction set (kernels_per_isa.cpp, from kernels.h) and called through a table, Kernels.
#pragma once

#include <cstdint>
#include <string>

#include "cpu/instruction_sets.h"

namespace hystar_fast::svd_linear {

struct Bfloat16 {
    std::uint16_t bits;
};

// Rows of one sample, and of each row `columns` neighbouring values. A row begins `stride` values after the last one.
template <typename T>
struct Block {
    const T* values;
    const T* others;     // null: no sums
    const float* scale;  // [columns]
    T* scaled;           // values * scale, which may be written over the values; null: not written
    float* sums;         // [columns]: values * others summed over the rows is added to them
    std::int64_t rows, columns, stride;
};

// The loops that depend on the instruction set.
template <typename T>
struct Kernels {
    void (*pass)(const Block<T>&);
};
HYSTAR_KERNELS_PER_ISA

// All rows [samples, tokens, rank]; scale and sums are [samples, rank].
template <typename T>
struct Pass {
    const T* values;
    const T* others;
    const float* scale;
    T* scaled;
    float* sums;
    std::int64_t samples, tokens, rank;
};

template <typename T>
void run(const Kernels<T>&, const Pass<T>&, int threads);

}  // namespace hystar_fast::svd_linear
