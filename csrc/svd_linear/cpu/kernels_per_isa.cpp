// The loop over rows of svd_linear on the CPU, compiled once for each instruction set: HYSTAR_ISA is its name.
#include "svd_linear/cpu/kernels.h"

namespace hystar_fast::svd_linear::HYSTAR_ISA {

template <>
const Kernels<float>& kernels() {
    return kKernels<float>;
}
template <>
const Kernels<Bfloat16>& kernels() {
    return kKernels<Bfloat16>;
}

}  // namespace hystar_fast::svd_linear::HYSTAR_ISA
