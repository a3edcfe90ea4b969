// The CUDA kernels of the forward pass of Sinkhorn, and the choice between them. sinkhorn.h describes the interface.
#include "sinkhorn/cuda/sinkhorn.h"

#include <algorithm>

#include "sinkhorn/cuda/cluster.h"
#include "sinkhorn/cuda/device_block.cuh"
#include "sinkhorn/cuda/stream.cuh"
#include "sinkhorn/cuda/sweep.h"
#include "sinkhorn/cuda/tile.cuh"

namespace hystar_fast {
namespace {

template <class T>
__global__ void __launch_bounds__(32 * T::WARPS, T::BLOCKS) tile_kernel(const __grid_constant__ Batch batch) {
    __shared__ typename T::Shared shared;
    DeviceBlock<T::WARPS> block;
    const Problem problem(batch, blockIdx.x);
    if (TileSolver<T, DeviceBlock<T::WARPS>>(block, problem, shared).solve())
        check_feasibility_apart<T::WARPS>(batch, blockIdx.x, reinterpret_cast<int*>(&shared));
}

constexpr int STREAM_WARPS = 8;
using StreamBlock = DeviceBlock<STREAM_WARPS>;

__global__ void __launch_bounds__(StreamBlock::THREADS) stream_row_kernel(Batch batch, float* workspace, int k) {
    StreamBlock block;
    const Problem problem(batch, blockIdx.y);
    const Workspace work(workspace, problem, blockIdx.y);
    stream_row(block, problem, work, static_cast<int>(blockIdx.x) * STREAM_WARPS + block.warp(), k);
}

__global__ void __launch_bounds__(StreamBlock::THREADS) stream_column_kernel(Batch batch, float* workspace, int k) {
    __shared__ float scratch[StreamBlock::THREADS];
    StreamBlock block;
    const Problem problem(batch, blockIdx.y);
    const Workspace work(workspace, problem, blockIdx.y);
    stream_columns(block, problem, work, static_cast<int>(blockIdx.x), k, scratch);
}

__global__ void __launch_bounds__(StreamBlock::THREADS) stream_plan_kernel(Batch batch, float* workspace) {
    StreamBlock block;
    const Problem problem(batch, blockIdx.y);
    const Workspace work(workspace, problem, blockIdx.y);
    stream_plan(block, problem, work, static_cast<int>(blockIdx.x) * STREAM_WARPS + block.warp());
}

__global__ void __launch_bounds__(StreamBlock::THREADS) stream_outcome_kernel(const __grid_constant__ Batch batch,
                                                                           float* workspace) {
    __shared__ float scratch[STREAM_WARPS];
    StreamBlock block;
    const Problem problem(batch, blockIdx.x);
    const Workspace work(workspace, problem, blockIdx.x);
    if (stream_outcome(block, problem, work, scratch)) check_feasibility_apart<STREAM_WARPS>(batch, blockIdx.x, work.feasibility);
}

struct TileLauncher {
    const Batch& batch;
    int64_t problems;
    cudaStream_t stream;

    template <class T>
    void launch() const {
        tile_kernel<T><<<static_cast<unsigned>(problems), 32 * T::WARPS, 0, stream>>>(batch);
        check(cudaGetLastError(), "the launch of the tile kernel");
    }
};

// Runs one iteration after the other for the whole batch.
void launch_stream(const Batch& batch, int64_t problems, float* workspace, cudaStream_t stream) {
    const auto count = static_cast<unsigned>(problems);
    const dim3 rows((batch.n + STREAM_WARPS - 1) / STREAM_WARPS, count), columns((batch.m + 31) / 32, count);
    for (int k = 0; k < batch.n_iter; ++k) {
        stream_row_kernel<<<rows, StreamBlock::THREADS, 0, stream>>>(batch, workspace, k);
        check(cudaGetLastError(), "the launch of the row kernel");
        stream_column_kernel<<<columns, StreamBlock::THREADS, 0, stream>>>(batch, workspace, k);
        check(cudaGetLastError(), "the launch of the column kernel");
    }
    stream_plan_kernel<<<rows, StreamBlock::THREADS, 0, stream>>>(batch, workspace);
    check(cudaGetLastError(), "the launch of the plan kernel");
}

void launch_outcome(const Batch& batch, int64_t problems, float* workspace, cudaStream_t stream) {
    const auto count = static_cast<unsigned>(problems);
    stream_outcome_kernel<<<count, StreamBlock::THREADS, 0, stream>>>(batch, workspace);
    check(cudaGetLastError(), "the launch of the outcome kernel");
}

}  // namespace

int64_t sinkhorn_cuda_workspace(int64_t batch, int64_t n, int64_t m) {
    const Choice choice = choose_here(batch, n, m);
    const int rows = static_cast<int>(n), columns = static_cast<int>(m);
    const int64_t words = choice.kind == Choice::SWEEP    ? sweep_words(batch, rows, columns, choice)
                          : choice.kind == Choice::STREAM ? batch * Workspace::words(rows, columns)
                                                          : 0;
    return words * static_cast<int64_t>(sizeof(float));
}

void sinkhorn_cuda_forward(uintptr_t cost, uintptr_t mask, uintptr_t plan, uintptr_t u, uintptr_t v, uintptr_t status,
                           uintptr_t error, uintptr_t iterations, int64_t batch, int64_t n, int64_t m, double epsilon,
                           int64_t n_iter, double tol, uintptr_t stream, uintptr_t workspace) {
    if (batch == 0 || n == 0 || m == 0) return;
    const Choice choice = choose_here(batch, n, m);
    if ((choice.kind == Choice::STREAM || choice.kind == Choice::SWEEP) && workspace == 0)
        throw std::runtime_error("sinkhorn: this size needs a workspace");
    const Batch all = make_batch(reinterpret_cast<const float*>(cost), reinterpret_cast<const uint8_t*>(mask),
                                 reinterpret_cast<float*>(plan), reinterpret_cast<float*>(u),
                                 reinterpret_cast<float*>(v), reinterpret_cast<int*>(status),
                                 reinterpret_cast<float*>(error), reinterpret_cast<int*>(iterations),
                                 static_cast<int>(n), static_cast<int>(m), epsilon, static_cast<int>(n_iter), tol);
    const auto on = reinterpret_cast<cudaStream_t>(stream);
    if (choice.kind == Choice::SWEEP) {
        float* rows = launch_sweep(all, batch, choice, reinterpret_cast<float*>(workspace), on);
        return launch_outcome(all, batch, rows, on);
    }
    // a grid has at most 65535 blocks in y, which counts the problems when streaming, and 2^31 - 1 in x
    const int64_t at_once = choice.kind == Choice::STREAM ? 65535 : 0x7fffffff / choice.blocks;
    for (int64_t first = 0; first < batch; first += at_once) {
        const Batch part = all.from(first);
        const int64_t problems = std::min(batch - first, at_once);
        if (choice.kind == Choice::TILE) {
            with_tile(n, m, TileLauncher{part, problems, on});
        } else if (choice.kind == Choice::CLUSTER) {
            launch_cluster(part, problems, choice, on);
        } else {
            float* part_of_workspace = reinterpret_cast<float*>(workspace) + first * Workspace::words(all.n, all.m);
            launch_stream(part, problems, part_of_workspace, on);
            launch_outcome(part, problems, part_of_workspace, on);
        }
    }
}

}  // namespace hystar_fast
