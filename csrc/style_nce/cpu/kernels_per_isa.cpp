// The kernels of StyleNCE on the CPU, compiled once for each instruction set: HYSTAR_ISA is its name.
#include "style_nce/cpu/kernels.h"

namespace hystar_fast::style_nce::HYSTAR_ISA {

template <>
const Kernels<float>& kernels() {
    return kKernels<float>;
}
template <>
const Kernels<double>& kernels() {
    return kKernels<double>;
}

}  // namespace hystar_fast::style_nce::HYSTAR_ISA
