// The module hystar_fast._C: what was built, which driver is here, and the functions of each op.
#include "bindings.h"

#include <dlfcn.h>

#ifdef HYSTAR_FAST_CUDA
#include <cuda_runtime_api.h>
#endif

namespace {

// The CUDA version the installed driver supports (13000 is 13.0), 0 without a driver. The driver is asked
// directly: that needs no context, leaves the runtime untouched and stays safe before a fork.
int cuda_driver_version() {
    void* driver = dlopen("libcuda.so.1", RTLD_LAZY | RTLD_LOCAL);
    if (driver == nullptr) return 0;
    auto ask = reinterpret_cast<int (*)(int*)>(dlsym(driver, "cuDriverGetVersion"));
    int version = 0;
    return ask != nullptr && ask(&version) == 0 ? version : 0;
}

}  // namespace

PYBIND11_MODULE(_C, module) {
    module.doc() = "Compiled kernels of hystar_fast; only hystar_fast.ops calls them.";
    module.attr("version") = HYSTAR_FAST_VERSION;
    module.attr("sources") = HYSTAR_FAST_SOURCES;  // a digest of csrc/, by which a checkout knows a stale build
    module.attr("cuda_reason") = HYSTAR_FAST_CUDA_REASON;  // why there is no CUDA here; empty when there is
#ifdef HYSTAR_FAST_CUDA
    module.attr("cuda_version") = CUDART_VERSION;
    module.attr("cuda_architectures") = HYSTAR_FAST_CUDA_ARCHITECTURES;
#else
    module.attr("cuda_version") = 0;
    module.attr("cuda_architectures") = "";
#endif
    module.def("cuda_driver_version", &cuda_driver_version);
    hystar_fast::bind_sinkhorn_cpu(module);
    hystar_fast::bind_style_nce_cpu(module);
#ifdef HYSTAR_FAST_CUDA
    hystar_fast::bind_sinkhorn_cuda(module);
    hystar_fast::bind_style_nce_cuda(module);
#endif
}
