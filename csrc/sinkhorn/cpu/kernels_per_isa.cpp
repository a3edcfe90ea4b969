// The kernels of the CPU Sinkhorn, compiled once for each instruction set: HYSTAR_ISA is its name.
#include "sinkhorn/cpu/kernels.h"

namespace hystar_fast::sinkhorn::HYSTAR_ISA {

template <>
const Kernels<float>& kernels() {
    return kKernels<float>;
}
template <>
const Kernels<double>& kernels() {
    return kKernels<double>;
}

}  // namespace hystar_fast::sinkhorn::HYSTAR_ISA
