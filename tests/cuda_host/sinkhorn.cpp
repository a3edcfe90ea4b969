// The kernels of csrc/sinkhorn_cuda.cu on the CPU: the same block algorithms, blocks run one after the other.
#include "block.h"
#include "sinkhorn_cuda_stream.cuh"
#include "sinkhorn_cuda_tile.cuh"

using namespace hystar_fast;

namespace {

struct Tiles {
    const Batch& batch;
    int problems;
    uint64_t seed;

    template <class T>
    void launch() const {
        for (int b = 0; b < problems; ++b) {
            HostBlock<T::WARPS> on(seed + b);
            Poisoned<typename T::Shared> shared;
            const Problem problem(batch, b);
            on.launch([&](auto& block) {
                if (TileSolver<T, HostBlock<T::WARPS>>(block, problem, shared.value).solve())
                    settle(block, problem, reinterpret_cast<int*>(&shared.value));
            });
        }
    }
};

void stream(const Batch& batch, int problems, uint64_t seed) {
    constexpr int WARPS = 8;
    using Block = HostBlock<WARPS>;
    Block on(seed);
    for (int b = 0; b < problems; ++b) {
        const Problem problem(batch, b);
        std::vector<float> memory(Workspace::words(batch.n, batch.m), NAN);
        const Workspace work(memory.data(), problem, 0);
        Poisoned<float[Block::THREADS]> scratch;
        const int row_blocks = (batch.n + WARPS - 1) / WARPS, column_blocks = (batch.m + 31) / 32;
        const auto rows = [&](auto kernel) {
            for (int x = 0; x < row_blocks; ++x)
                on.launch([&](auto& block) { kernel(block, x * WARPS + block.warp()); });
        };
        for (int k = 0; k < batch.n_iter; ++k) {
            rows([&](auto& block, int row) { stream_row(block, problem, work, row, k); });
            for (int x = 0; x < column_blocks; ++x)
                on.launch([&](auto& block) { stream_columns(block, problem, work, x, k, scratch.value); });
        }
        rows([&](auto& block, int row) { stream_plan(block, problem, work, row); });
        on.launch([&](auto& block) {
            if (stream_outcome(block, problem, work, scratch.value)) settle(block, problem, work.settling);
        });
    }
}

}  // namespace

// The arguments of sinkhorn_cuda_forward, with the seed of the order of threads in the place of stream and workspace.
// `streaming` takes the streaming kernels whatever the size.
extern "C" void sinkhorn_host(const float* cost, const uint8_t* mask, float* plan, float* u, float* v, int* status,
                              float* error, int* iterations, int problems, int n, int m, double epsilon, int n_iter,
                              double tol, int streaming, uint64_t seed) {
    const Batch batch =
        make_batch(cost, mask, plan, u, v, status, error, iterations, n, m, epsilon, n_iter, tol);
    if (streaming != 0 || !with_tile(n, m, Tiles{batch, problems, seed})) stream(batch, problems, seed);
}
