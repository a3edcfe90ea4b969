// Problems that need the registers and shared memory of several multiprocessors, on clusters of 1, 2, 4, 8 or 16
// blocks. This is a file of its own, so that it is compiled at the same time as forward.cu.
#include "sinkhorn/cuda/cluster.h"

#include <map>
#include <mutex>
#include <tuple>

#include "sinkhorn/cuda/device_block.cuh"
#include "sinkhorn/cuda/sweep.h"
#include "sinkhorn/cuda/tile.cuh"

namespace hystar_fast {
namespace {

template <class T>
__global__ void __launch_bounds__(T::THREADS, T::BLOCKS) cluster_kernel(const __grid_constant__ Batch batch) {
#if __CUDA_ARCH__ >= 900  // an older architecture has no clusters, and this kernel is not launched
    __shared__ typename T::Shared shared;
    DeviceCluster<T::WARPS> block;
    const Problem problem(batch, blockIdx.x >> block.log2_blocks());
    if (TileSolver<T, DeviceCluster<T::WARPS>>(block, problem, shared).solve())
        check_feasibility_apart<T::WARPS>(batch, problem.index, reinterpret_cast<int*>(&shared));
#endif
}

struct Kernel {
    template <class T>
    const void* launch() const {
        return reinterpret_cast<const void*>(cluster_kernel<T>);
    }
};

struct Launcher {
    const Batch& batch;
    int64_t problems;
    int blocks;
    cudaStream_t stream;

    template <class T>
    void launch() const {
        ClusterLaunch launch(problems, T::THREADS, blocks, stream);
        check(cudaLaunchKernelEx(launch.get(), cluster_kernel<T>, batch), "the launch of the cluster kernel");
    }
};

int attribute(cudaDeviceAttr which, int device) {
    int value = 0;
    if (cudaDeviceGetAttribute(&value, which, device) != cudaSuccess) cudaGetLastError();
    return value;
}

// Every device with clusters has clusters of 8 blocks. Large chips have 16 if a kernel requests them.
Gpu describe_gpu(int device) {
    const int major = attribute(cudaDevAttrComputeCapabilityMajor, device);
    const int largest = major == 9 || major == 10 ? 16 : 8;
    return {attribute(cudaDevAttrMultiProcessorCount, device),
            attribute(cudaDevAttrClusterLaunch, device) != 0 ? largest : 0,
            attribute(cudaDevAttrCooperativeLaunch, device) != 0
                ? attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, device)
                : 0};
}

}  // namespace

Gpu gpu_here() {
    static std::mutex mutex;
    static std::map<int, Gpu> gpus;
    int device = 0;
    if (cudaGetDevice(&device) != cudaSuccess) {
        cudaGetLastError();
        return {0, 0, 0};
    }
    const std::lock_guard<std::mutex> lock(mutex);
    const auto gpu = gpus.find(device);
    return gpu != gpus.end() ? gpu->second : gpus.emplace(device, describe_gpu(device)).first->second;
}

// More than 8 blocks must be allowed first.
bool cluster_fits_here(const void* kernel, int threads, int blocks) {
    static std::mutex mutex;
    static std::map<std::tuple<int, const void*, int>, bool> known;
    int device = 0;
    cudaError_t error = cudaGetDevice(&device);
    const std::lock_guard<std::mutex> lock(mutex);
    const auto key = std::make_tuple(device, kernel, blocks);
    if (const auto found = known.find(key); found != known.end()) return found->second;
    if (error == cudaSuccess && blocks > 8)
        error = cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
    int active = 0;
    ClusterLaunch one(1, threads, blocks, nullptr);
    if (error == cudaSuccess) error = cudaOccupancyMaxActiveClusters(&active, kernel, one.get());
    if (error != cudaSuccess) cudaGetLastError();  // the answer is no; this must not become an error of a later call
    return known[key] = error == cudaSuccess && active > 0;
}

Choice choose_here(int64_t batch, int64_t n, int64_t m) {
    const Gpu gpu = gpu_here();
    Choice choice = choose(batch, n, m, gpu);
    if (choice.kind == Choice::CLUSTER) {
        const void* kernel = with_cluster(choice.shape, Kernel{});
        constexpr int THREADS = Cluster256::THREADS;
        static_assert(THREADS == Cluster512::THREADS && THREADS == Cluster768::THREADS);
        if (cluster_fits_here(kernel, THREADS, choice.blocks)) return choice;
        choice = choose_off_chip(batch, n, m, gpu);
    }
    return choice.kind == Choice::SWEEP && !sweep_fits_here(choice.shape) ? Choice{Choice::STREAM, 0, 0} : choice;
}

void launch_cluster(const Batch& batch, int64_t problems, const Choice& choice, cudaStream_t stream) {
    with_cluster(choice.shape, Launcher{batch, problems, choice.blocks, stream});
}

}  // namespace hystar_fast
