// The Python functions of StyleNCE on the CPU.
#include "bindings.h"
#include "style_nce/cpu/style_nce.h"

#include <string>

namespace py = pybind11;

namespace hystar_fast {
namespace {

using namespace style_nce;

template <typename T>
void run_normalise(Pointer query, std::int64_t query_stride, Pointer target, std::int64_t target_stride, std::int64_t n,
                   std::int64_t d, Pointer units, Pointer lengths, int threads, const std::string& isa) {
    Forward<T> job{};
    job.query = {at<const T>(query), query_stride}, job.target = {at<const T>(target), target_stride};
    job.n = n, job.d = d, job.units = at<T>(units), job.lengths = at<T>(lengths);
    const Kernels<T>& chosen = kernels_for<T>(isa);
    py::gil_scoped_release unlocked;
    normalise(chosen, job, threads);
}

template <typename T>
void run_forward(Pointer query, std::int64_t query_stride, Pointer target, std::int64_t target_stride, Pointer mask,
                 std::int64_t n, std::int64_t d, double temperature, double gamma, double lam, double epsilon,
                 std::int64_t n_iter, int weights, Pointer loss, bool mean, Pointer slope, bool keep_slope, Pointer units,
                 Pointer lengths, Pointer sim, int threads, const std::string& isa) {
    const Forward<T> job{{at<const T>(query), query_stride}, {at<const T>(target), target_stride}, at<const std::uint8_t>(mask),
                         n, d, temperature, gamma, lam, epsilon, n_iter, static_cast<Weights>(weights), at<T>(loss), mean,
                         at<T>(slope), keep_slope, at<T>(units), at<T>(lengths), at<T>(sim)};
    const Kernels<T>& chosen = kernels_for<T>(isa);
    const sinkhorn::Kernels<T>& of_plan = sinkhorn::kernels_for<T>(isa);
    py::gil_scoped_release unlocked;
    forward(chosen, of_plan, job, threads);
}

template <typename T>
void run_backward(Pointer dloss, std::int64_t dloss_stride, Pointer slope, Pointer units, Pointer lengths, std::int64_t n,
                  std::int64_t d, double scale, Pointer dquery, Pointer dtarget, int threads,
                  const std::string& isa) {
    const Backward<T> job{at<const T>(dloss), dloss_stride, at<const T>(slope), at<const T>(units), at<const T>(lengths),
                          n, d, scale, at<T>(dquery), at<T>(dtarget)};
    const Kernels<T>& chosen = kernels_for<T>(isa);
    py::gil_scoped_release unlocked;
    backward(chosen, job, threads);
}

template <typename T>
void run_project(Pointer dy, Pointer units, Pointer lengths, std::int64_t n, std::int64_t d, Pointer dloss, double scale,
                 int threads, const std::string& isa) {
    const Kernels<T>& chosen = kernels_for<T>(isa);
    const T factor = static_cast<T>(scale * (dloss ? *at<const T>(dloss) : T(1)));
    py::gil_scoped_release unlocked;
    project(chosen, at<T>(dy), at<const T>(units), at<const T>(lengths), n, d, factor, threads);
}

template <typename T>
void define(py::module_& module, const std::string& type) {
    const auto def = [&](const char* name, auto function, const char* what) {
        module.def((std::string("style_nce_cpu_") + name + type).c_str(), function, what);
    };
    def("normalise", &run_normalise<T>, "Unit rows and their lengths; see csrc/style_nce/cpu/style_nce.h.");
    def("forward", &run_forward<T>, "The loss, and the tensors that its backward needs.");
    def("backward", &run_backward<T>, "The gradients of both inputs.");
    def("project", &run_project<T>, "Turns a gradient of unit rows, times scale and dloss, into one of the rows, in place.");
}

}  // namespace

void bind_style_nce_cpu(py::module_& module) {
    define<float>(module, "_f32");
    define<double>(module, "_f64");
}

}  // namespace hystar_fast
