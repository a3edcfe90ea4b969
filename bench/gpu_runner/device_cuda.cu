// The device of the runner: the current GPU, and a stream that is not the default one.
#include <cuda_runtime_api.h>

#include <stdexcept>
#include <thread>

#include "device.h"
#include "kernel_names.h"
#include "sinkhorn/cuda/cluster.h"
#include "sinkhorn/cuda/sinkhorn.h"

namespace runner::device {
namespace {

void check(cudaError_t error, const char* what) {
    if (error != cudaSuccess) throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(error));
}

cudaStream_t own_stream() {
    static cudaStream_t stream = [] {
        cudaStream_t made = nullptr;
        check(cudaStreamCreateWithFlags(&made, cudaStreamNonBlocking), "the stream");
        return made;
    }();
    return stream;
}

}  // namespace

std::string name() {
    cudaDeviceProp properties{};
    check(cudaGetDeviceProperties(&properties, 0), "no GPU");
    return std::string(properties.name) + ", " + std::to_string(properties.multiProcessorCount) + " multiprocessors";
}
int threads() { return static_cast<int>(std::thread::hardware_concurrency()); }
uintptr_t stream() { return reinterpret_cast<uintptr_t>(own_stream()); }

void* allocate(size_t bytes) {
    void* memory = nullptr;
    check(cudaMalloc(&memory, bytes), "device memory");
    return memory;
}
void release(void* memory) { cudaFree(memory); }
void upload(void* to, const void* from, size_t bytes) {
    check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyHostToDevice, own_stream()), "an upload");
    finish();
}
void download(void* to, const void* from, size_t bytes) {
    check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToHost, own_stream()), "a download");
    finish();
}
void fill(void* at, int byte, size_t bytes) { check(cudaMemsetAsync(at, byte, bytes, own_stream()), "a fill"); }
void finish() {
    check(cudaGetLastError(), "a launch");
    check(cudaStreamSynchronize(own_stream()), "a kernel");
}

std::string forward_kernel(int64_t batch, int64_t n, int64_t m) {
    return kernel_name(hystar_fast::choose_here(batch, n, m), n, m, false);
}
std::string gradient_kernel(int64_t n, int64_t m) {
    if (!hystar_fast::sinkhorn_cuda_has_gradient(n, m)) return "none";
    return kernel_name(hystar_fast::choose_gradient(n, m, hystar_fast::gpu_here()), n, m, true);
}

}  // namespace runner::device
