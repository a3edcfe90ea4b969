// A CUDA runtime without a GPU for the launches of Sinkhorn and StyleNCE: it checks each as a driver does, and records
// it. The kernels describe themselves (device.h). Calls have C functions here, which return the message of an error.
#include <cuda_runtime.h>

#include <cstring>
#include <exception>
#include <map>
#include <set>
#include <string>

#include "cases.h"
#include "device.h"
#include "kernel_names.h"
#include "sinkhorn/cuda/cluster.h"
#include "sinkhorn/cuda/sinkhorn.h"
#include "style_nce/cuda/style_nce.h"

namespace {

struct Device {
    int major, multiprocessors, shared, multiprocessor_shared;
    int cluster, room;  // the most blocks of a cluster, and of one for which there is room; 0: none
};
constexpr int SHARED_WITHOUT_OPT_IN = 48 << 10, RESERVED = 1 << 10;
constexpr Device DEVICES[] = {
    {9, 132, 227 << 10, 228 << 10, 16, 16},  // H200
    {8, 108, 163 << 10, 164 << 10, 0, 0},    // A100
    {12, 170, 99 << 10, 100 << 10, 8, 8},    // RTX 5090
    {9, 14, 227 << 10, 228 << 10, 16, 8},    // a slice of an H200
};
constexpr int COUNT = sizeof DEVICES / sizeof DEVICES[0];

struct Kernel {
    std::string signature;
    int threads = 1024;  // the most of a block
    size_t shared = 0;   // of static arrays
};
Kernel described;
int device = 0;
cudaError_t last = cudaSuccess, injected = cudaSuccess;
std::string records;
std::map<std::pair<int, const void*>, size_t> opted_in;
std::set<std::pair<int, const void*>> large_clusters;

const Device& here() { return DEVICES[device]; }
cudaError_t answer(cudaError_t error) { return error == cudaSuccess ? error : last = error; }

// A kernel ignores its parameters, so that it can be called without them.
Kernel describe(const void* function) {
    described = {};
    reinterpret_cast<void (*)()>(const_cast<void*>(function))();
    return described;
}

bool shared_fits(const Kernel& kernel, const void* function, size_t dynamic) {
    const size_t all = kernel.shared + dynamic, allowed = opted_in[{device, function}];
    if (kernel.shared > SHARED_WITHOUT_OPT_IN || all > static_cast<size_t>(here().shared)) return false;
    return all <= SHARED_WITHOUT_OPT_IN || dynamic <= allowed;
}
int blocks_of_a_multiprocessor(const Kernel& kernel, const void* function, int threads, size_t dynamic) {
    if (!shared_fits(kernel, function, dynamic) || threads > kernel.threads) return 0;
    const size_t by_shared = here().multiprocessor_shared / (kernel.shared + dynamic + RESERVED);
    return static_cast<int>(std::min<size_t>(by_shared, 2048 / threads));
}
bool cluster_is_allowed(const void* function, int blocks) {
    return blocks > 0 && blocks <= here().cluster && (blocks <= 8 || large_clusters.count({device, function}) != 0);
}

void small_kernel() { stub::describe(__PRETTY_FUNCTION__, {256}, {1000}); }

template <class Call>
char* message(const Call& call) {
    try {
        call();
    } catch (const std::exception& error) {
        return strdup(error.what());
    }
    return nullptr;
}

}  // namespace

void stub::describe(const char* signature, std::initializer_list<int> bounds, std::initializer_list<size_t> arrays) {
    described.signature = signature;
    described.threads = *bounds.begin();
    for (const size_t bytes : arrays) described.shared += bytes;
}

// The runtime
cudaError_t cudaGetDevice(int* found) { return *found = device, answer(device < COUNT ? cudaSuccess : cudaErrorNoDevice); }
cudaError_t cudaGetLastError() {
    const cudaError_t error = last;
    last = cudaSuccess;
    return error;
}
const char* cudaGetErrorString(cudaError_t error) {
    return error == cudaErrorInvalidConfiguration ? "invalid configuration" : "refused by the stub";
}
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int which) {
    const Device& asked = DEVICES[which];
    switch (attribute) {
        case cudaDevAttrComputeCapabilityMajor: *value = asked.major; break;
        case cudaDevAttrMultiProcessorCount: *value = asked.multiprocessors; break;
        case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = asked.shared; break;
        case cudaDevAttrClusterLaunch: *value = asked.cluster > 0; break;
        case cudaDevAttrCooperativeLaunch: *value = 1; break;
        default: return answer(cudaErrorInvalidValue);
    }
    return cudaSuccess;
}
cudaError_t cudaFuncSetAttribute(const void* function, cudaFuncAttribute attribute, int value) {
    if (attribute == cudaFuncAttributeNonPortableClusterSizeAllowed) {
        large_clusters.insert({device, function});
        return cudaSuccess;
    }
    const size_t all = describe(function).shared + static_cast<size_t>(value);
    if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize || value < 0 || all > static_cast<size_t>(here().shared))
        return answer(cudaErrorInvalidValue);
    opted_in[{device, function}] = static_cast<size_t>(value);
    return cudaSuccess;
}
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, const void* function, int threads, size_t dynamic) {
    *blocks = blocks_of_a_multiprocessor(describe(function), function, threads, dynamic);
    return cudaSuccess;
}
cudaError_t cudaOccupancyMaxActiveClusters(int* clusters, const void* function, const cudaLaunchConfig_t* config) {
    const int blocks = static_cast<int>(config->attrs[0].val.clusterDim.x), threads = static_cast<int>(config->blockDim.x);
    if (!cluster_is_allowed(function, blocks)) return answer(cudaErrorInvalidClusterSize);
    const int each = blocks_of_a_multiprocessor(describe(function), function, threads, config->dynamicSmemBytes);
    *clusters = blocks <= here().room ? here().multiprocessors * each / blocks : 0;
    return cudaSuccess;
}
cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t* config, const void* function, void**) {
    const dim3 grid = config->gridDim, block = config->blockDim;
    const Kernel kernel = describe(function);
    int cluster = 0, cooperative = 0;
    for (unsigned i = 0; i < config->numAttrs; ++i) {
        const cudaLaunchAttribute& attribute = config->attrs[i];
        if (attribute.id == cudaLaunchAttributeClusterDimension) cluster = static_cast<int>(attribute.val.clusterDim.x);
        if (attribute.id == cudaLaunchAttributeCooperative) cooperative = attribute.val.cooperative;
    }
    const int64_t at_once = int64_t{here().multiprocessors} *
                            blocks_of_a_multiprocessor(kernel, function, static_cast<int>(block.x), config->dynamicSmemBytes);
    const bool legal = grid.x > 0 && grid.x <= 0x7fffffffu && grid.y > 0 && grid.y <= 65535 && grid.z == 1 && block.x > 0 &&
                       block.x <= static_cast<unsigned>(kernel.threads) && block.y == 1 && block.z == 1 &&
                       shared_fits(kernel, function, config->dynamicSmemBytes) &&
                       (cluster == 0 || (cluster_is_allowed(function, cluster) && grid.x % cluster == 0)) &&
                       (cooperative == 0 || int64_t{grid.x} * grid.y <= at_once);
    const cudaError_t error = injected != cudaSuccess ? injected : legal ? cudaSuccess : cudaErrorInvalidConfiguration;
    injected = cudaSuccess;
    if (error != cudaSuccess) return answer(error);
    for (const uint64_t number : {uint64_t{grid.x}, uint64_t{grid.y}, uint64_t{block.x}, uint64_t{kernel.shared},
                                  uint64_t{config->dynamicSmemBytes}, uint64_t(cluster), uint64_t(cooperative),
                                  uint64_t{reinterpret_cast<uintptr_t>(config->stream)}})
        records += std::to_string(number) + " ";
    records += kernel.signature + "\n";
    return cudaSuccess;
}

// For the tests
extern "C" void stub_device(int number) { device = number; }
extern "C" void stub_refuse_next() { injected = cudaErrorInvalidConfiguration; }
extern "C" char* stub_launches() {
    char* text = strdup(records.c_str());
    records.clear();
    return text;
}

using namespace hystar_fast;

extern "C" char* stub_forward(int64_t batch, int64_t n, int64_t m, int64_t n_iter, uintptr_t at, uintptr_t workspace,
                              uintptr_t stream) {
    return message([&] {
        sinkhorn_cuda_forward(at, 0, at, at, at, at, at, at, batch, n, m, 0.1, n_iter, 0.0, stream, workspace);
    });
}
extern "C" char* stub_gradient(int implicit, int64_t batch, int64_t n, int64_t m, int64_t n_iter, uintptr_t at,
                               uintptr_t stream) {
    return message([&] {
        if (implicit != 0) sinkhorn_cuda_implicit_backward(at, at, at, at, batch, n, m, 0.1, stream);
        else sinkhorn_cuda_unrolled_backward(at, 0, at, at, at, batch, n, m, 0.1, n_iter, stream, at);
    });
}
extern "C" char* stub_style_nce(int64_t n, int64_t d, int64_t n_iter, int weights, uintptr_t at, uintptr_t stream) {
    return message([&] {
        style_nce_cuda_normalise(at, d, at, d, n, d, at, at, stream);
        style_nce_cuda_forward(at, at, 0, n, 0.07, 80, 1, 0.1, n_iter, weights, at, true, at, stream, at);
        style_nce_cuda_project(at, at, at, at, n, d, at, 0, 1, stream);
    });
}
extern "C" int64_t stub_workspace(int64_t batch, int64_t n, int64_t m) { return sinkhorn_cuda_workspace(batch, n, m); }
extern "C" int64_t stub_unrolled_workspace(int64_t batch, int64_t n, int64_t m, int64_t n_iter) {
    return sinkhorn_cuda_unrolled_workspace(batch, n, m, n_iter);
}
extern "C" int stub_has_gradient(int64_t n, int64_t m) { return sinkhorn_cuda_has_gradient(n, m); }

extern "C" char* stub_launch(int64_t x, int64_t y, int threads, int64_t dynamic, int cluster, int cooperative) {
    cudaLaunchAttribute attributes[2]{};
    attributes[0].id = cudaLaunchAttributeClusterDimension;
    attributes[0].val.clusterDim = {static_cast<unsigned>(cluster), 1, 1};
    attributes[1].id = cudaLaunchAttributeCooperative;
    attributes[1].val.cooperative = cooperative;
    cudaLaunchConfig_t config{dim3(static_cast<unsigned>(x), static_cast<unsigned>(y)), dim3(static_cast<unsigned>(threads)),
                              static_cast<size_t>(dynamic), nullptr, attributes + (cluster == 0), 1u + (cluster != 0)};
    return strdup(cudaLaunchKernelEx(&config, small_kernel) == cudaSuccess ? "" : cudaGetErrorString(cudaGetLastError()));
}

// The cases of bench/gpu_runner, one a line: op, its numbers, the kernel that the current device takes, and the name.
extern "C" char* runner_cases() {
    using namespace runner;
    std::string text;
    const auto add = [&](const char* op, std::initializer_list<int64_t> numbers, const std::string& kernel, const std::string& name) {
        text += std::string(op) + "|";
        for (const int64_t number : numbers) text += std::to_string(number) + " ";
        text += "|" + kernel + "|" + name + "\n";
    };
    for (int scale = 0; scale < 2; ++scale) {
        for (const Case& test : FORWARD[scale]) {
            const auto [batch, n, m] = test.size;
            add("forward", {batch, n, m, test.n_iter}, kernel_name(choose_here(batch, n, m), n, m, false), describe(test));
        }
        for (const Case& test : GRADIENT[scale])
            for (const bool implicit : {false, true}) {
                const auto [batch, n, m] = test.size;
                if (takes(test, implicit))
                    add(implicit ? "implicit" : "unrolled", {batch, n, m, test.n_iter},
                        kernel_name(choose_gradient(n, m, gpu_here()), n, m, true), describe(test));
            }
        for (const NceCase& test : NCE[scale]) add("style_nce", {test.n, test.d, test.n_iter, test.weights}, "", describe(test));
    }
    return strdup(text.c_str());
}
