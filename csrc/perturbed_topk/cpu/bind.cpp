// The Python functions of the perturbed top-K on the CPU.
#include "bindings.h"
#include "perturbed_topk/cpu/perturbed_topk.h"

#include <string>

namespace py = pybind11;

namespace hystar_fast {
namespace {

using namespace perturbed_topk;

template <typename T>
void run_forward(Pointer scores, Pointer noise, Pointer forbidden, std::int64_t batch, std::int64_t samples, std::int64_t n,
                 std::int64_t k, double sigma, Pointer soft, Pointer chosen, int threads, const std::string& isa) {
    const Forward<T> job{at<const T>(scores), at<const float>(noise), at<const std::uint8_t>(forbidden), batch, samples, n, k,
                         static_cast<T>(sigma), at<T>(soft), at<std::int32_t>(chosen)};
    const Kernels<T>& chosen_kernels = kernels_for<T>(isa);
    py::gil_scoped_release unlocked;
    forward(chosen_kernels, job, threads);
}

}  // namespace

void bind_perturbed_topk_cpu(py::module_& module) {
    const char* what = "The mean of the top-K of every sample, and their positions; see csrc/perturbed_topk/cpu/perturbed_topk.h.";
    module.def("perturbed_topk_cpu_forward_f32", &run_forward<float>, what);
    module.def("perturbed_topk_cpu_forward_f64", &run_forward<double>, what);
}

}  // namespace hystar_fast
