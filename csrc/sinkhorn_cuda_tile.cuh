// Computes: a whole Sinkhorn problem in the registers of one block, for N and M up to 192.
// Grid: one block a problem; a batch of thousands is one launch.
// Each thread owns: a ROWS x COLUMNS piece of A_ij = 2^(x + u + v); one warp is 32 / LANE_COLUMNS x LANE_COLUMNS lanes,
//   warps are stacked over the rows, so row sums never leave a warp and column sums cross warps once, without atomics.
// Memory traffic: cost read once and plan written once; an absorption reads cost again (rare; from L2).
// Numerics: "stabilised scaling", equal to the log-domain iteration. After one exact iteration in logarithms an
//   iteration is a_i = 1 / sum_j A_ij b_j, b_j = (N/M) / sum_i A_ij a_i: multiply-adds, no exponentials. One iteration
//   changes a scaling by at most a factor max(N, M) <= 2^8 (a balanced side bounds the other), so looking every fourth
//   iteration whether one has left [2^-24, 2^24] keeps every product inside fp32; if so their powers of two move into
//   u and v, which are whole numbers, so that nothing is rounded.
#pragma once

#include "sinkhorn_cuda_settle.cuh"

namespace hystar_fast {

// Odd multiples of 16 bytes: vector reads of different lanes then fall into different banks.
constexpr int pitch(int count) { return (count + 3) / 4 % 2 == 1 ? (count + 3) / 4 * 4 : (count + 3) / 4 * 4 + 4; }

template <int ROWS_, int COLUMNS_, int LANE_COLUMNS_, int WARPS_, int BLOCKS_>
struct Tile {
    static constexpr int BLOCKS = BLOCKS_;  // how many the registers of a multiprocessor should hold
    static constexpr int ROWS = ROWS_, COLUMNS = COLUMNS_, LANE_COLUMNS = LANE_COLUMNS_, WARPS = WARPS_;
    static constexpr int LANE_ROWS = 32 / LANE_COLUMNS;
    static constexpr int MAX_ROWS = ROWS * LANE_ROWS * WARPS, MAX_COLUMNS = COLUMNS * LANE_COLUMNS;
    static constexpr int ROW_PITCH = pitch(ROWS), COLUMN_PITCH = pitch(COLUMNS);
    static constexpr int ROW_SLOTS = WARPS * LANE_ROWS * ROW_PITCH, COLUMN_SLOTS = LANE_COLUMNS * COLUMN_PITCH;
    static constexpr int STAGED_PITCH = MAX_COLUMNS + LANE_COLUMNS;  // no two lanes in one bank
    static constexpr int OWNED_ROWS = most_owned<ROWS, LANE_COLUMNS / 2, 1>();
    static constexpr int OWNED_COLUMNS = most_owned<COLUMNS, 16, LANE_COLUMNS>();

    static_assert(MAX_ROWS == MAX_COLUMNS);

    // The scalings a, b and the potentials, by slot: the piece of a lane is contiguous and padded to the pitch.
    struct alignas(16) Shared {
        float a[ROW_SLOTS], u[ROW_SLOTS], lowest[ROW_SLOTS];
        float b[COLUMN_SLOTS], v[COLUMN_SLOTS];
        float partial[WARPS > 1 ? WARPS * COLUMN_SLOTS : 1];
        float staged[WARPS][LANE_ROWS * STAGED_PITCH];
        float scratch[WARPS];
        int zero;
    };
    static_assert(sizeof(Shared) / sizeof(int) >= settle_words(MAX_ROWS, MAX_COLUMNS));
};

// The sizes that are built. A piece of 72 entries or more a lane makes the reductions cheap beside the
// multiply-adds; one warp a problem needs no barrier at all.
using Tile32 = Tile<4, 8, 4, 1, 16>;
using Tile48 = Tile<6, 12, 4, 1, 12>;
using Tile64 = Tile<8, 8, 8, 2, 6>;
using Tile96 = Tile<6, 12, 8, 4, 3>;
using Tile128 = Tile<8, 8, 16, 8, 1>;
using TileLargest = Tile<8, 12, 16, 12, 1>;  // 192

// Calls launcher.launch<T>() with the smallest tile that holds N x M; false if none does.
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

template <class T, class Block>
class TileSolver {
  public:
    HYSTAR_DEVICE TileSolver(Block& block, const Problem& problem, typename T::Shared& shared)
        : block_(block), problem_(problem), shared_(shared) {}

    // Solves the problem. True if `settle` has to decide whether it has a plan at all.
    HYSTAR_DEVICE bool solve() {
        const int refused = first_iteration();
        if (refused != CONVERGED) {
            write_without_plan(block_, problem_, refused);
            return false;
        }
        int done = 1;
        for (; done < problem_.n_iter; ++done) {
            if (row_step()) break;
            column_step();
            if (done % 4 == 3 && any_far()) absorb();
        }
        return finish(done);
    }

  private:
    // Where the lane is, computed anew at each use: the registers belong to A.
    HYSTAR_DEVICE int lane_row() const { return block_.lane() / T::LANE_COLUMNS; }
    HYSTAR_DEVICE int lane_column() const { return block_.lane() % T::LANE_COLUMNS; }
    HYSTAR_DEVICE int piece() const { return block_.warp() * T::LANE_ROWS + lane_row(); }
    HYSTAR_DEVICE int row_slot() const { return piece() * T::ROW_PITCH; }
    HYSTAR_DEVICE int column_slot() const { return lane_column() * T::COLUMN_PITCH; }
    HYSTAR_DEVICE int row(int i) const { return piece() * T::ROWS + i; }
    HYSTAR_DEVICE int column(int k) const { return lane_column() + T::LANE_COLUMNS * k; }
    HYSTAR_DEVICE bool inside(int i, int k) const { return row(i) < problem_.n && column(k) < problem_.m; }

    // Reduces `values` over a row's lanes; slots get finish(total, index among the owned); then `values` are the slots.
    template <class Op, class Finish>
    HYSTAR_DEVICE void reduce_rows(float (&values)[T::ROWS], float* slots, Finish finish) {
        reduce_scatter<Op, T::ROWS, T::LANE_COLUMNS / 2, 1>(block_, values);
        const Owned rows = owned_by<T::ROWS, T::LANE_COLUMNS / 2, 1>(block_.lane());
#pragma unroll
        for (int i = 0; i < T::OWNED_ROWS; ++i)
            if (i < rows.count) slots[row_slot() + rows.first + i] = finish(values[i], i);
        block_.sync_warp();
        load_aligned(values, slots + row_slot());
    }

    template <class Op, class Finish>
    HYSTAR_DEVICE void reduce_columns(float (&values)[T::COLUMNS], float* slots, Finish finish) {
        reduce_scatter<Op, T::COLUMNS, 16, T::LANE_COLUMNS>(block_, values);
        const Owned columns = owned_by<T::COLUMNS, 16, T::LANE_COLUMNS>(block_.lane());
        float* own = T::WARPS == 1 ? slots : shared_.partial + block_.warp() * T::COLUMN_SLOTS;
#pragma unroll
        for (int i = 0; i < T::OWNED_COLUMNS; ++i)
            if (i < columns.count) own[column_slot() + columns.first + i] = T::WARPS == 1 ? finish(values[i]) : values[i];
        block_.sync();
        if constexpr (T::WARPS > 1) {
            for (int c = block_.thread(); c < T::MAX_COLUMNS; c += Block::THREADS) {
                const int slot = c / T::COLUMNS * T::COLUMN_PITCH + c % T::COLUMNS;
                float total = shared_.partial[slot];
#pragma unroll
                for (int warp = 1; warp < T::WARPS; ++warp)
                    total = Op::apply(total, shared_.partial[warp * T::COLUMN_SLOTS + slot]);
                slots[slot] = finish(total);
            }
            block_.sync();
        }
        load_aligned(values, slots + column_slot());
    }

    // Puts the lane's costs into a_, +inf where forbidden or outside: row by row of the lanes, read in order of address,
    // handed out through shared memory. Straight from global memory every entry would need its own address and
    // predicates, which do not fit beside A. `start` is the lane, but read so that no address is kept from one call
    // to the next. `use(i)` is called once row i is there.
    template <class Use>
    HYSTAR_DEVICE void load_costs(Use use) {
        constexpr int WIDTH = T::MAX_COLUMNS % 32 == 0 ? 32 : 16, STEPS = T::MAX_COLUMNS / WIDTH, HEIGHT = 32 / WIDTH;
        static_assert(T::MAX_COLUMNS % WIDTH == 0);
        const int start = block_.lane() + *static_cast<volatile int*>(&shared_.zero);
        const int above = start / WIDTH, left = start % WIDTH;  // of the entry a lane reads first
        float* staged = shared_.staged[block_.warp()] + above * T::STAGED_PITCH + left;
        const float* given = shared_.staged[block_.warp()] + lane_row() * T::STAGED_PITCH + lane_column();
#pragma unroll
        for (int i = 0; i < T::ROWS; ++i) {
#pragma unroll
            for (int k = 0; k < T::COLUMNS; ++k) {
                const int down = k / STEPS * HEIGHT, across = k % STEPS * WIDTH;
                const int row = (block_.warp() * T::LANE_ROWS + above + down) * T::ROWS + i;
                staged[down * T::STAGED_PITCH + across] = problem_.allowed_cost(row, left + across);
            }
            block_.sync_warp();
#pragma unroll
            for (int k = 0; k < T::COLUMNS; ++k) a_[i][k] = given[T::LANE_COLUMNS * k];
            block_.sync_warp();
            use(i);
        }
    }

    // From v = 0, in logarithms: a 2^u = 1 / sum_j 2^x, v = -max_i (x + u), then A and its column half-step.
    HYSTAR_DEVICE int first_iteration() {
        float rows[T::ROWS], columns[T::COLUMNS];
        shared_.zero = 0;
        load_costs([&](int i) {
            rows[i] = -INFINITY;
#pragma unroll
            for (int k = 0; k < T::COLUMNS; ++k) rows[i] = fmaxf(rows[i], -a_[i][k]);
        });
        reduce_rows<Max>(rows, shared_.lowest, [&](float negative, int) { return -negative; });
        float sums[T::ROWS];
        bool invalid = false, empty = false;
#pragma unroll
        for (int i = 0; i < T::ROWS; ++i) {
            empty |= row(i) < problem_.n && rows[i] == INFINITY;
            sums[i] = 0;
#pragma unroll
            for (int k = 0; k < T::COLUMNS; ++k) {
                a_[i][k] = problem_.exponent(a_[i][k], rows[i]);
                sums[i] += power_of_two(a_[i][k]);
            }
            invalid |= !(sums[i] >= 0);
        }
        if (block_.any(invalid)) return INVALID;
        reduce_rows<Sum>(sums, shared_.a, [](float sum, int) { return sum; });
#pragma unroll
        for (int i = 0; i < T::ROWS; ++i) {
            scaling_[i] = inverse(sums[i]);
            sums[i] = take_power(scaling_[i]);
            if (lane_column() == 0) shared_.u[row_slot() + i] = sums[i];
        }
#pragma unroll
        for (int k = 0; k < T::COLUMNS; ++k) {
            columns[k] = -INFINITY;
#pragma unroll
            for (int i = 0; i < T::ROWS; ++i) columns[k] = fmaxf(columns[k], a_[i][k] + sums[i]);
        }
        reduce_columns<Max>(columns, shared_.v, [](float most) { return most > -INFINITY ? -rintf(most) : EMPTY; });
#pragma unroll
        for (int k = 0; k < T::COLUMNS; ++k) {
            empty |= column(k) < problem_.m && columns[k] == EMPTY;
#pragma unroll
            for (int i = 0; i < T::ROWS; ++i) a_[i][k] = power_of_two(a_[i][k] + (sums[i] + columns[k]));
        }
        if (block_.any(empty)) return INFEASIBLE;
        column_step();
        return CONVERGED;
    }

    HYSTAR_DEVICE void row_sums(float (&sums)[T::ROWS]) {
#pragma unroll
        for (int i = 0; i < T::ROWS; ++i) {
            sums[i] = a_[i][0] * b_[0];
#pragma unroll
            for (int k = 1; k < T::COLUMNS; ++k) sums[i] = fmaf(a_[i][k], b_[k], sums[i]);
        }
    }

    // a = 1 / row sums of A b. True, with nothing changed, if a tolerance was asked for and the plan already meets it.
    HYSTAR_DEVICE bool row_step() {
        float sums[T::ROWS];
        row_sums(sums);
        if (problem_.tol > 0) {
            bool off = false;
#pragma unroll
            for (int i = 0; i < T::ROWS; ++i) {
                const float total = reduce_warp<Sum, T::LANE_COLUMNS>(block_, sums[i]);
                off |= row(i) < problem_.n && !(fabsf(total * scaling_[i] - 1) <= problem_.tol);
            }
            if (!block_.any(off)) return true;
        }
        reduce_rows<Sum>(sums, shared_.a, [](float sum, int) { return inverse(sum); });
#pragma unroll
        for (int i = 0; i < T::ROWS; ++i) scaling_[i] = sums[i];
        return false;
    }

    // b = (N/M) / column sums of A a.
    HYSTAR_DEVICE void column_step() {
#pragma unroll
        for (int k = 0; k < T::COLUMNS; ++k) {
            b_[k] = a_[0][k] * scaling_[0];
#pragma unroll
            for (int i = 1; i < T::ROWS; ++i) b_[k] = fmaf(a_[i][k], scaling_[i], b_[k]);
        }
        const float mass = problem_.column_mass;
        reduce_columns<Sum>(b_, shared_.b, [mass](float sum) { return mass * inverse(sum); });
    }

    HYSTAR_DEVICE bool any_far() {
        bool far = false;
#pragma unroll
        for (int i = 0; i < T::ROWS; ++i) far |= is_far(scaling_[i]);
#pragma unroll
        for (int k = 0; k < T::COLUMNS; ++k) far |= is_far(b_[k]);
        return block_.any(far);
    }

    // Takes the nearest power of two out of a scaling and returns its exponent. Potentials are whole numbers, so
    // nothing is rounded when they take it over: the plan stays as exact as the scalings are.
    HYSTAR_DEVICE static float take_power(float& scaling) {
        const float exponent = scaling > 0 ? rintf(log2_of(scaling)) : 0.0f;
        scaling *= power_of_two(-exponent);
        return exponent;
    }

    // Moves the scalings into the potentials and builds A anew from the cost.
    HYSTAR_DEVICE void absorb() {
#pragma unroll
        for (int i = 0; i < T::ROWS; ++i) {
            const float exponent = take_power(scaling_[i]);
            if (lane_column() == 0) shared_.u[row_slot() + i] += exponent;
        }
#pragma unroll
        for (int k = 0; k < T::COLUMNS; ++k) {
            const float exponent = take_power(b_[k]);
            if (block_.warp() == 0 && lane_row() == 0) {
                shared_.v[column_slot() + k] += exponent;
                shared_.b[column_slot() + k] = b_[k];
            }
        }
        block_.sync();
        load_costs([&](int i) {
            load_aligned(b_, shared_.v + column_slot());
            const float lowest = shared_.lowest[row_slot() + i], u = shared_.u[row_slot() + i];
#pragma unroll
            for (int k = 0; k < T::COLUMNS; ++k)
                a_[i][k] = power_of_two(problem_.exponent(a_[i][k], lowest) + (u + b_[k]));
        });
        load_aligned(b_, shared_.b + column_slot());
    }

    HYSTAR_DEVICE bool finish(int done) {
        float sums[T::ROWS], worst = 0, missing = 0;
        bool has_zeros = false;
        row_sums(sums);
#pragma unroll
        for (int i = 0; i < T::ROWS; ++i) {
            const float total = reduce_warp<Sum, T::LANE_COLUMNS>(block_, sums[i]);
            const float off = row(i) < problem_.n ? fabsf(total * scaling_[i] - 1) : 0.0f;
            worst = fmaxf(worst, off);
            missing += lane_column() == 0 ? off : 0.0f;
            float* to = problem_.plan() + problem_.at(row(i), lane_column());
#pragma unroll
            for (int k = 0; k < T::COLUMNS; ++k)
                if (inside(i, k)) {
                    const float entry = a_[i][k] * scaling_[i] * b_[k];
                    has_zeros |= entry == 0;
                    to[T::LANE_COLUMNS * k] = entry;
                }
        }
        worst = reduce_block<Max>(block_, worst, shared_.scratch);
        missing = reduce_block<Sum>(block_, missing, shared_.scratch);
        if (block_.thread() == 0) {
            *problem_.status() = problem_.outcome(worst);
            *problem_.error() = worst;
            *problem_.iterations() = done;
        }
#pragma unroll
        for (int i = 0; i < T::ROWS; ++i)
            if (lane_column() == 0 && row(i) < problem_.n)
                problem_.u()[row(i)] = (shared_.u[row_slot() + i] + log2f(scaling_[i])) * problem_.unit +
                                     shared_.lowest[row_slot() + i];
#pragma unroll
        for (int k = 0; k < T::COLUMNS; ++k)
            if (block_.warp() == 0 && lane_row() == 0 && column(k) < problem_.m)
                problem_.v()[column(k)] = (shared_.v[column_slot() + k] + log2f(b_[k])) * problem_.unit;
        return block_.any(has_zeros) && missing >= problem_.row_mass;
    }

    static constexpr float EMPTY = -1;  // the potential of a column without an allowed entry; of others it is >= 0

    Block& block_;
    const Problem& problem_;
    typename T::Shared& shared_;
    float a_[T::ROWS][T::COLUMNS];  // A
    float scaling_[T::ROWS];        // a of the lane's rows
    float b_[T::COLUMNS];           // b of the lane's columns
};

}  // namespace hystar_fast
