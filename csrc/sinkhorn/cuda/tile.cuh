// Computes: a whole Sinkhorn problem in registers: of one block for N and M up to 192, of a cluster of blocks above
//   that.
// Grid: one block or cluster for each problem; a batch of thousands is one launch.
// Each thread owns: a ROWS x COLUMNS piece of A_ij = 2^(x + u + v). A warp is 32 / LANE_COLUMNS x LANE_COLUMNS lanes.
//   Warps, and then blocks, are one below the other, so row sums stay in a warp. Column sums are added over the warps
//   once, and in a cluster every block adds up its share of the columns and sends it to the others. No atomics: the
//   order is fixed.
// Memory traffic: the cost once, the plan once. An absorption reads the cost again (rare; from L2). A block of a
//   cluster sends about two numbers a column in each iteration.
// Numerics: "stabilised scaling", which equals the iteration in the log domain. The first iteration uses logarithms.
//   After it an iteration is a_i = 1 / sum_j A_ij b_j, b_j = (N/M) / sum_i A_ij a_i: multiply-adds without
//   exponentials. One iteration changes a scaling by at most a factor max(N, M), because the sums of one side are exact
//   and bound those of the other. So it is enough to check in every fourth iteration whether a scaling has left [1 /
//   FAR, FAR]: every product stays in the range of fp32. If one has, the powers of two of all scalings move into u and
//   v, which are whole numbers, so nothing is rounded.
#pragma once

#include "sinkhorn/cuda/shapes.cuh"

namespace hystar_fast {

template <class T, class Block>
class TileSolver {
  public:
    HYSTAR_DEVICE TileSolver(Block& block, const Problem& problem, typename T::Shared& shared)
        : block_(block), problem_(problem), shared_(shared) {}

    // Solves the problem. Returns true if check_feasibility must decide whether a plan exists.
    HYSTAR_DEVICE bool solve() {
        if constexpr (Block::CLUSTERED) block_.sync_cluster();  // after this the other blocks have started
        const int refused = first_iteration();
        if (refused != CONVERGED) {
            if (block_.rank() == 0) write_without_plan(block_, problem_, refused);
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

  protected:
    // The position of the lane. It is computed at each use, because A needs the registers.
    HYSTAR_DEVICE int lane_row() const { return block_.lane() / T::LANE_COLUMNS; }
    HYSTAR_DEVICE int lane_column() const { return block_.lane() % T::LANE_COLUMNS; }
    HYSTAR_DEVICE int piece() const { return block_.warp() * T::LANE_ROWS + lane_row(); }
    HYSTAR_DEVICE int row_slot() const { return piece() * T::ROW_PITCH; }
    HYSTAR_DEVICE int column_slot() const { return lane_column() * T::COLUMN_PITCH; }
    HYSTAR_DEVICE int row(int i) const { return block_.rank() * T::MAX_ROWS + piece() * T::ROWS + i; }
    HYSTAR_DEVICE int column(int k) const { return lane_column() + T::LANE_COLUMNS * k; }
    HYSTAR_DEVICE bool inside(int i, int k) const { return row(i) < problem_.n && column(k) < problem_.m; }

    // Returns true if the fact is true in any thread that works on the problem.
    HYSTAR_DEVICE bool any(bool fact) {
        fact = block_.any(fact);
        if constexpr (Block::CLUSTERED) fact = share<Max>(fact ? 1.0f : 0.0f) > 0;
        return fact;
    }

    // Reduces one number of every block, which is the same in all its threads, over the cluster. Two boxes are used in
    // turn: all threads have read the one that a call writes.
    template <class Op>
    HYSTAR_DEVICE float share(float number) {
        if constexpr (Block::CLUSTERED) {
            const int turn = shared_.turn;
            float* box = shared_.box[turn];
            if (block_.thread() < block_.blocks()) block_.remote(box, block_.thread())[block_.rank()] = number;
            block_.sync_cluster();
            shared_.turn = 1 - turn;
            number = box[0];
            for (int rank = 1; rank < block_.blocks(); ++rank) number = Op::apply(number, box[rank]);
        }
        return number;
    }

    // Reduces `values` over the lanes of a row. Writes finish(total, index among the owned values) to the slots, and
    // then reads `values` from the slots.
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

    // The same for the columns, over all warps and blocks.
    template <class Op, class Finish>
    HYSTAR_DEVICE void reduce_columns(float (&values)[T::COLUMNS], float* slots, Finish finish) {
        reduce_scatter<Op, T::COLUMNS, 16, T::LANE_COLUMNS>(block_, values);
        const Owned columns = owned_by<T::COLUMNS, 16, T::LANE_COLUMNS>(block_.lane());
        float* own = T::WARPS == 1 ? slots : shared_.partial + block_.warp() * T::COLUMN_SLOTS;
        if constexpr (T::LANE_ROWS == 1) {
            store_aligned(own + column_slot(), values);
        } else {
#pragma unroll
            for (int i = 0; i < T::OWNED_COLUMNS; ++i)
                if (i < columns.count)
                    own[column_slot() + columns.first + i] = T::WARPS == 1 ? finish(values[i]) : values[i];
        }
        block_.sync();
        if constexpr (T::WARPS > 1) {
            for (int c = block_.thread(); c < T::MAX_COLUMNS; c += Block::THREADS) {
                float total = shared_.partial[slot_of(c)];
#pragma unroll
                for (int warp = 1; warp < T::WARPS; ++warp)
                    total = Op::apply(total, shared_.partial[warp * T::COLUMN_SLOTS + slot_of(c)]);
                if constexpr (Block::CLUSTERED) send(c, total);
                else slots[slot_of(c)] = finish(total);
            }
            if constexpr (Block::CLUSTERED) reduce_sent<Op>(slots, finish);
            else block_.sync();
        }
        load_aligned(values, slots + column_slot());
    }

    // The slot of column c.
    HYSTAR_DEVICE static int slot_of(int c) { return c / T::COLUMNS * T::COLUMN_PITCH + c % T::COLUMNS; }

    // The columns are distributed over the blocks of a cluster in chunks of 32: block q % blocks has chunk q.
    HYSTAR_DEVICE int share_of_columns() const {
        return 32 * ((T::CHUNKS + block_.blocks() - 1) >> block_.log2_blocks());
    }
    HYSTAR_DEVICE void send(int c, float total) {
        const int chunk = c / 32;
        float* sent = block_.remote(shared_.sent, chunk & (block_.blocks() - 1));
        sent[block_.rank() * share_of_columns() + 32 * (chunk >> block_.log2_blocks()) + c % 32] = total;
    }
    // Waits until all blocks have sent their sums, adds up the columns of this block, and writes finish(total) to the
    // slots of every block.
    template <class Op, class Finish>
    HYSTAR_DEVICE void reduce_sent(float* slots, Finish finish) {
        block_.sync_cluster();
        for (int c = block_.thread(); c < share_of_columns(); c += Block::THREADS) {
            const int chunk = (c / 32 << block_.log2_blocks()) + block_.rank();
            if (chunk >= T::CHUNKS) continue;
            float total = shared_.sent[c];
            for (int rank = 1; rank < block_.blocks(); ++rank)
                total = Op::apply(total, shared_.sent[rank * share_of_columns() + c]);
            total = finish(total);
            for (int rank = 0; rank < block_.blocks(); ++rank)
                block_.remote(slots, rank)[slot_of(32 * chunk + c % 32)] = total;
        }
        block_.sync_cluster();
    }

    // Calls make(i, k, costs) for the costs of row i of the lane from its k-th column on, some or all of them. They are
    // +inf if forbidden or outside the matrix. make replaces them by the values of A. `zero` is 0, but it is read from
    // memory, so that the compiler keeps loops as loops, and keeps no address in registers from one row to the next: A
    // needs all registers.
    template <class Make>
    HYSTAR_DEVICE void load_costs(Make make) {
#pragma unroll
        for (int i = 0; i < T::ROWS; ++i) {
            const int zero = *static_cast<volatile int*>(&shared_.zero);
            if constexpr (T::LANE_ROWS == 1) {
                float* staged = shared_.partial + block_.warp() * T::COLUMN_SLOTS + column_slot();
#pragma unroll 1
                for (int k = 0; k < T::COLUMNS + zero; k += 8) {
                    float some[8];
                    problem_.allowed_costs(some, row(i), block_.lane() + 32 * k);
                    make(i, k, some);
                    store_aligned(staged + k, some);
                }
                load_aligned(a_[i], staged);
            } else {
                load_staged(i, block_.lane() + zero);
                make(i, 0, a_[i]);
            }
        }
    }

    // If several lanes share a column, the rows of the lanes are read in the order of their addresses, and passed on
    // through shared memory. Reading each entry directly would need an address and predicates for each.
    HYSTAR_DEVICE void load_staged(int i, int start) {
        constexpr int WIDTH = T::MAX_COLUMNS % 32 == 0 ? 32 : 16, STEPS = T::MAX_COLUMNS / WIDTH, HEIGHT = 32 / WIDTH;
        static_assert(T::MAX_COLUMNS % WIDTH == 0);
        const int above = start / WIDTH, left = start % WIDTH;  // the position of the entry that a lane reads first
        float* staged = shared_.staged[block_.warp()] + above * T::STAGED_PITCH + left;
        const float* given = shared_.staged[block_.warp()] + lane_row() * T::STAGED_PITCH + lane_column();
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
    }

    // The first iteration, from v = 0, in logarithms: a 2^u = 1 / sum_j 2^x, v = -max_i (x + u), then A and the column
    // half-step. Returns INVALID or INFEASIBLE if that is clear already, else CONVERGED.
    HYSTAR_DEVICE int first_iteration() {
        float rows[T::ROWS], columns[T::COLUMNS];
        shared_.zero = shared_.turn = 0;
#pragma unroll
        for (int i = 0; i < T::ROWS; ++i) rows[i] = -INFINITY;
        load_costs([&](int i, int, auto& costs) {
            for (const float cost : costs) rows[i] = fmaxf(rows[i], -cost);
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
        if (any(invalid)) return INVALID;
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
        if (any(empty)) return INFEASIBLE;
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

    // a = 1 / the row sums of A b. If there is a tolerance and the plan meets it, returns true and changes nothing.
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
            if (!any(off)) return true;
        }
        reduce_rows<Sum>(sums, shared_.a, [](float sum, int) { return inverse(sum); });
#pragma unroll
        for (int i = 0; i < T::ROWS; ++i) scaling_[i] = sums[i];
        return false;
    }

    // b = (N/M) / the column sums of A a.
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
        for (int i = 0; i < T::ROWS; ++i) far |= is_far<T>(scaling_[i]);
#pragma unroll
        for (int k = 0; k < T::COLUMNS; ++k) far |= is_far<T>(b_[k]);
        return any(far);
    }

    // Divides a scaling by the nearest power of two, and returns the exponent. The potentials are whole numbers, so
    // adding the exponent to them rounds nothing, and the plan stays as exact as the scalings.
    HYSTAR_DEVICE static float take_power(float& scaling) {
        const float exponent = scaling > 0 ? rintf(log2_of(scaling)) : 0.0f;
        scaling *= power_of_two(-exponent);
        return exponent;
    }

    // Moves the scalings into the potentials and builds A again.
    HYSTAR_DEVICE void absorb() {
        block_.sync_warp();  // the vote before it orders no memory if the block is a single warp
        move_scalings();
        rebuild();
        load_aligned(b_, shared_.b + column_slot());
    }

    HYSTAR_DEVICE void move_scalings() {
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
    }

    // Builds A from the cost and the potentials in shared memory.
    HYSTAR_DEVICE void rebuild() {
        block_.sync();
        load_costs([&](int i, int first, auto& entries) {
            constexpr int COUNT = sizeof(entries) / sizeof(float);
            float v[COUNT];
            load_aligned(v, shared_.v + column_slot() + first);
            const float lowest = shared_.lowest[row_slot() + i], u = shared_.u[row_slot() + i];
#pragma unroll
            for (int k = 0; k < COUNT; ++k)
                entries[k] = power_of_two(problem_.exponent(entries[k], lowest) + (u + v[k]));
        });
    }

    // Writes the plan and the other results. Returns true if check_feasibility must decide whether a plan exists.
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
        worst = share<Max>(reduce_block<Max>(block_, worst, shared_.scratch));
        missing = share<Sum>(reduce_block<Sum>(block_, missing, shared_.scratch));
        const bool first_block = block_.rank() == 0;
        if (first_block && block_.thread() == 0) {
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
            if (first_block && block_.warp() == 0 && lane_row() == 0 && column(k) < problem_.m)
                problem_.v()[column(k)] = (shared_.v[column_slot() + k] + log2f(b_[k])) * problem_.unit;
        return any(has_zeros) && first_block && missing >= problem_.row_mass;
    }

    static constexpr float EMPTY = -1;  // the potential of a column without an allowed entry; all others are >= 0

    Block& block_;
    const Problem& problem_;
    typename T::Shared& shared_;
    float a_[T::ROWS][T::COLUMNS];  // A
    float scaling_[T::ROWS];        // a of the rows of the lane
    float b_[T::COLUMNS];           // b of the columns of the lane
};

}  // namespace hystar_fast
