// StyleNCE's CPU kernels for x86-64 with AVX-512.
#if defined(__x86_64__)
#define HYSTAR_VECTOR_BYTES 64
#include "style_nce_cpu_kernels.h"

namespace hystar_fast::style_nce {

template <>
const Kernels<float>& avx512_kernels() {
    return kKernels<float>;
}
template <>
const Kernels<double>& avx512_kernels() {
    return kKernels<double>;
}

}  // namespace hystar_fast::style_nce
#endif
