// The module hystar_fast._C: how it was built, which CUDA driver is installed, and the functions of each op.
#include "bindings.h"

#include <dlfcn.h>
#include <pybind11/stl.h>

#include "constants.h"
#include "cpu/instruction_sets.h"

#ifdef HYSTAR_FAST_CUDA
#include <cuda_runtime_api.h>
#endif

namespace py = pybind11;
using namespace py::literals;

namespace {

// Returns the CUDA version that the installed driver supports (13000 is 13.0), or 0 without a driver. This calls the
// driver itself, which needs no context, does not start the runtime, and is safe before a fork.
int cuda_driver_version() {
    void* driver = dlopen("libcuda.so.1", RTLD_LAZY | RTLD_LOCAL);
    if (driver == nullptr) return 0;
    auto get_version = reinterpret_cast<int (*)(int*)>(dlsym(driver, "cuDriverGetVersion"));
    int version = 0;
    return get_version != nullptr && get_version(&version) == 0 ? version : 0;
}

// The contents of constants.h, by the names that the reference has for them.
py::dict constants() {
    using namespace hystar_fast;
    return py::dict(
        "SinkhornStatus"_a = py::dict("CONVERGED"_a = int{CONVERGED}, "NOT_CONVERGED"_a = int{NOT_CONVERGED},
                                      "INFEASIBLE"_a = int{INFEASIBLE}, "INVALID"_a = int{INVALID}),
        "WEIGHTS"_a = py::dict("PAPER"_a = int{PAPER}, "AUTHORS"_a = int{AUTHORS}, "UNIFORM"_a = int{UNIFORM}),
        "CONVERGED_BELOW"_a = CONVERGED_BELOW, "MAX_EXPONENT"_a = MAX_EXPONENT, "AUTO_GAMMA"_a = AUTO_GAMMA);
}

}  // namespace

PYBIND11_MODULE(_C, module) {
    module.doc() = "Compiled kernels of hystar_fast; only hystar_fast.ops calls them.";
    module.attr("version") = HYSTAR_FAST_VERSION;
    module.attr("sources") = HYSTAR_FAST_SOURCES;  // a digest of csrc/: a checkout compares it to find a stale build
    module.attr("cuda_reason") = HYSTAR_FAST_CUDA_REASON;  // why it was built without CUDA; empty if it has CUDA
#ifdef HYSTAR_FAST_CUDA
    module.attr("cuda_version") = CUDART_VERSION;
    module.attr("cuda_architectures") = HYSTAR_FAST_CUDA_ARCHITECTURES;
#else
    module.attr("cuda_version") = 0;
    module.attr("cuda_architectures") = "";
#endif
    using namespace hystar_fast;
    module.attr("constants") = constants();
    module.def("cuda_driver_version", &cuda_driver_version);
    module.def("cpu_instruction_sets", &cpu::available_instruction_sets, "The instruction sets of this CPU, widest first.");
    bind_sinkhorn_cpu(module);
    bind_style_nce_cpu(module);
    bind_perturbed_topk_cpu(module);
    bind_svd_linear_cpu(module);
    bind_svd_linear_host(module);
#ifdef HYSTAR_FAST_CUDA
    bind_sinkhorn_cuda(module);
    bind_style_nce_cuda(module);
#endif
}
