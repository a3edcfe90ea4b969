// The Python functions for the element-wise work of svd_linear on the CPU.
#include "bindings.h"
#include "svd_linear/cpu/rows.h"

#include <string>

namespace py = pybind11;

namespace hystar_fast {
namespace {

using namespace svd_linear;

template <typename T>
void run_pass(Pointer values, Pointer others, Pointer scale, Pointer scaled, Pointer sums, std::int64_t samples,
              std::int64_t tokens, std::int64_t rank, int threads, const std::string& isa) {
    const Pass<T> pass{at<const T>(values), at<const T>(others), at<const float>(scale), at<T>(scaled), at<float>(sums),
                       samples, tokens, rank};
    const Kernels<T>& kernels = kernels_for<T>(isa);
    py::gil_scoped_release unlocked;
    run(kernels, pass, threads);
}

}  // namespace

void bind_svd_linear_cpu(py::module_& module) {
    const char* what = "Rows times their scale, and the sums of dscale, in one pass; see csrc/svd_linear/cpu/rows.h.";
    module.def("svd_linear_cpu_rows_f32", &run_pass<float>, what);
    module.def("svd_linear_cpu_rows_bf16", &run_pass<Bfloat16>, what);
}

}  // namespace hystar_fast
