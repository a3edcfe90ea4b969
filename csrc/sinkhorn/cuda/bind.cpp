// The Python functions of the CUDA Sinkhorn. They are not in a .cu file, because nvcc would parse pybind11 once for
// every architecture.
#ifdef HYSTAR_FAST_CUDA
#include "bindings.h"
#include "sinkhorn/cuda/sinkhorn.h"

namespace hystar_fast {

namespace py = pybind11;

void bind_sinkhorn_cuda(py::module_& module) {
    module.def("sinkhorn_cuda_workspace", &sinkhorn_cuda_workspace, py::arg("batch"), py::arg("N"), py::arg("M"),
               "Bytes of workspace that sinkhorn_cuda_forward needs.");
    module.def("sinkhorn_cuda_forward", &sinkhorn_cuda_forward, py::arg("cost"), py::arg("mask"), py::arg("plan"),
               py::arg("u"), py::arg("v"), py::arg("status"), py::arg("error"), py::arg("iterations"), py::arg("batch"),
               py::arg("N"), py::arg("M"), py::arg("epsilon"), py::arg("n_iter"), py::arg("tol"), py::arg("stream"),
               py::arg("workspace") = 0, py::call_guard<py::gil_scoped_release>(),
               "Plans, potentials and the status of every problem; see csrc/sinkhorn/cuda/sinkhorn.h.");
    module.def("sinkhorn_cuda_has_gradient", &sinkhorn_cuda_has_gradient, py::arg("N"), py::arg("M"),
               "Whether the gradients of problems of this size are computed on chip.");
    module.def("sinkhorn_cuda_unrolled_workspace", &sinkhorn_cuda_unrolled_workspace, py::arg("batch"), py::arg("N"),
               py::arg("M"), py::arg("n_iter"), "Bytes of workspace that sinkhorn_cuda_unrolled_backward needs.");
    module.def("sinkhorn_cuda_unrolled_backward", &sinkhorn_cuda_unrolled_backward, py::arg("cost"), py::arg("mask"),
               py::arg("dplan"), py::arg("iterations"), py::arg("dcost"), py::arg("batch"), py::arg("N"), py::arg("M"),
               py::arg("epsilon"), py::arg("n_iter"), py::arg("stream"), py::arg("workspace"),
               py::call_guard<py::gil_scoped_release>(), "The gradient of the cost through every iteration.");
    module.def("sinkhorn_cuda_implicit_backward", &sinkhorn_cuda_implicit_backward, py::arg("plan"), py::arg("dplan"),
               py::arg("iterations"), py::arg("dcost"), py::arg("batch"), py::arg("N"), py::arg("M"), py::arg("epsilon"),
               py::arg("stream"), py::call_guard<py::gil_scoped_release>(),
               "The gradient of the cost through the converged plan.");
}

}  // namespace hystar_fast
#endif
