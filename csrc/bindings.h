// What each op of the extension gives to the module hystar_fast._C: one function that binds it.
// Tensors cross as integers (data pointers, sizes, strides, a stream), so no libtorch is needed.
#pragma once

#include <pybind11/pybind11.h>

namespace hystar_fast {

void bind_sinkhorn_cpu(pybind11::module_& module);
void bind_style_nce_cpu(pybind11::module_& module);
#ifdef HYSTAR_FAST_CUDA
void bind_sinkhorn_cuda(pybind11::module_& module);
void bind_style_nce_cuda(pybind11::module_& module);
#endif

}  // namespace hystar_fast
