// The kernels of the perturbed top-K on the CPU, compiled once for each instruction set: HYSTAR_ISA is its name.

// The scores are perturbed as torch does it: the product is rounded before it is added.
#if defined(__clang__)
#pragma clang fp contract(off)
#else
#pragma GCC optimize("fp-contract=off")
#endif

#include "perturbed_topk/cpu/kernels.h"

namespace hystar_fast::perturbed_topk::HYSTAR_ISA {

template <>
const Kernels<float>& kernels() {
    return kKernels<float>;
}
template <>
const Kernels<double>& kernels() {
    return kKernels<double>;
}

}  // namespace hystar_fast::perturbed_topk::HYSTAR_ISA
