// The kernels of the CUDA Sinkhorn on the CPU: the same block algorithms, one block after the other.
#include "block.h"
#include "sinkhorn/cuda/implicit_gradient.cuh"
#include "sinkhorn/cuda/stream.cuh"
#include "sinkhorn/cuda/sweep.cuh"
#include "sinkhorn/cuda/unrolled_gradient.cuh"

using namespace hystar_fast;

namespace {

struct Tiles {
    const Batch& batch;
    int problems;
    uint64_t seed;

    template <class T>
    void launch() const {
        for (int b = 0; b < problems; ++b) {
            HostBlock<T::WARPS> on(seed + b, {sizeof(typename T::Shared)});
            const Problem problem(batch, b);
            on.launch([&](auto& block) {
                auto& shared = block.template shared<typename T::Shared>();
                if (TileSolver<T, HostBlock<T::WARPS>>(block, problem, shared).solve())
                    check_feasibility(block, problem, reinterpret_cast<int*>(&shared));
            }, b);
        }
    }
};

// One problem after the other, each on a cluster of `blocks`.
struct Clusters {
    const Batch& batch;
    int problems, blocks;
    uint64_t seed;

    template <class T>
    void launch() const {
        for (int b = 0; b < problems; ++b) {
            HostCluster<T::WARPS> on(seed + b, sizeof(typename T::Shared), blocks);
            const Problem problem(batch, b);
            on.launch([&](auto& block) {
                auto& shared = block.template shared<typename T::Shared>();
                if (TileSolver<T, HostCluster<T::WARPS>>(block, problem, shared).solve())
                    check_feasibility(static_cast<HostBlock<T::WARPS>&>(block), problem, reinterpret_cast<int*>(&shared));
            }, b * blocks);
        }
    }
};

void stream(const Batch& batch, int problems, uint64_t seed) {
    constexpr int WARPS = 8;
    using Block = HostBlock<WARPS>;
    Block on(seed, {sizeof(float) * Block::THREADS});
    for (int b = 0; b < problems; ++b) {
        const Problem problem(batch, b);
        const memory::Space memory("the workspace", sizeof(float) * Workspace::words(batch.n, batch.m));
        const Workspace work(reinterpret_cast<float*>(memory.at()), problem, 0);
        const int row_blocks = (batch.n + WARPS - 1) / WARPS, column_blocks = (batch.m + 31) / 32;
        const auto rows = [&](auto kernel) {
            for (int x = 0; x < row_blocks; ++x)
                on.launch([&](auto& block) { kernel(block, x * WARPS + block.warp()); }, x);
        };
        for (int k = 0; k < batch.n_iter; ++k) {
            rows([&](auto& block, int row) { stream_row(block, problem, work, row, k); });
            for (int x = 0; x < column_blocks; ++x)
                on.launch([&](auto& block) { stream_columns(block, problem, work, x, k, &block.template shared<float>()); }, x);
        }
        rows([&](auto& block, int row) { stream_plan(block, problem, work, row); });
        on.launch([&](auto& block) {
            if (stream_outcome(block, problem, work, &block.template shared<float>()))
                check_feasibility(block, problem, work.feasibility);
        });
    }
}

// The whole batch on a grid. The number of slots of the ring depends on the seed.
struct Sweeps {
    const Batch& batch;
    int problems, blocks;
    uint64_t seed;

    template <class S>
    void launch() const {
        const int stages = 2 + static_cast<int>(seed % 3);
        const memory::Space memory("the workspace",
                                   sizeof(float) * SweepWorkspace::words(problems, batch.n, batch.m, blocks));
        const SweepWorkspace work(reinterpret_cast<float*>(memory.at()), batch, problems, blocks);
        HostGrid<S::WARPS> on(seed, {sizeof(typename S::Shared), sizeof(float) * stages * S::SLOT}, blocks);
        on.launch([&](auto& block) {
            auto& shared = block.template shared<typename S::Shared>();
            Sweeper<S, HostGrid<S::WARPS>>(block, batch, work, shared, &block.template shared<float>(1), stages).solve();
        });
        outcome(work.rows);
    }
    void outcome(float* rows) const {
        constexpr int WARPS = 8;
        HostBlock<WARPS> on(seed, {sizeof(float) * WARPS});
        for (int b = 0; b < problems; ++b) {
            const Problem problem(batch, b);
            const Workspace work(rows, problem, b);
            on.launch([&](auto& block) {
                if (stream_outcome(block, problem, work, &block.template shared<float>()))
                    check_feasibility(block, problem, work.feasibility);
            }, b);
        }
    }
};

// One block or cluster takes all problems, as on a GPU that has room for one of them.
struct Gradients {
    const Batch& batch;
    const Upstream& upstream;
    int problems, blocks;
    bool implicit;
    uint64_t seed;

    template <class T, class Block, class Own>
    void solve(Block& block, Own& shared, float* history) const {
        for (int b = 0; b < problems; ++b) {
            const Problem problem(batch, b);
            if (implicit) TileImplicit<T, Block>(block, problem, shared, upstream).solve();
            else TileUnrolled<T, Block>(block, problem, shared, upstream, history).solve();
        }
    }

    template <class T>
    void launch() const {
        const memory::Space history("the history", sizeof(float) * History<T>::words(batch.n_iter));
        HostBlock<T::WARPS> on(seed, {sizeof(typename T::Shared)});
        on.launch([&](auto& block) {
            solve<T, HostBlock<T::WARPS>>(block, block.template shared<typename T::Shared>(),
                                          reinterpret_cast<float*>(history.at()));
        });
    }

    template <class T>
    void launch_cluster() const {
        const auto words = History<T>::words(batch.n_iter);
        const memory::Space histories("the history", sizeof(float) * words * blocks);
        HostCluster<T::WARPS> on(seed, sizeof(typename T::Shared), blocks);
        on.launch([&](auto& block) {
            solve<T, HostCluster<T::WARPS>>(block, block.template shared<typename T::Shared>(),
                                            reinterpret_cast<float*>(histories.at()) + block.rank() * words);
        });
    }
};

// The arrays of a batch. Outputs that a kernel does not have are null.
std::vector<memory::Array> arrays(const Batch& batch, int problems) {
    const size_t rows = sizeof(float) * problems * batch.n, columns = sizeof(float) * problems * batch.m;
    const size_t entries = static_cast<size_t>(problems) * batch.n * batch.m, each = sizeof(float) * problems;
    return {{"the cost", batch.cost, sizeof(float) * entries},
            {"the mask", batch.mask, entries},
            {"the plan", batch.plan, sizeof(float) * entries},
            {"u", batch.u, rows},
            {"v", batch.v, columns},
            {"the status", batch.status, each},
            {"the error", batch.error, each},
            {"the iterations", batch.iterations, each}};
}

}  // namespace

// The result of `choose`: kind, shape and blocks.
extern "C" void choose_host(int64_t problems, int64_t n, int64_t m, int multiprocessors, int cluster, int memory, int* chosen) {
    const Choice choice = choose(problems, n, m, {multiprocessors, cluster, memory});
    chosen[0] = choice.kind;
    chosen[1] = choice.shape;
    chosen[2] = choice.blocks;
}

extern "C" int cluster_shape_host(int index, int* shape) {
    const int count = sizeof(CLUSTER_SHAPES) / sizeof(CLUSTER_SHAPES[0]);
    if (index >= count) return 0;
    const ClusterShape& found = CLUSTER_SHAPES[index];
    const int described[] = {found.rows, found.columns, found.most};
    std::memcpy(shape, described, sizeof described);
    return 1;
}

// The arguments of sinkhorn_cuda_forward. Instead of stream and workspace it takes the kind, shape and blocks of the
// kernel, and the seed of the order of threads.
extern "C" void sinkhorn_host(const float* cost, const uint8_t* mask, float* plan, float* u, float* v, int* status,
                              float* error, int* iterations, int problems, int n, int m, double epsilon, int n_iter,
                              double tol, int kind, int shape, int blocks, uint64_t seed) {
    const Batch batch =
        make_batch(cost, mask, plan, u, v, status, error, iterations, n, m, epsilon, n_iter, tol);
    const memory::Known known(arrays(batch, problems));
    if (kind == Choice::TILE) with_tile(n, m, Tiles{batch, problems, seed});
    else if (kind == Choice::CLUSTER) with_cluster(shape, Clusters{batch, problems, blocks, seed});
    else if (kind == Choice::SWEEP) with_sweep(shape, has_vectors(batch), Sweeps{batch, problems, blocks, seed});
    else stream(batch, problems, seed);
}

// The result of `choose_gradient`: kind, shape and blocks.
extern "C" void choose_gradient_host(int64_t n, int64_t m, int multiprocessors, int cluster, int memory, int* chosen) {
    const Choice choice = choose_gradient(n, m, {multiprocessors, cluster, memory});
    chosen[0] = choice.kind;
    chosen[1] = choice.shape;
    chosen[2] = choice.blocks;
}

// Both gradients: the unrolled one from a cost, the implicit one from a plan. The other of the two is null.
extern "C" void sinkhorn_gradient_host(const float* cost, const uint8_t* mask, float* plan, const float* dplan,
                                       int* iterations, float* dcost, int problems, int n, int m, double epsilon, int n_iter,
                                       int kind, int blocks, uint64_t seed) {
    const Batch batch = make_batch(cost, mask, plan, nullptr, nullptr, nullptr, nullptr, iterations, n, m, epsilon,
                                   n_iter, 0.0);
    auto all = arrays(batch, problems);
    all.push_back({"dplan", dplan, sizeof(float) * problems * n * m});
    all.push_back({"dcost", dcost, sizeof(float) * problems * n * m});
    const memory::Known known(all);
    const Upstream upstream{dplan, dcost, static_cast<float>(1 / epsilon)};
    const Gradients gradients{batch, upstream, problems, blocks, plan != nullptr, seed};
    if (kind == Choice::TILE) with_gradient_tile(n, m, gradients);
    else gradients.launch_cluster<GradientCluster>();
}
