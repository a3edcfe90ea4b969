// One launch for all iterations of problems that do not fit on chip. This is a file of its own, so that it is compiled
// at the same time as forward.cu.
#include "sinkhorn/cuda/sweep.h"

#include <map>
#include <mutex>
#include <tuple>

#include "sinkhorn/cuda/cluster.h"
#include "sinkhorn/cuda/device_block.cuh"
#include "sinkhorn/cuda/sweep.cuh"

namespace hystar_fast {
namespace {

template <class S>
__global__ void __launch_bounds__(S::THREADS, 1)
    sweep_kernel(const __grid_constant__ Batch batch, const __grid_constant__ SweepWorkspace work, int stages) {
    extern __shared__ Vector<4> ring[];
    __shared__ typename S::Shared shared;
    DeviceGrid<S::WARPS> block;
    Sweeper<S, DeviceGrid<S::WARPS>>(block, batch, work, shared, ring->value, stages).solve();
}

int ring_bytes(int shape) {
    return sweep_stages(gpu_here(), shape) * static_cast<int>(sizeof(float) * SweepShape<1, 1>::SLOT);
}

// Checks that the kernel can run. More than 48 KiB of shared memory must be allowed first.
struct Fits {
    int shape;

    template <class S>
    cudaError_t launch() const {
        const auto kernel = reinterpret_cast<const void*>(sweep_kernel<S>);
        int blocks = 0;
        cudaError_t error =
            cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, ring_bytes(shape));
        if (error == cudaSuccess)
            error = cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, kernel, S::THREADS, ring_bytes(shape));
        return error == cudaSuccess && blocks == 0 ? cudaErrorInvalidConfiguration : error;
    }
};

struct SweepLauncher {
    const Batch& batch;
    const SweepWorkspace& work;
    const Choice& choice;
    cudaStream_t stream;

    template <class S>
    void launch() const {
        cudaLaunchConfig_t config{};
        config.gridDim = dim3(static_cast<unsigned>(choice.blocks));
        config.blockDim = dim3(S::THREADS);
        config.dynamicSmemBytes = static_cast<size_t>(ring_bytes(choice.shape));
        config.stream = stream;
        cudaLaunchAttribute cooperative{};
        cooperative.id = cudaLaunchAttributeCooperative;
        cooperative.val.cooperative = 1;
        config.attrs = &cooperative;
        config.numAttrs = 1;
        const int stages = sweep_stages(gpu_here(), choice.shape);
        check(cudaLaunchKernelEx(&config, sweep_kernel<S>, batch, work, stages), "the launch of the sweeping kernel");
    }
};

}  // namespace

bool sweep_fits_here(int shape) {
    static std::mutex mutex;
    static std::map<std::tuple<int, int>, bool> known;
    int device = 0;
    if (cudaGetDevice(&device) != cudaSuccess) {
        cudaGetLastError();
        return false;
    }
    const std::lock_guard<std::mutex> lock(mutex);
    const auto key = std::make_tuple(device, shape);
    if (const auto found = known.find(key); found != known.end()) return found->second;
    bool fits = true;
    for (const bool vectors : {true, false})
        if (with_sweep(shape, vectors, Fits{shape}) != cudaSuccess) {
            cudaGetLastError();  // the answer is no; this must not become an error of a later call
            fits = false;
        }
    return known[key] = fits;
}

int64_t sweep_words(int64_t problems, int n, int m, const Choice& choice) {
    return SweepWorkspace::words(problems, n, m, choice.blocks);
}

float* launch_sweep(const Batch& batch, int64_t problems, const Choice& choice, float* workspace, cudaStream_t stream) {
    const SweepWorkspace work(workspace, batch, problems, choice.blocks);
    with_sweep(choice.shape, has_vectors(batch), SweepLauncher{batch, work, choice, stream});
    return work.rows;
}

}  // namespace hystar_fast
