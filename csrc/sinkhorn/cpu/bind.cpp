// The Python functions of the CPU Sinkhorn.
#include "bindings.h"
#include "sinkhorn/cpu/sinkhorn.h"

#include <string>

namespace py = pybind11;

namespace hystar_fast {
namespace {

using namespace sinkhorn;

template <typename T>
void run_forward(Pointer cost, Pointer mask, std::int64_t mask_stride, std::int64_t batch, std::int64_t n, std::int64_t m,
                 double epsilon, std::int64_t n_iter, double tol, Pointer plan, Pointer history, Pointer info, int threads,
                 const std::string& isa) {
    const Forward<T> job{at<const T>(cost), at<const std::uint8_t>(mask), mask_stride, batch, n, m, static_cast<T>(epsilon),
                         n_iter, tol, at<T>(plan), at<T>(history), at<std::int32_t>(info)};
    const Kernels<T>& chosen = kernels_for<T>(isa);
    py::gil_scoped_release unlocked;
    forward(chosen, job, threads);
}

template <typename T>
void run_unrolled_backward(Pointer cost, Pointer mask, std::int64_t mask_stride, std::int64_t batch, std::int64_t n,
                           std::int64_t m, double epsilon, std::int64_t n_iter, Pointer plan, Pointer history, Pointer info,
                           Pointer grad, Pointer dcost, int threads, const std::string& isa) {
    const UnrolledBackward<T> job{at<const T>(cost), at<const std::uint8_t>(mask), mask_stride, batch, n, m,
                                  static_cast<T>(epsilon), n_iter, at<const T>(plan), at<const T>(history),
                                  at<const std::int32_t>(info), at<const T>(grad), at<T>(dcost)};
    const Kernels<T>& chosen = kernels_for<T>(isa);
    py::gil_scoped_release unlocked;
    unrolled_backward(chosen, job, threads);
}

void run_implicit_backward(Pointer plan, Pointer grad, Pointer dcost, std::int64_t batch, std::int64_t n, std::int64_t m,
                           double epsilon, int threads, const std::string& isa) {
    const ImplicitBackward job{batch, n, m, epsilon, at<const double>(plan), at<const double>(grad), at<double>(dcost)};
    const Kernels<double>& chosen = kernels_for<double>(isa);
    py::gil_scoped_release unlocked;
    implicit_backward(chosen, job, threads);
}

}  // namespace

void bind_sinkhorn_cpu(py::module_& module) {
    module.def("sinkhorn_cpu_forward_f32", &run_forward<float>, "Plans and their info; see csrc/sinkhorn/cpu/sinkhorn.h.");
    module.def("sinkhorn_cpu_forward_f64", &run_forward<double>, "The same in float64.");
    module.def("sinkhorn_cpu_unrolled_backward_f32", &run_unrolled_backward<float>, "The gradient of the cost through all iterations.");
    module.def("sinkhorn_cpu_unrolled_backward_f64", &run_unrolled_backward<double>, "The same in float64.");
    module.def("sinkhorn_cpu_implicit_backward_f64", &run_implicit_backward, "The gradient of the cost at the fixed point.");
}

}  // namespace hystar_fast
