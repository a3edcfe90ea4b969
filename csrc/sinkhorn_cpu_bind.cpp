// The CPU Sinkhorn's Python functions and the choice of instruction set.
#include "bindings.h"
#include "sinkhorn_cpu.h"

#include <stdexcept>
#include <string>

namespace py = pybind11;

namespace hystar_fast {
namespace {

using namespace sinkhorn;
using Pointer = std::uintptr_t;

bool cpu_has(const std::string& isa) {
#if defined(__x86_64__)
    __builtin_cpu_init();
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    if (isa == "avx2") return avx2;
    if (isa == "avx512")
        return avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
               __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
#endif
    return isa == "baseline";
}

// The widest instruction set of this CPU.
const std::string& best() {
    static const std::string isa = cpu_has("avx512") ? "avx512" : cpu_has("avx2") ? "avx2" : "baseline";
    return isa;
}

template <typename T>
const Kernels<T>& kernels(const std::string& wanted) {
    const std::string& isa = wanted.empty() ? best() : wanted;
    if (!cpu_has(isa)) throw std::invalid_argument("this CPU has no " + isa);
#if defined(__x86_64__)
    if (isa == "avx512") return avx512_kernels<T>();
    if (isa == "avx2") return avx2_kernels<T>();
#endif
    return baseline_kernels<T>();
}

template <typename T>
T* at(Pointer address) {
    return reinterpret_cast<T*>(address);
}

template <typename T>
void run_forward(Pointer cost, Pointer mask, std::int64_t mask_stride, std::int64_t batch, std::int64_t n, std::int64_t m,
                 double epsilon, std::int64_t n_iter, double tol, Pointer plan, Pointer history, Pointer info, int threads,
                 const std::string& isa) {
    const Forward<T> job{at<const T>(cost), at<const std::uint8_t>(mask), mask_stride, batch, n, m, static_cast<T>(epsilon),
                         n_iter, tol, at<T>(plan), at<T>(history), at<double>(info)};
    const Kernels<T>& chosen = kernels<T>(isa);
    py::gil_scoped_release unlocked;
    forward(chosen, job, threads);
}

template <typename T>
void run_unrolled_backward(Pointer cost, Pointer mask, std::int64_t mask_stride, std::int64_t batch, std::int64_t n,
                           std::int64_t m, double epsilon, std::int64_t n_iter, Pointer plan, Pointer history, Pointer info, Pointer grad,
                           Pointer dcost, int threads, const std::string& isa) {
    const UnrolledBackward<T> job{at<const T>(cost), at<const std::uint8_t>(mask), mask_stride, batch, n, m,
                                  static_cast<T>(epsilon), n_iter, at<const T>(plan), at<const T>(history), at<const double>(info),
                                  at<const T>(grad), at<T>(dcost)};
    const Kernels<T>& chosen = kernels<T>(isa);
    py::gil_scoped_release unlocked;
    unrolled_backward(chosen, job, threads);
}

void run_implicit_backward(Pointer plan, Pointer grad, Pointer dcost, std::int64_t batch, std::int64_t n, std::int64_t m,
                           double epsilon, int threads, const std::string& isa) {
    const ImplicitBackward job{batch, n, m, epsilon, at<const double>(plan), at<const double>(grad), at<double>(dcost)};
    const Kernels<double>& chosen = kernels<double>(isa);
    py::gil_scoped_release unlocked;
    implicit_backward(chosen, job, threads);
}

}  // namespace

void bind_sinkhorn_cpu(py::module_& module) {
    module.def("sinkhorn_cpu_isa", [] { return best(); }, "The instruction set in use: avx512, avx2 or baseline.");
    module.def("sinkhorn_cpu_forward_f32", &run_forward<float>);
    module.def("sinkhorn_cpu_forward_f64", &run_forward<double>);
    module.def("sinkhorn_cpu_unrolled_backward_f32", &run_unrolled_backward<float>);
    module.def("sinkhorn_cpu_unrolled_backward_f64", &run_unrolled_backward<double>);
    module.def("sinkhorn_cpu_implicit_backward_f64", &run_implicit_backward);
}

}  // namespace hystar_fast
