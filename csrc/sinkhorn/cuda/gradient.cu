// The CUDA kernels of both gradients of Sinkhorn. sinkhorn.h describes the interface.
#include <algorithm>

#include "sinkhorn/cuda/sinkhorn.h"
#include "sinkhorn/cuda/cluster.h"
#include "sinkhorn/cuda/device_block.cuh"
#include "sinkhorn/cuda/implicit_gradient.cuh"
#include "sinkhorn/cuda/unrolled_gradient.cuh"

namespace hystar_fast {
namespace {

// A block or cluster takes one problem after the other. It has one history, which all its problems use.
template <class T, class Block>
__device__ __forceinline__ void unrolled_problems(Block& block, typename T::Shared& shared, const Batch& batch,
                                                  const Upstream& upstream, float* histories, int64_t problems, int blocks) {
    float* history = histories + blockIdx.x * History<T>::words(batch.n_iter);
    for (int64_t index = blockIdx.x / blocks; index < problems; index += gridDim.x / blocks) {
        const Problem problem(batch, index);
        TileUnrolled<T, Block>(block, problem, shared, upstream, history).solve();
    }
}

template <class T, class Block>
__device__ __forceinline__ void implicit_problems(Block& block, typename T::Shared& shared, const Batch& batch,
                                                  const Upstream& upstream, int64_t problems, int blocks) {
    for (int64_t index = blockIdx.x / blocks; index < problems; index += gridDim.x / blocks) {
        const Problem problem(batch, index);
        TileImplicit<T, Block>(block, problem, shared, upstream).solve();
    }
}

template <class T>
__global__ void __launch_bounds__(T::THREADS, T::BLOCKS)
    unrolled_kernel(const __grid_constant__ Batch batch, const __grid_constant__ Upstream upstream, float* histories,
                    int64_t problems) {
    __shared__ typename T::Shared shared;
    DeviceBlock<T::WARPS> block;
    unrolled_problems<T>(block, shared, batch, upstream, histories, problems, 1);
}

template <class T>
__global__ void __launch_bounds__(T::THREADS, T::BLOCKS)
    implicit_kernel(const __grid_constant__ Batch batch, const __grid_constant__ Upstream upstream, int64_t problems) {
    __shared__ typename T::Shared shared;
    DeviceBlock<T::WARPS> block;
    implicit_problems<T>(block, shared, batch, upstream, problems, 1);
}

template <class T>
__global__ void __launch_bounds__(T::THREADS, T::BLOCKS)
    unrolled_cluster_kernel(const __grid_constant__ Batch batch, const __grid_constant__ Upstream upstream,
                            float* histories, int64_t problems) {
#if __CUDA_ARCH__ >= 900  // an older architecture has no clusters, and this kernel is not launched
    __shared__ typename T::Shared shared;
    DeviceCluster<T::WARPS> block;
    unrolled_problems<T>(block, shared, batch, upstream, histories, problems, block.blocks());
#endif
}

template <class T>
__global__ void __launch_bounds__(T::THREADS, T::BLOCKS)
    implicit_cluster_kernel(const __grid_constant__ Batch batch, const __grid_constant__ Upstream upstream, int64_t problems) {
#if __CUDA_ARCH__ >= 900
    __shared__ typename T::Shared shared;
    DeviceCluster<T::WARPS> block;
    implicit_problems<T>(block, shared, batch, upstream, problems, block.blocks());
#endif
}

Choice choose_gradient_here(int64_t n, int64_t m) {
    using T = GradientCluster;
    const Choice choice = choose_gradient(n, m, gpu_here());
    if (choice.kind != Choice::CLUSTER) return choice;
    const bool fits =
        cluster_fits_here(reinterpret_cast<const void*>(unrolled_cluster_kernel<T>), T::THREADS, choice.blocks) &&
        cluster_fits_here(reinterpret_cast<const void*>(implicit_cluster_kernel<T>), T::THREADS, choice.blocks);
    return fits ? choice : Choice{Choice::STREAM, 0, 0};
}

// Number of blocks or clusters that share the problems of a batch, and number of floats of history that each has.
struct Shares {
    int64_t count, words;
};
struct Share {
    int64_t batch, n_iter;
    int blocks;
    Shares* shares;

    template <class T>
    void launch() const {
        constexpr int64_t MOST = int64_t{256} << 20;  // bytes of history
        const int64_t words = History<T>::words(n_iter) * blocks;
        const int64_t at_once = std::max(1, gpu_here().multiprocessors * T::BLOCKS / blocks);
        const int64_t held = std::max<int64_t>(1, MOST / (words * static_cast<int64_t>(sizeof(float))));
        *shares = {std::min({batch, at_once, held}), words};
    }
};

Shares share(const Choice& choice, int64_t batch, int64_t n, int64_t m, int64_t n_iter) {
    Shares shares{};
    const Share among{batch, n_iter, choice.blocks, &shares};
    if (choice.kind == Choice::TILE) with_gradient_tile(n, m, among);
    else among.launch<GradientCluster>();
    return shares;
}

struct Gradient {
    const Batch& batch;
    const Upstream& upstream;
    float* histories;  // null: the implicit gradient
    int64_t problems, count;
    cudaStream_t stream;

    template <class T>
    void launch() const {
        const auto grid = static_cast<unsigned>(count);
        if (histories != nullptr)
            unrolled_kernel<T><<<grid, T::THREADS, 0, stream>>>(batch, upstream, histories, problems);
        else implicit_kernel<T><<<grid, T::THREADS, 0, stream>>>(batch, upstream, problems);
        check(cudaGetLastError(), "the launch of the gradient kernel");
    }
    void launch_cluster(int blocks) const {
        using T = GradientCluster;
        ClusterLaunch launch(count, T::THREADS, blocks, stream);
        const cudaError_t error =
            histories != nullptr
                ? cudaLaunchKernelEx(launch.get(), unrolled_cluster_kernel<T>, batch, upstream, histories, problems)
                : cudaLaunchKernelEx(launch.get(), implicit_cluster_kernel<T>, batch, upstream, problems);
        check(error, "the launch of the gradient kernel on clusters");
    }
};

void take_gradient(const Batch& batch, const Upstream& upstream, uintptr_t histories, int64_t problems, uintptr_t stream) {
    const Choice choice = choose_gradient_here(batch.n, batch.m);
    if (choice.kind == Choice::STREAM) throw std::runtime_error("sinkhorn: no gradient kernel holds this size");
    const int64_t count = share(choice, problems, batch.n, batch.m, histories != 0 ? batch.n_iter : 1).count;
    const Gradient gradient{batch, upstream, reinterpret_cast<float*>(histories), problems, count,
                            reinterpret_cast<cudaStream_t>(stream)};
    if (choice.kind == Choice::TILE) with_gradient_tile(batch.n, batch.m, gradient);
    else gradient.launch_cluster(choice.blocks);
}

Upstream make_upstream(uintptr_t dplan, uintptr_t dcost, double epsilon) {
    return {reinterpret_cast<const float*>(dplan), reinterpret_cast<float*>(dcost), static_cast<float>(1 / epsilon)};
}

}  // namespace

bool sinkhorn_cuda_has_gradient(int64_t n, int64_t m) { return choose_gradient_here(n, m).kind != Choice::STREAM; }

int64_t sinkhorn_cuda_unrolled_workspace(int64_t batch, int64_t n, int64_t m, int64_t n_iter) {
    const Shares shares = share(choose_gradient_here(n, m), batch, n, m, n_iter);
    return shares.count * shares.words * static_cast<int64_t>(sizeof(float));
}

void sinkhorn_cuda_unrolled_backward(uintptr_t cost, uintptr_t mask, uintptr_t dplan, uintptr_t iterations,
                                     uintptr_t dcost, int64_t batch, int64_t n, int64_t m, double epsilon, int64_t n_iter,
                                     uintptr_t stream, uintptr_t workspace) {
    if (batch == 0 || n == 0 || m == 0) return;
    const Batch all = make_batch(reinterpret_cast<const float*>(cost), reinterpret_cast<const uint8_t*>(mask), nullptr,
                                 nullptr, nullptr, nullptr, nullptr, reinterpret_cast<int*>(iterations),
                                 static_cast<int>(n), static_cast<int>(m), epsilon, static_cast<int>(n_iter), 0.0);
    take_gradient(all, make_upstream(dplan, dcost, epsilon), workspace, batch, stream);
}

void sinkhorn_cuda_implicit_backward(uintptr_t plan, uintptr_t dplan, uintptr_t iterations, uintptr_t dcost, int64_t batch,
                                     int64_t n, int64_t m, double epsilon, uintptr_t stream) {
    if (batch == 0 || n == 0 || m == 0) return;
    const Batch all = make_batch(nullptr, nullptr, reinterpret_cast<float*>(plan), nullptr, nullptr, nullptr, nullptr,
                                 reinterpret_cast<int*>(iterations), static_cast<int>(n), static_cast<int>(m), epsilon, 1,
                                 0.0);
    take_gradient(all, make_upstream(dplan, dcost, epsilon), 0, batch, stream);
}

}  // namespace hystar_fast
