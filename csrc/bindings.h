// The functions that bind each op to the module hystar_fast._C. Tensors are passed as integers (data pointers, sizes,
// strides, a stream), or used by functions of torch that are looked up at run time, so libtorch is not needed.
#pragma once

#include <cstdint>

#include <pybind11/pybind11.h>

namespace hystar_fast {

using Pointer = std::uintptr_t;

template <typename T>
T* at(Pointer address) {
    return reinterpret_cast<T*>(address);
}

void bind_sinkhorn_cpu(pybind11::module_& module);
void bind_style_nce_cpu(pybind11::module_& module);
void bind_perturbed_topk_cpu(pybind11::module_& module);
void bind_svd_linear_cpu(pybind11::module_& module);
void bind_svd_linear_host(pybind11::module_& module);
#ifdef HYSTAR_FAST_CUDA
void bind_sinkhorn_cuda(pybind11::module_& module);
void bind_style_nce_cuda(pybind11::module_& module);
#endif

}  // namespace hystar_fast
