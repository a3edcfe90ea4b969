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
            HostBlock<T::WARPS> on(seed + b);
            Poisoned<typename T::Shared> shared;
            const Problem problem(batch, b);
            on.launch([&](auto& block) {
                if (TileSolver<T, HostBlock<T::WARPS>>(block, problem, shared.value).solve())
                    check_feasibility(block, problem, reinterpret_cast<int*>(&shared.value));
            });
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
            std::vector<Poisoned<typename T::Shared>> shared(blocks);
            HostCluster<T::WARPS> on(seed + b, shared);
            const Problem problem(batch, b);
            on.launch([&](auto& block) {
                auto& own = shared[block.rank()].value;
                if (TileSolver<T, HostCluster<T::WARPS>>(block, problem, own).solve())
                    check_feasibility(static_cast<HostBlock<T::WARPS>&>(block), problem, reinterpret_cast<int*>(&own));
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
            if (stream_outcome(block, problem, work, scratch.value)) check_feasibility(block, problem, work.feasibility);
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
        std::vector<float> memory(SweepWorkspace::words(problems, batch.n, batch.m, blocks), NAN);
        const SweepWorkspace work(memory.data(), batch, problems, blocks);
        std::vector<Poisoned<typename S::Shared>> shared(blocks);
        std::vector<float> rings(static_cast<size_t>(blocks) * stages * S::SLOT, NAN);
        HostGrid<S::WARPS> on(seed, blocks);
        on.launch([&](auto& block) {
            float* ring = rings.data() + block.rank() * stages * S::SLOT;
            Sweeper<S, HostGrid<S::WARPS>>(block, batch, work, shared[block.rank()].value, ring, stages).solve();
        });
        outcome(work.rows);
    }
    void outcome(float* rows) const {
        constexpr int WARPS = 8;
        HostBlock<WARPS> on(seed);
        for (int b = 0; b < problems; ++b) {
            const Problem problem(batch, b);
            const Workspace work(rows, problem, b);
            Poisoned<float[WARPS]> scratch;
            on.launch([&](auto& block) {
                if (stream_outcome(block, problem, work, scratch.value)) check_feasibility(block, problem, work.feasibility);
            });
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
        std::vector<float> history(History<T>::words(batch.n_iter), NAN);
        Poisoned<typename T::Shared> shared;
        HostBlock<T::WARPS> on(seed);
        on.launch([&](auto& block) { solve<T, HostBlock<T::WARPS>>(block, shared.value, history.data()); });
    }

    template <class T>
    void launch_cluster() const {
        const auto words = History<T>::words(batch.n_iter);
        std::vector<float> histories(words * blocks, NAN);
        std::vector<Poisoned<typename T::Shared>> shared(blocks);
        HostCluster<T::WARPS> on(seed, shared);
        on.launch([&](auto& block) {
            solve<T, HostCluster<T::WARPS>>(block, shared[block.rank()].value, histories.data() + block.rank() * words);
        });
    }
};

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
    const Upstream upstream{dplan, dcost, static_cast<float>(1 / epsilon)};
    const Gradients gradients{batch, upstream, problems, blocks, plan != nullptr, seed};
    if (kind == Choice::TILE) with_gradient_tile(n, m, gradients);
    else gradients.launch_cluster<GradientCluster>();
}
