// The Python functions of the CUDA StyleNCE. They are not in a .cu file, because nvcc would parse pybind11 once for
// every architecture.
#ifdef HYSTAR_FAST_CUDA
#include "bindings.h"
#include "style_nce/cuda/style_nce.h"

namespace hystar_fast {

namespace py = pybind11;

void bind_style_nce_cuda(py::module_& module) {
    using Released = py::call_guard<py::gil_scoped_release>;
    module.def("style_nce_cuda_normalise", &style_nce_cuda_normalise, py::arg("query"), py::arg("query_stride"),
               py::arg("target"), py::arg("target_stride"), py::arg("N"), py::arg("D"), py::arg("units"),
               py::arg("lengths"), py::arg("stream"), Released(), "Unit rows and lengths; see csrc/style_nce/cuda/style_nce.h.");
    module.def("style_nce_cuda_workspace", &style_nce_cuda_workspace, py::arg("N"),
               "Bytes of workspace that style_nce_cuda_forward needs.");
    module.def("style_nce_cuda_forward", &style_nce_cuda_forward, py::arg("sim"), py::arg("lengths"), py::arg("mask"),
               py::arg("N"), py::arg("temperature"), py::arg("gamma"), py::arg("lam"), py::arg("epsilon"),
               py::arg("n_iter"), py::arg("weights"), py::arg("loss"), py::arg("mean"), py::arg("slope"),
               py::arg("stream"), py::arg("workspace"), Released(), "Cost, plan, loss and slope from the cosines.");
    module.def("style_nce_cuda_project", &style_nce_cuda_project, py::arg("dquery"), py::arg("dtarget"),
               py::arg("units"), py::arg("lengths"), py::arg("N"), py::arg("D"), py::arg("dloss"),
               py::arg("dloss_stride"), py::arg("scale"), py::arg("stream"), Released(),
               "Turns both products of the backward into gradients.");
}

}  // namespace hystar_fast
#endif
