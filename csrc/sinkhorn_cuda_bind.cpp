// Binds the CUDA Sinkhorn; apart from the kernels because nvcc would parse pybind11 once for every architecture.
#ifdef HYSTAR_FAST_CUDA
#include "bindings.h"
#include "sinkhorn_cuda.h"

namespace hystar_fast {

namespace py = pybind11;

void bind_sinkhorn_cuda(py::module_& module) {
    module.def("sinkhorn_cuda_workspace", &sinkhorn_cuda_workspace, py::arg("batch"), py::arg("N"), py::arg("M"),
               "Bytes of workspace that sinkhorn_cuda_forward needs.");
    module.def("sinkhorn_cuda_forward", &sinkhorn_cuda_forward, py::arg("cost"), py::arg("mask"), py::arg("plan"),
               py::arg("u"), py::arg("v"), py::arg("status"), py::arg("error"), py::arg("iterations"), py::arg("batch"),
               py::arg("N"), py::arg("M"), py::arg("epsilon"), py::arg("n_iter"), py::arg("tol"), py::arg("stream"),
               py::arg("workspace") = 0, py::call_guard<py::gil_scoped_release>(),
               "Plans, potentials and what became of every problem; see csrc/sinkhorn_cuda.h.");
}

}  // namespace hystar_fast
#endif
