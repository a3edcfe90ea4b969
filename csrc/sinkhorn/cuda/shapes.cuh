// The shapes of the kernels: how a problem is distributed over one block, over a cluster of blocks, or over a grid that
// sweeps over it. And the choice between these kernels and streaming. Constants and pure functions, without CUDA.
#pragma once

#include "sinkhorn/cuda/feasibility.cuh"

namespace hystar_fast {

// `count` floats rounded up to an odd multiple of 16 bytes. Then vector reads of different lanes use different banks.
constexpr int pitch(int count) { return (count + 3) / 4 % 2 == 1 ? (count + 3) / 4 * 4 : (count + 3) / 4 * 4 + 4; }

// The most rows or columns of a problem on chip, 2^10. One iteration changes a scaling by at most this factor.
constexpr int LARGEST_ON_CHIP = 1024;

// A block holds ROWS x LANE_ROWS x WARPS rows and all columns. A cluster has up to CLUSTER blocks, one below the other.
template <int ROWS_, int COLUMNS_, int LANE_COLUMNS_, int WARPS_, int BLOCKS_, int CLUSTER_ = 1>
struct Tile {
    static constexpr int BLOCKS = BLOCKS_;  // blocks for which a multiprocessor must have enough registers
    static constexpr int ROWS = ROWS_, COLUMNS = COLUMNS_, LANE_COLUMNS = LANE_COLUMNS_, WARPS = WARPS_;
    static constexpr int CLUSTER = CLUSTER_;
    static constexpr int LANE_ROWS = 32 / LANE_COLUMNS, THREADS = 32 * WARPS;
    static constexpr int MAX_ROWS = ROWS * LANE_ROWS * WARPS, MAX_COLUMNS = COLUMNS * LANE_COLUMNS;
    static constexpr int ROW_PITCH = pitch(ROWS), COLUMN_PITCH = pitch(COLUMNS);
    static constexpr int ROW_SLOTS = WARPS * LANE_ROWS * ROW_PITCH, COLUMN_SLOTS = LANE_COLUMNS * COLUMN_PITCH;
    static constexpr int STAGED_PITCH = MAX_COLUMNS + LANE_COLUMNS;  // no two lanes use the same bank
    static constexpr int OWNED_ROWS = most_owned<ROWS, LANE_COLUMNS / 2, 1>();
    static constexpr int OWNED_COLUMNS = most_owned<COLUMNS, 16, LANE_COLUMNS>();
    static constexpr int CHUNKS = MAX_COLUMNS / 32;  // chunks of columns, distributed over the blocks of a cluster
    static constexpr int SENT = CLUSTER > 1 ? 32 * (CHUNKS + CLUSTER - 1) : 1;

    // A scaling above FAR or below 1 / FAR is absorbed. This is checked in every fourth iteration, so by the factor
    // above no scaling exceeds 2^56.
    static constexpr float FAR = CLUSTER == 1 ? 16777216.0f : 65536.0f;

    static_assert(CLUSTER > 1 || MAX_ROWS == MAX_COLUMNS);
    static_assert(MAX_ROWS * CLUSTER <= LARGEST_ON_CHIP && MAX_COLUMNS <= LARGEST_ON_CHIP);
    static_assert(LANE_ROWS > 1 || (COLUMNS % 8 == 0 && WARPS > 1));

    // The scalings a, b and the potentials, by slot: the values of a lane are contiguous and padded to the pitch.
    struct alignas(16) Shared {
        float a[ROW_SLOTS], u[ROW_SLOTS], lowest[ROW_SLOTS];
        float b[COLUMN_SLOTS], v[COLUMN_SLOTS];
        float partial[WARPS > 1 ? WARPS * COLUMN_SLOTS : 1];
        float staged[LANE_ROWS > 1 ? WARPS : 1][LANE_ROWS > 1 ? LANE_ROWS * STAGED_PITCH : 1];
        float sent[SENT];  // the column sums of all blocks, of the columns that this block adds up
        float box[2][CLUSTER];     // one number from each block to all blocks
        float scratch[WARPS];
        int zero, turn;  // 0, and the number of the next box
    };
    static constexpr int LARGEST = CLUSTER > 1 ? LARGEST_ON_CHIP : MAX_COLUMNS;
    static_assert(sizeof(Shared) / sizeof(int) >= feasibility_words(LARGEST, MAX_COLUMNS));
};

// The sizes that are built. With 72 or more entries in a lane, the reductions are cheap compared with the
// multiply-adds. A problem in one warp needs no barrier.
using Tile32 = Tile<4, 8, 4, 1, 16>;
using Tile48 = Tile<6, 12, 4, 1, 12>;
using Tile64 = Tile<8, 8, 8, 2, 6>;
using Tile96 = Tile<6, 12, 8, 4, 3>;
using Tile128 = Tile<8, 8, 16, 8, 1>;
using TileLargest = Tile<8, 12, 16, 12, 1>;  // 192

// Calls launcher.launch<T>() with the smallest tile that holds N x M. Returns false if there is none.
template <class Launcher>
bool with_tile(int64_t n, int64_t m, const Launcher& launcher) {
    const int64_t size = n > m ? n : m;
    if (size <= Tile32::MAX_COLUMNS) launcher.template launch<Tile32>();
    else if (size <= Tile48::MAX_COLUMNS) launcher.template launch<Tile48>();
    else if (size <= Tile64::MAX_COLUMNS) launcher.template launch<Tile64>();
    else if (size <= Tile96::MAX_COLUMNS) launcher.template launch<Tile96>();
    else if (size <= Tile128::MAX_COLUMNS) launcher.template launch<Tile128>();
    else if (size <= TileLargest::MAX_COLUMNS) launcher.template launch<TileLargest>();
    else return false;
    return true;
}

// The shapes of clusters. All lanes of a warp share its rows, and 8 warps fill the registers of a multiprocessor.
using Cluster256 = Tile<16, 8, 32, 8, 1, 8>;
using Cluster512 = Tile<8, 16, 32, 8, 1, 16>;
using Cluster768 = Tile<5, 24, 32, 8, 1, 16>;

struct ClusterShape {
    int rows, columns, most;  // rows and columns of one block; the most blocks
};
template <class T>
constexpr ClusterShape describe() {
    return {T::MAX_ROWS, T::MAX_COLUMNS, T::CLUSTER};
}
constexpr ClusterShape CLUSTER_SHAPES[] = {describe<Cluster256>(), describe<Cluster512>(), describe<Cluster768>()};

// Calls launcher.launch<T>() with CLUSTER_SHAPES[shape].
template <class Launcher>
auto with_cluster(int shape, const Launcher& launcher) {
    if (shape == 0) return launcher.template launch<Cluster256>();
    if (shape == 1) return launcher.template launch<Cluster512>();
    return launcher.template launch<Cluster768>();
}

// A block of the sweeping kernel. A team of TEAM_WARPS warps has one row, and a thread COLUMNS entries of it, in
// vectors of VECTOR.
template <int TEAM_WARPS_, int VECTOR_>
struct SweepShape {
    static constexpr int WARPS = 16, THREADS = 32 * WARPS, COLUMNS = 16, SLOT = THREADS * COLUMNS;
    static constexpr int TEAM_WARPS = TEAM_WARPS_, TEAM_THREADS = 32 * TEAM_WARPS, TEAMS = WARPS / TEAM_WARPS;
    static constexpr int VECTOR = VECTOR_, PIECES = COLUMNS / VECTOR, MAX_COLUMNS = TEAM_THREADS * COLUMNS;
    static constexpr float FAR = 16777216.0f;  // so no scaling exceeds 2^24 max(N, M)

    struct alignas(16) Shared {
        float box[2][WARPS];  // one number from each warp to its team
        float scratch[THREADS];
        float columns[TEAMS > 1 ? MAX_COLUMNS : 1];  // the column sums of all teams
    };
};
constexpr int SWEEP_TEAMS[] = {1, 4, 16};  // TEAM_WARPS of each shape
constexpr int sweep_columns(int shape) { return SweepShape<1, 4>::MAX_COLUMNS * SWEEP_TEAMS[shape]; }

// Calls launcher.launch<S>() with shape number `shape`, with vectors of four if `vectors`, else of one.
template <class Launcher>
auto with_sweep(int shape, bool vectors, const Launcher& launcher) {
    if (shape == 0 && vectors) return launcher.template launch<SweepShape<SWEEP_TEAMS[0], 4>>();
    if (shape == 0) return launcher.template launch<SweepShape<SWEEP_TEAMS[0], 1>>();
    if (shape == 1 && vectors) return launcher.template launch<SweepShape<SWEEP_TEAMS[1], 4>>();
    if (shape == 1) return launcher.template launch<SweepShape<SWEEP_TEAMS[1], 1>>();
    if (vectors) return launcher.template launch<SweepShape<SWEEP_TEAMS[2], 4>>();
    return launcher.template launch<SweepShape<SWEEP_TEAMS[2], 1>>();
}

// Returns true if rows can be read as vectors of four.
inline bool has_vectors(const Batch& batch) {
    const auto from = reinterpret_cast<uintptr_t>(batch.cost) | reinterpret_cast<uintptr_t>(batch.plan);
    return batch.m % 4 == 0 && from % 16 == 0;
}

// The facts of a GPU on which the choice depends.
struct Gpu {
    int multiprocessors;
    int cluster;  // the most blocks of a cluster; 0 without clusters
    int shared;   // bytes of shared memory of a block; 0 if a grid has no barriers
};
struct Choice {
    enum Kind : int { TILE, CLUSTER, STREAM, SWEEP } kind;
    int shape, blocks;  // CLUSTER: index of CLUSTER_SHAPES, blocks of a problem; SWEEP: index of SWEEP_TEAMS, blocks of the grid
};

// Number of slots in the ring of a sweep: as many as fit into shared memory, but at most 8, for which one can wait.
constexpr int sweep_stages(const Gpu& gpu, int shape) {
    const int fixed = static_cast<int>(shape == 0   ? sizeof(SweepShape<SWEEP_TEAMS[0], 1>::Shared)
                                       : shape == 1 ? sizeof(SweepShape<SWEEP_TEAMS[1], 1>::Shared)
                                                    : sizeof(SweepShape<SWEEP_TEAMS[2], 1>::Shared));
    const int stages = (gpu.shared - fixed) / static_cast<int>(sizeof(float) * SweepShape<1, 1>::SLOT);
    return stages < 8 ? stages : 8;
}

// A sweep, or streaming if a sweep is not possible. Both need about 5 us an iteration to start: a sweep for two
// barriers of the grid, streaming for two launches. A sweep then reads N M entries instead of 2 N M. But it also writes
// and reads about four numbers a column for every problem and block (partial sums and scalings), so a problem must have
// 16 rows.
constexpr Choice choose_off_chip(int64_t batch, int64_t n, int64_t m, const Gpu& gpu) {
    int shape = 0;
    while (shape < 2 && m > sweep_columns(shape)) ++shape;
    if (m > sweep_columns(shape) || n < 16 || n > 1 << 24 || sweep_stages(gpu, shape) < 2) return {Choice::STREAM, 0, 0};
    const int64_t teams = SweepShape<1, 1>::WARPS / SWEEP_TEAMS[shape], steps = batch * ((n + teams - 1) / teams);
    return {Choice::SWEEP, shape, static_cast<int>(steps < gpu.multiprocessors ? steps : gpu.multiprocessors)};
}

// A tile up to 192, above that the narrowest cluster that holds the problem, else off chip. An iteration on chip takes
// about 0.05 clocks of a multiprocessor for each entry of the shape, whether it is used or not. Off chip it takes 0.2
// clocks or more for each entry of the problem. So a problem that uses less than a tenth of its blocks is solved off
// chip, unless the whole batch runs at the same time: then the cost of starting an iteration decides.
constexpr Choice choose(int64_t batch, int64_t n, int64_t m, const Gpu& gpu) {
    if (n <= TileLargest::MAX_ROWS && m <= TileLargest::MAX_COLUMNS) return {Choice::TILE, 0, 1};
    int index = 0;
    for (const ClusterShape& shape : CLUSTER_SHAPES) {
        int blocks = 1;
        while (blocks * shape.rows < n && blocks < shape.most) blocks *= 2;
        if (n <= blocks * shape.rows && m <= shape.columns && blocks <= gpu.cluster) {
            const bool at_once = batch * blocks <= gpu.multiprocessors;
            const bool full = 10 * n * m >= static_cast<int64_t>(blocks) * shape.rows * shape.columns;
            if (at_once || full) return {Choice::CLUSTER, index, blocks};
            break;
        }
        ++index;
    }
    return choose_off_chip(batch, n, m, gpu);
}

// The shapes of the gradients. They need registers beside A, so there are fewer blocks or fewer rows in a block.
using Gradient48 = Tile<6, 12, 4, 1, 8>;
using Gradient128 = Tile<8, 8, 16, 8, 1>;
using GradientCluster = Tile<8, 8, 32, 8, 1, 8>;

// Returns the kernel that computes the gradients of a problem on chip. STREAM: none does, and the caller must compute
// them.
constexpr Choice choose_gradient(int64_t n, int64_t m, const Gpu& gpu) {
    if (n <= Gradient128::MAX_ROWS && m <= Gradient128::MAX_COLUMNS) return {Choice::TILE, 0, 1};
    int blocks = 1;
    while (blocks * GradientCluster::MAX_ROWS < n && blocks < GradientCluster::CLUSTER) blocks *= 2;
    const bool fits = n <= blocks * GradientCluster::MAX_ROWS && m <= GradientCluster::MAX_COLUMNS;
    return fits && blocks <= gpu.cluster ? Choice{Choice::CLUSTER, 0, blocks} : Choice{Choice::STREAM, 0, 0};
}

// Calls launcher.launch<T>() with the smallest gradient tile that holds N x M.
template <class Launcher>
void with_gradient_tile(int64_t n, int64_t m, const Launcher& launcher) {
    const int64_t size = n > m ? n : m;
    if (size <= Gradient48::MAX_COLUMNS) launcher.template launch<Gradient48>();
    else launcher.template launch<Gradient128>();
}

}  // namespace hystar_fast
