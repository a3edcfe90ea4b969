// StyleNCE's CPU kernels for any CPU: 16-byte vectors (SSE2 on x86-64, NEON on aarch64).
#define HYSTAR_VECTOR_BYTES 16
#include "style_nce_cpu_kernels.h"

namespace hystar_fast::style_nce {

template <>
const Kernels<float>& baseline_kernels() {
    return kKernels<float>;
}
template <>
const Kernels<double>& baseline_kernels() {
    return kKernels<double>;
}

}  // namespace hystar_fast::style_nce
