// Problems that take the registers and shared memory of several multiprocessors: one source for clusters of 1, 2, 4, 8
// and 16 blocks. A file of its own: it is compiled beside sinkhorn_cuda.cu.
#include "sinkhorn_cuda_cluster.h"

#include <map>
#include <mutex>
#include <tuple>

#include "sinkhorn_cuda_device.cuh"
#include "sinkhorn_cuda_tile.cuh"

namespace hystar_fast {
namespace {

template <class T>
__global__ void __launch_bounds__(T::THREADS, T::BLOCKS) cluster_kernel(const __grid_constant__ Batch batch) {
#if __CUDA_ARCH__ >= 900  // below there are no clusters, and nothing is launched
    __shared__ typename T::Shared shared;
    DeviceCluster<T::WARPS> block;
    const Problem problem(batch, blockIdx.x >> block.log2_blocks());
    if (TileSolver<T, DeviceCluster<T::WARPS>>(block, problem, shared).solve())
        settle_apart<T::WARPS>(batch, problem.index, reinterpret_cast<int*>(&shared));
#endif
}

// A launch of `problems` on clusters of `blocks`. The configuration points into this object.
class Launch {
  public:
    template <class T>
    static Launch of(int64_t problems, int blocks, cudaStream_t stream) {
        Launch launch;
        launch.config_.gridDim = dim3(static_cast<unsigned>(problems * blocks));
        launch.config_.blockDim = dim3(T::THREADS);
        launch.config_.stream = stream;
        launch.cluster_.id = cudaLaunchAttributeClusterDimension;
        launch.cluster_.val.clusterDim.x = static_cast<unsigned>(blocks);
        launch.cluster_.val.clusterDim.y = launch.cluster_.val.clusterDim.z = 1;
        return launch;
    }
    const cudaLaunchConfig_t* get() {
        config_.attrs = &cluster_;
        config_.numAttrs = 1;
        return &config_;
    }

  private:
    cudaLaunchConfig_t config_{};
    cudaLaunchAttribute cluster_{};
};

// Whether the current device holds such a cluster; more than 8 blocks have to be allowed first.
struct Fits {
    int blocks;

    template <class T>
    bool launch() const {
        const auto kernel = cluster_kernel<T>;
        cudaError_t error = cudaSuccess;
        if (blocks > 8)
            error = cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
        int active = 0;
        Launch one = Launch::of<T>(1, blocks, nullptr);
        if (error == cudaSuccess) error = cudaOccupancyMaxActiveClusters(&active, kernel, one.get());
        if (error != cudaSuccess) cudaGetLastError();  // a refusal is an answer, not an error of the caller's
        return error == cudaSuccess && active > 0;
    }
};

struct Launcher {
    const Batch& batch;
    int64_t problems;
    int blocks;
    cudaStream_t stream;

    template <class T>
    void launch() const {
        Launch launch = Launch::of<T>(problems, blocks, stream);
        check(cudaLaunchKernelEx(launch.get(), cluster_kernel<T>, batch), "the launch of the cluster kernel");
    }
};

int attribute(cudaDeviceAttr which, int device) {
    int value = 0;
    if (cudaDeviceGetAttribute(&value, which, device) != cudaSuccess) cudaGetLastError();
    return value;
}

// A cluster of 8 runs wherever clusters do; 16 on request, on the large chips.
Gpu describe_gpu(int device) {
    const int major = attribute(cudaDevAttrComputeCapabilityMajor, device);
    const int largest = major == 9 || major == 10 ? 16 : 8;
    return {attribute(cudaDevAttrMultiProcessorCount, device),
            attribute(cudaDevAttrClusterLaunch, device) != 0 ? largest : 0};
}

}  // namespace

Choice choose_here(int64_t batch, int64_t n, int64_t m) {
    static std::mutex mutex;
    static std::map<int, Gpu> gpus;
    static std::map<std::tuple<int, int, int>, bool> fits;
    int device = 0;
    if (cudaGetDevice(&device) != cudaSuccess) {
        cudaGetLastError();
        return choose(batch, n, m, Gpu{0, 0});
    }
    const std::lock_guard<std::mutex> lock(mutex);
    auto gpu = gpus.find(device);
    if (gpu == gpus.end()) gpu = gpus.emplace(device, describe_gpu(device)).first;
    const Choice choice = choose(batch, n, m, gpu->second);
    if (choice.kind != Choice::CLUSTER) return choice;
    const auto key = std::make_tuple(device, choice.shape, choice.blocks);
    auto known = fits.find(key);
    if (known == fits.end()) known = fits.emplace(key, with_cluster(choice.shape, Fits{choice.blocks})).first;
    return known->second ? choice : Choice{Choice::STREAM, 0, 0};
}

void launch_cluster(const Batch& batch, int64_t problems, const Choice& choice, cudaStream_t stream) {
    with_cluster(choice.shape, Launcher{batch, problems, choice.blocks, stream});
}

}  // namespace hystar_fast
