// The CUDA kernels of StyleNCE. style_nce.h describes the interface.
#include "style_nce/cuda/style_nce.h"

#include "sinkhorn/cuda/sinkhorn.h"
#include "sinkhorn/cuda/device_block.cuh"
#include "style_nce/cuda/rows.cuh"

namespace hystar_fast {
namespace {

using style_nce_cuda::Job;

constexpr int WARPS = 4;
using Rows = DeviceBlock<WARPS>;

struct Side {
    const float* data;
    int64_t stride;
};

__global__ void __launch_bounds__(Rows::THREADS) normalise_kernel(Side query, Side target, int n, int d, float* units,
                                                                 float* lengths) {
    __shared__ float scratch[WARPS];
    Rows block;
    const int64_t row = blockIdx.x;
    const Side side = row < n ? query : target;
    style_nce_cuda::unit(block, side.data + (row < n ? row : row - n) * side.stride, d, units + row * d, lengths + row,
                         scratch);
}

__global__ void __launch_bounds__(Rows::THREADS) cost_kernel(const __grid_constant__ Job job) {
    Rows block;
    style_nce_cuda::cost_row(block, job, static_cast<int>(blockIdx.x) * WARPS + block.warp());
}

__global__ void __launch_bounds__(Rows::THREADS) loss_kernel(const __grid_constant__ Job job) {
    __shared__ float scratch[WARPS];
    Rows block;
    style_nce_cuda::loss_row(block, job, static_cast<int>(blockIdx.x) * WARPS + block.warp());
    style_nce_cuda::mean_of_losses(block, job, static_cast<int>(gridDim.x), scratch);
}

__global__ void __launch_bounds__(Rows::THREADS)
    project_kernel(const __grid_constant__ style_nce_cuda::Projection projection) {
    __shared__ float scratch[WARPS];
    Rows block;
    style_nce_cuda::project_row(block, projection, blockIdx.x, scratch);
}

}  // namespace

void style_nce_cuda_normalise(uintptr_t query, int64_t query_stride, uintptr_t target, int64_t target_stride, int64_t n,
                              int64_t d, uintptr_t units, uintptr_t lengths, uintptr_t stream) {
    const Side left{reinterpret_cast<const float*>(query), query_stride};
    const Side right{reinterpret_cast<const float*>(target), target_stride};
    normalise_kernel<<<static_cast<unsigned>(2 * n), Rows::THREADS, 0, reinterpret_cast<cudaStream_t>(stream)>>>(
        left, right, static_cast<int>(n), static_cast<int>(d), reinterpret_cast<float*>(units),
        reinterpret_cast<float*>(lengths));
    check(cudaGetLastError(), "the launch of the kernel that normalises");
}

int64_t style_nce_cuda_workspace(int64_t n) {
    return 4 * style_nce_cuda::Workspace::words(n) + sinkhorn_cuda_workspace(1, n, n);
}

void style_nce_cuda_forward(uintptr_t sim, uintptr_t lengths, uintptr_t mask, int64_t n, double temperature, double gamma,
                            double lam, double epsilon, int64_t n_iter, int weights, uintptr_t loss, bool mean,
                            uintptr_t slope, uintptr_t stream, uintptr_t workspace) {
    const style_nce_cuda::Workspace work(reinterpret_cast<void*>(workspace), n);
    const Job job = style_nce_cuda::make_job(
        reinterpret_cast<const float*>(sim), reinterpret_cast<const float*>(lengths), reinterpret_cast<const uint8_t*>(mask),
        reinterpret_cast<float*>(slope), reinterpret_cast<float*>(loss), static_cast<int>(n), mean, weights, temperature,
        gamma, lam, epsilon, work);
    const auto grid = static_cast<unsigned>((n + WARPS - 1) / WARPS);
    const auto on = reinterpret_cast<cudaStream_t>(stream);
    cost_kernel<<<grid, Rows::THREADS, 0, on>>>(job);
    check(cudaGetLastError(), "the launch of the cost kernel");
    if (job.weights != UNIFORM)
        sinkhorn_cuda_forward(reinterpret_cast<uintptr_t>(work.cost), 0, slope, reinterpret_cast<uintptr_t>(work.u),
                              reinterpret_cast<uintptr_t>(work.v), reinterpret_cast<uintptr_t>(work.status),
                              reinterpret_cast<uintptr_t>(work.error), reinterpret_cast<uintptr_t>(work.iterations), 1, n, n,
                              job.weights == PAPER ? epsilon : lam, n_iter, 0.0, stream,
                              reinterpret_cast<uintptr_t>(work.sinkhorn));
    loss_kernel<<<grid, Rows::THREADS, 0, on>>>(job);
    check(cudaGetLastError(), "the launch of the loss kernel");
}

void style_nce_cuda_project(uintptr_t dquery, uintptr_t dtarget, uintptr_t units, uintptr_t lengths, int64_t n, int64_t d,
                            uintptr_t dloss, int64_t dloss_stride, double scale, uintptr_t stream) {
    const style_nce_cuda::Projection projection{
        reinterpret_cast<float*>(dquery),        reinterpret_cast<float*>(dtarget),     reinterpret_cast<const float*>(units),
        reinterpret_cast<const float*>(lengths), reinterpret_cast<const float*>(dloss), dloss_stride, n, d,
        static_cast<float>(scale)};
    const int64_t sides = (dquery != 0) + (dtarget != 0);
    if (sides == 0) return;
    project_kernel<<<static_cast<unsigned>(sides * n), Rows::THREADS, 0, reinterpret_cast<cudaStream_t>(stream)>>>(
        projection);
    check(cudaGetLastError(), "the launch of the kernel that projects");
}

}  // namespace hystar_fast
