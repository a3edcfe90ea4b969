// Calls on CUDA that repeat an earlier one: tensors of the same shapes, strides and dtypes, so the same launches with
// other addresses.
#include <algorithm>
#include <array>
#include <deque>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <tuple>
#include <unordered_map>

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "bindings.h"
#include "svd_linear/host/given.h"
#include "svd_linear/host/launch.h"
#include "svd_linear/host/tensors.h"

namespace hystar_fast {

namespace py = pybind11;
using namespace py::literals;

namespace {

using host::Failed;
using host::Given;
using host::Handle;
using host::Key;
using host::kMostTensors;
using host::Launch;
using host::Layout;
using host::Tensor;
using host::torch;

constexpr std::size_t kMostCalls = 256, kMostLaunches = 3;
constexpr int kInvalidContext = 201;

struct Step {
    Launch launch;
    std::vector<std::size_t> places;  // of the addresses, among the tensors of the call and then its buffers
};

// out = alpha * a @ b + bias, as places; without a bias: kMostTensors
struct Product {
    std::size_t out, a, b, bias;
    double alpha;
    bool transposed;  // b is
};

struct Call {
    std::vector<Step> steps;
    std::mutex mutex;  // of the tensor maps in the steps
    std::vector<Layout> buffers;
    std::size_t results;  // the first buffers, which are returned
    std::optional<Product> product;
    py::object compiled;  // the kernels: when one is collected, its code is unloaded
};

Layout layout_of(Handle tensor) {
    std::int64_t dimensions = 0, *sizes = nullptr, *strides = nullptr;
    Layout layout;
    host::check(torch().get_dim(tensor, &dimensions));
    host::check(torch().get_sizes(tensor, &sizes));
    host::check(torch().get_strides(tensor, &strides));
    layout.sizes.assign(sizes, sizes + dimensions);
    layout.strides.assign(strides, strides + dimensions);
    host::check(torch().get_dtype(tensor, &layout.dtype));
    host::check(torch().get_device_type(tensor, &layout.device_type));
    host::check(torch().get_device_index(tensor, &layout.device_index));
    return layout;
}

class KeptCalls {
public:
    KeptCalls(py::type tensor, py::type parameter, std::vector<py::object> watchers, py::object adopt)
        : reader_(tensor, parameter), adopt_(adopt), watchers_(watchers) {
        torch();
    }

    // Keeps a call under each of `options`; see hystar_fast/ops/svd_linear/replay.py.
    void keep(const std::vector<std::int64_t>& options, const py::tuple& tensors, const py::tuple& buffers,
              std::size_t results, const py::list& launches,
              std::optional<std::tuple<std::size_t, std::size_t, std::size_t, std::size_t, double, bool>> product) {
        Key key;
        Given given;
        const std::size_t count = tensors.size() + buffers.size();
        if (count > kMostTensors || launches.size() > kMostLaunches || !reader_.read(tensors, key, given)) return;
        const auto call = std::make_shared<Call>();
        call->results = results;
        for (const py::handle buffer : buffers) {
            void* tensor = reader_.implementation(buffer);
            call->buffers.push_back(layout_of(&tensor));
        }
        if (product) {
            const auto& [out, a, b, bias, alpha, transposed] = *product;
            call->product = Product{out, a, b, bias, alpha, transposed};
        }
        py::list compiled;
        for (const py::handle each : launches) {
            using Number = std::uint32_t;
            auto [kernel, function, grid_x, grid_y, threads, shared, parameters, places] =
                each.cast<std::tuple<py::object, std::uintptr_t, Number, Number, Number, Number, py::list,
                                     std::vector<std::size_t>>>();
            compiled.append(kernel);
            const host::Config config{grid_x, grid_y, 1, threads, 1, 1, shared, nullptr, nullptr, 0};
            Launch launch(function, config, read_parameters(parameters));
            const bool known = std::all_of(places.begin(), places.end(), [&](auto place) { return place < count; });
            if (places.size() != launch.addresses() || !known)
                throw std::invalid_argument("every address of a launch must be that of a tensor");
            call->steps.push_back({std::move(launch), std::move(places)});
        }
        call->compiled = compiled;
        for (const std::int64_t option : options) {
            const std::string name = key.with(option);
            if (!calls_.insert_or_assign(name, call).second) continue;
            order_.push_back(name);
            if (order_.size() <= kMostCalls) continue;
            calls_.erase(order_.front());
            order_.pop_front();
        }
    }

    // Repeats a call on the current stream, and returns its results. Returns None if it must run as the first did: it
    // is not kept, something watches it, a tensor is no plain one, this thread has no context yet, or torch failed.
    py::object run(std::int64_t option, const py::tuple& tensors) {
        Key key;
        Given given;
        if (calls_.empty() || is_watched() || !reader_.read(tensors, key, given)) return py::none();
        const auto found = calls_.find(key.with(option));
        if (found == calls_.end()) return py::none();
        const std::shared_ptr<Call> call = found->second;
        std::vector<Tensor> buffers;
        bool done = false;
        try {
            const py::gil_scoped_release release;  // a launch may wait, for a callback in Python even
            done = launch(*call, given, buffers);
        } catch (const Failed&) {
        }
        if (!done) return py::none();
        py::tuple results(call->results);
        for (std::size_t i = 0; i < call->results; ++i)
            results[i] = adopt_(py::capsule(buffers[i].release()));
        return results;
    }

    void clear() { calls_.clear(), order_.clear(); }

    std::size_t size() const { return calls_.size(); }

private:
    // Allocates the buffers and does the work; returns false if this thread has no context.
    static bool launch(Call& call, Given& given, std::vector<Tensor>& buffers) {
        std::int32_t current = -1;
        void* stream = nullptr;
        host::check(torch().current_device(&current));
        if (current != given.device) return false;
        host::check(torch().current_stream(given.device, &stream));
        buffers.reserve(call.buffers.size());
        for (const Layout& buffer : call.buffers) {
            buffers.push_back(Tensor::empty(buffer));
            given.addresses[given.count + buffers.size() - 1] = host::address(buffers.back().get());
        }
        std::array<host::Ready, kMostLaunches> ready;
        {
            const std::lock_guard<std::mutex> lock(call.mutex);
            for (std::size_t i = 0; i < call.steps.size(); ++i) {
                std::array<std::uint64_t, kMostTensors> own;
                for (std::size_t j = 0; j < call.steps[i].places.size(); ++j)
                    own[j] = given.addresses[call.steps[i].places[j]];
                call.steps[i].launch.prepare(own.data(), ready[i]);
            }
        }
        for (std::size_t i = 0; i < call.steps.size(); ++i) {
            const int error = ready[i].launch(stream);
            if (error == kInvalidContext) return false;
            if (error) throw std::runtime_error("a kept kernel did not start: CUDA error " + std::to_string(error));
        }
        if (call.product) multiply(*call.product, given, buffers);
        return true;
    }

    static void multiply(const Product& product, Given& given, const std::vector<Tensor>& buffers) {
        const auto handle = [&](std::size_t place) {
            return place < given.count ? given.handle(place) : buffers[place - given.count].get();
        };
        const Tensor out = host::rows(handle(product.out));
        std::optional<Tensor> turned;
        Handle b = handle(product.b);
        if (product.transposed) b = turned.emplace(host::transposed(b)).get();
        const bool has_bias = product.bias < kMostTensors;
        if (has_bias || product.alpha != 1)
            host::check(torch().addmm_out(out.get(), has_bias ? handle(product.bias) : out.get(), handle(product.a), b,
                                          has_bias ? 1 : 0, product.alpha));
        else
            host::check(torch().mm_out(out.get(), handle(product.a), b));
    }

    bool is_watched() const {
        for (const py::object& watcher : watchers_) {
            const py::object found = host::result_of(PyObject_Vectorcall(watcher.ptr(), nullptr, 0, nullptr));
            if (PyObject_IsTrue(found.ptr()) != 0) return true;
        }
        return false;
    }

    // Reads the parameters: a number, None for an address, or the facts of a matrix.
    static std::vector<host::Parameter> read_parameters(const py::list& given) {
        std::vector<host::Parameter> parameters;
        for (const py::handle each : given) {
            host::Parameter& parameter = parameters.emplace_back();
            if (each.is_none()) {
                parameter.kind = host::Parameter::Kind::kAddress;
            } else if (py::isinstance<py::int_>(each)) {
                parameter.kind = host::Parameter::Kind::kNumber;
                parameter.number = static_cast<std::uint64_t>(each.cast<std::int64_t>());
            } else {
                const auto [type, sizes, strides, box, swizzle] =
                    each.cast<std::tuple<std::int32_t, std::vector<std::uint64_t>, std::vector<std::uint64_t>,
                                         std::vector<std::uint32_t>, std::int32_t>>();
                parameter.kind = host::Parameter::Kind::kMap;
                parameter.maps = std::make_unique<host::TensorMaps>(host::Matrix(type, sizes, strides, box, swizzle));
            }
        }
        return parameters;
    }

    const host::Reader reader_;
    const py::object adopt_;
    const std::vector<py::object> watchers_;
    std::unordered_map<std::string, std::shared_ptr<Call>> calls_;
    std::deque<std::string> order_;  // the oldest first
};

}  // namespace

void bind_svd_linear_host(py::module_& module) {
    py::class_<KeptCalls>(module, "KeptCalls")
        .def(py::init<py::type, py::type, std::vector<py::object>, py::object>(), "tensor"_a, "parameter"_a,
             "watchers"_a, "adopt"_a)
        .def("keep", &KeptCalls::keep, "options"_a, "tensors"_a, "buffers"_a, "results"_a, "launches"_a, "product"_a)
        .def("run", &KeptCalls::run)
        .def("clear", &KeptCalls::clear)
        .def("__len__", &KeptCalls::size);
}

}  // namespace hystar_fast
