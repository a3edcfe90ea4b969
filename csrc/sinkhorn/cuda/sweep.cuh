// Computes: Sinkhorn for any N and for M up to 8192. An iteration is one pass over a matrix in global memory.
// Grid: one persistent block of 16 warps on each multiprocessor. All blocks run at the same time, and the grid has
//   barriers.
// Each block owns: an equal share of the rows of the batch (sweep_path.cuh). A team of warps takes a row, and a thread
//   16 entries of it. Column sums stay in the registers of a thread until the block goes on to the next problem.
// Memory traffic: A is built from the cost in the memory of the plan (the cost is read twice, A written once), and then
//   read once an iteration. The rows that a block has in shared memory between two sweeps are not read again; a small
//   problem is not read at all. One number for each column, block and problem goes from block to block.
// Numerics: the stabilised scaling of a tile (tile.cuh). A row stays on chip until its sum is known: a_i = 1 / sum_j
//   A_ij b_j; then A_ij a_i is added to the columns. The first iteration uses logarithms, and after it an iteration
//   changes a scaling by at most a factor max(N, M). If a scaling has left [1 / FAR, FAR], the next sweep moves the
//   powers of two of all scalings into u and v, which are whole numbers, and builds A again while it iterates. Without
//   atomics and with a fixed order of sums, results are deterministic. But the order depends on the size of the batch
//   and of the GPU.
#pragma once

#include <type_traits>

#include "sinkhorn/cuda/sweep_path.cuh"

namespace hystar_fast {

// Moves the nearest power of two of a scaling into its potential. The scaling changes by exactly the same factor as the
// potential.
HYSTAR_DEVICE void absorb(float& scaling, float& potential) {
    const float exponent = scaling > 0 && scaling < INFINITY ? rintf(log2_of(scaling)) : 0.0f;
    const float moved = (potential + exponent) - potential;
    if (!(fabsf(moved) <= 250)) return;  // not a number: the problem is invalid or infeasible
    scaling = ldexpf(scaling, -static_cast<int>(moved));
    potential += moved;
}

template <class S, class Block>
class Sweeper : public SweepPath<S, Block> {
  public:
    HYSTAR_DEVICE Sweeper(Block& block, const Batch& batch, const SweepWorkspace& work, typename S::Shared& shared,
                          float* ring, int stages)
        : SweepPath<S, Block>(block, batch, work, ring, stages), shared_(shared) {}

    HYSTAR_DEVICE void solve() {
        pass<Pass::FIRST>(false);
        for (k_ = 0; k_ < batch_.n_iter; ++k_) {
            if (k_ > 0 && batch_.tol > 0 && !any_of(0, work_.problems - 1, [&](int p) { return *iterations(p) >= k_; }))
                break;
            // the ring cannot be used if a problem has met its tolerance or A must be built
            pass<Pass::ITERATE>(k_ == 0 || !any_of(first_problem_, last_problem_, [&](int p) {
                return *iterations(p) == k_ - 1 || (*iterations(p) >= k_ && this->template builds<Pass::ITERATE>(p));
            }));
        }
        pass<Pass::PLAN>(!any_of(first_problem_, last_problem_, [&](int p) { return *iterations(p) < k_; }));
    }

  private:
    using Path = SweepPath<S, Block>;
    using typename Path::Piece;
    using typename Path::Step;
    using Path::apart, Path::batch_, Path::block_, Path::first_column, Path::first_problem_, Path::has, Path::iterations,
        Path::k_, Path::last_problem_, Path::piece_at, Path::team, Path::work_;

    template <class Fact>
    HYSTAR_DEVICE bool any_of(int first, int last, Fact fact) {
        bool found = false;
        for (int p = first + block_.thread(); p <= last; p += S::THREADS) found |= fact(p);
        return block_.any(found);
    }
    HYSTAR_DEVICE Workspace rows(const Problem& problem) const { return {work_.rows, problem, problem.index}; }
    HYSTAR_DEVICE bool leads(bool there) const { return there && this->team_thread() == 0; }

    // One pass over all rows, and then the columns.
    template <Pass PASS>
    HYSTAR_DEVICE void pass(bool resident) {
        int now = -1;
        this->template sweep<PASS>(resident, [&](const Step& step, int slot, bool stays) {
            if (step.problem != now) {
                if (now >= 0) leave<PASS>(now);
                now = step.problem;
                enter<PASS>(now);
            }
            const Problem problem(batch_, now);
            const int row = step.row + team();
            const bool there = row < this->end(now);
            if constexpr (PASS == Pass::FIRST) first_row(problem, row, there, slot);
            else if constexpr (PASS == Pass::ITERATE) iterate_row(problem, row, there, slot, stays);
            else plan_row(problem, row, there, slot);
        });
        if (now >= 0) leave<PASS>(now);
        if constexpr (PASS == Pass::PLAN) return write_column_potentials();
        block_.sync_grid();
        reduce_columns<PASS>();
        block_.sync_grid();
    }

    // Begins a problem. The potentials for building A are kept in the memory in which `leave` will write the column
    // sums.
    template <Pass PASS>
    HYSTAR_DEVICE void enter(int problem) {
        building_ = this->template builds<PASS>(problem);
        worst_ = 0;
        const float *v = Problem(batch_, problem).v() + first_column(), *scalings = work_.b(problem) + first_column();
        float* kept = work_.columns(block_.rank() + problem) + first_column();
#pragma unroll
        for (int k = 0; k < S::PIECES; ++k) {
            Piece b{};
            if (PASS != Pass::FIRST && k_ > 0 && has(k)) b = *piece_at(scalings, k);
#pragma unroll
            for (int e = 0; e < S::VECTOR; ++e) {
                const int at = k * S::VECTOR + e;
                b_[at] = b.value[e];
                sums_[at] = PASS == Pass::FIRST ? Max::NEUTRAL : Sum::NEUTRAL;
                if (PASS != Pass::ITERATE || !building_ || !has(k)) continue;
                float potential = v[apart(k) + e];
                if (k_ > 0) absorb(b_[at], potential);
                kept[apart(k) + e] = potential;
            }
        }
    }

    HYSTAR_DEVICE bool inside(int entry) const { return has(entry / S::VECTOR); }  // because m is a multiple of VECTOR
    // Reads the costs of a row; +inf if an entry is forbidden or outside the matrix.
    HYSTAR_DEVICE void read_costs(float (&costs)[S::COLUMNS], const Problem& problem, int row, bool there, int slot) const {
        this->read(costs, slot, there, INFINITY);
        if (problem.mask() == nullptr) return;
        const uint8_t* forbids = problem.mask() + problem.at(row, first_column());
#pragma unroll
        for (int i = 0; i < S::COLUMNS; ++i)
            if (there && inside(i) && forbids[apart(i / S::VECTOR) + i % S::VECTOR] != 0) costs[i] = INFINITY;
    }

    // Reduces a value over the team of a row. Every thread gets the result. All teams must call this together.
    template <class Op>
    HYSTAR_DEVICE float reduce_team(float value) {
        value = reduce_warp<Op>(block_, value);
        if constexpr (S::TEAM_WARPS > 1) {
            float* box = shared_.box[turn_];  // threads may still read the other one
            turn_ = 1 - turn_;
            if (block_.lane() == 0) box[block_.warp()] = value;
            block_.sync();
            float parts[4];
            load_aligned(parts, box + team() * S::TEAM_WARPS);
#pragma unroll
            for (int warp = 4; warp < S::TEAM_WARPS; warp += 4) {
                float more[4];
                load_aligned(more, box + team() * S::TEAM_WARPS + warp);
#pragma unroll
                for (int i = 0; i < 4; ++i) parts[i] = Op::apply(parts[i], more[i]);
            }
            value = Op::apply(Op::apply(parts[0], parts[1]), Op::apply(parts[2], parts[3]));
        }
        return value;
    }
    // The sum of A b over the row.
    HYSTAR_DEVICE float sum_row(const float (&entries)[S::COLUMNS]) {
        float sums[4] = {};
#pragma unroll
        for (int i = 0; i < S::COLUMNS; ++i) sums[i % 4] += entries[i] * b_[i];
        return reduce_team<Sum>((sums[0] + sums[1]) + (sums[2] + sums[3]));
    }

    // A row in the first pass: its state, its first scaling, and the largest x + log2 a of every column.
    HYSTAR_DEVICE void first_row(const Problem& problem, int row, bool there, int slot) {
        float entries[S::COLUMNS], negative = -INFINITY, held = 0, sum = 0;
        read_costs(entries, problem, row, there, slot);
#pragma unroll
        for (int i = 0; i < S::COLUMNS; ++i) {
            negative = fmaxf(negative, -entries[i]);
            held = fmaxf(held, is_invalid(entries[i]) ? 2.0f : inside(i) && entries[i] == INFINITY ? 1.0f : 0.0f);
        }
        const float lowest = -reduce_team<Max>(negative);
        held = reduce_team<Max>(held);
#pragma unroll
        for (int i = 0; i < S::COLUMNS; ++i) {
            entries[i] = problem.exponent(entries[i], lowest);
            sum += power_of_two(entries[i]);
        }
        sum = reduce_team<Sum>(sum);
        const float u = -log2f(sum);
#pragma unroll
        for (int i = 0; i < S::COLUMNS; ++i) sums_[i] = fmaxf(sums_[i], entries[i] + u);
        if (!leads(there)) return;
        const Workspace work = rows(problem);
        work.lowest[row] = lowest;
        work.row_state[row] = held == 2 ? Workspace::HAS_INVALID : held == 1 ? Workspace::HAS_FORBIDDEN : 0;
        work.u(1)[row] = inverse(sum);
        problem.u()[row] = 0;
        if (row == 0) *work_.far_after(problem.index, 0) = *work_.far_after(problem.index, 1) = 0;
    }

    // A row in an iteration. The first iteration uses the scaling from first_row.
    HYSTAR_DEVICE void iterate_row(const Problem& problem, int row, bool there, int slot, bool stays) {
        float entries[S::COLUMNS], u = 0, a = 0;
        if (building_ || batch_.tol > 0) {
            if (there) a = rows(problem).u(k_ == 0 ? 1 : k_)[row];
        }
        if (building_) {
            if (there && k_ > 0) u = problem.u()[row];
            if (k_ > 0) absorb(a, u);
            const float lowest = there ? rows(problem).lowest[row] : 0.0f;
            read_costs(entries, problem, row, there, slot);
            const float* v = work_.columns(block_.rank() + static_cast<int>(problem.index)) + first_column();
#pragma unroll
            for (int k = 0; k < S::PIECES; ++k) {
                Piece piece{};
                if (has(k)) piece = *piece_at(v, k);
#pragma unroll
                for (int e = 0; e < S::VECTOR; ++e) {
                    float& entry = entries[k * S::VECTOR + e];
                    entry = power_of_two(problem.exponent(entry, lowest) + (u + piece.value[e]));
                }
            }
            if (there) this->write(entries, problem, row, slot, stays);
        } else {
            this->read(entries, slot, there, 0.0f);
        }
        if (k_ > 0) {
            const float before = a, sum = sum_row(entries);
            if (building_) block_.sync_warp();  // all lanes have read a and u, which the first one writes now
            a = inverse(sum);
            if (leads(there)) {
                const Workspace work = rows(problem);
                worst_ = fmaxf(worst_, fabsf(before * sum - 1));
                work.u(k_ + 1)[row] = a;
                if (is_far<S>(a)) *work_.far_after(problem.index, k_) = k_ + 1;
                if (building_) {
                    work.u(k_)[row] = before;
                    problem.u()[row] = u;
                }
            }
        }
#pragma unroll
        for (int i = 0; i < S::COLUMNS; ++i) sums_[i] += entries[i] * a;
    }

    // A row in the last pass: the plan, the error of its sum, and u.
    HYSTAR_DEVICE void plan_row(const Problem& problem, int row, bool there, int slot) {
        const Workspace work = rows(problem);
        const float a = there ? work.u(*iterations(problem.index))[row] : 0.0f;
        float entries[S::COLUMNS];
        this->read(entries, slot, there, 0.0f);
        const float sum = sum_row(entries);
#pragma unroll
        for (int i = 0; i < S::COLUMNS; ++i) entries[i] = entries[i] * a * b_[i];
        if (there) this->write(entries, problem, row, slot, false);
        if (!leads(there)) return;
        work.row_error[row] = fabsf(sum * a - 1);
        problem.u()[row] = (problem.u()[row] + log2f(a)) * problem.unit + work.lowest[row];
    }

    // Ends a problem: writes the sums, or maxima, of its columns in this block.
    template <Pass PASS>
    HYSTAR_DEVICE void leave(int problem) {
        using Op = std::conditional_t<PASS == Pass::FIRST, Max, Sum>;
        if constexpr (PASS == Pass::PLAN) return;
        const int part = block_.rank() + problem;
        if (PASS == Pass::ITERATE && batch_.tol > 0) {
            const float worst = reduce_block<Max>(block_, worst_, shared_.scratch);
            if (block_.thread() == 0) work_.worst[part] = worst;
        }
        float* to = work_.columns(part);
        if constexpr (S::TEAMS == 1) {
            store_sums<Op>(to, false);
        } else {
            for (int turn = 0; turn < S::TEAMS; ++turn) {
                if (team() == turn) store_sums<Op>(shared_.columns, turn > 0);
                block_.sync();
            }
            for (int j = block_.thread(); j < batch_.m; j += S::THREADS) to[j] = shared_.columns[j];
            block_.sync();
        }
    }
    template <class Op>
    HYSTAR_DEVICE void store_sums(float* to, bool adds) const {
        to += first_column();
#pragma unroll
        for (int k = 0; k < S::PIECES; ++k) {
            if (!has(k)) continue;
            auto* at = piece_at(to, k);
            Piece piece{};
            if (adds) piece = *at;
#pragma unroll
            for (int e = 0; e < S::VECTOR; ++e) {
                const float own = sums_[k * S::VECTOR + e];
                piece.value[e] = adds ? Op::apply(piece.value[e], own) : own;
            }
            *at = piece;
        }
    }

    // Reduces the values of all blocks for every column. A warp takes 32 columns, or 8 warps take them together if many
    // blocks share a problem.
    template <Pass PASS>
    HYSTAR_DEVICE void reduce_columns() {
        using Op = std::conditional_t<PASS == Pass::FIRST, Max, Sum>;
        const int warps = block_.blocks() > 7 * work_.problems ? 8 : 1, groups = S::WARPS / warps;
        const int member = block_.warp() % warps, chunks = (batch_.m + 31) / 32;
        const long long units = static_cast<long long>(work_.problems) * chunks;
        const long long stride = static_cast<long long>(block_.blocks()) * groups;
        for (long long first = static_cast<long long>(block_.rank()) * groups; first < units; first += stride) {
            const long long unit = first + block_.warp() / warps;
            const int problem = static_cast<int>(unit / chunks);
            const int j = static_cast<int>(unit % chunks) * 32 + block_.lane();
            const bool here = unit < units && this->template active<PASS>(problem);
            bool stops = false;
            float total = Op::NEUTRAL;
            if (here) {
                const long long row = static_cast<long long>(problem) * batch_.n;
                const int from = problem + this->owner(row), last = problem + this->owner(row + batch_.n - 1);
                if (PASS == Pass::ITERATE && k_ > 0 && batch_.tol > 0) stops = worst_row(from, last) <= batch_.tol;
#pragma unroll 8
                for (int part = from + member; part <= last; part += warps)
                    if (j < batch_.m) total = Op::apply(total, work_.columns(part)[j]);
            }
            if (warps > 1) {
                block_.sync();
                shared_.scratch[block_.thread()] = total;
                block_.sync();
                for (int other = 1; other < warps && member == 0; ++other)
                    total = Op::apply(total, shared_.scratch[block_.thread() + 32 * other]);
            }
            if (here && member == 0 && j < batch_.m) finish_column<PASS>(problem, j, total, stops);
        }
    }
    HYSTAR_DEVICE float worst_row(int from, int last) {
        float worst = 0;
        for (int part = from + block_.lane(); part <= last; part += 32) worst = fmaxf(worst, work_.worst[part]);
        return reduce_warp<Max>(block_, worst);
    }

    // Uses the sum, or the maximum, of a column. A problem that has met its tolerance keeps its scalings.
    template <Pass PASS>
    HYSTAR_DEVICE void finish_column(int index, int j, float total, bool stops) {
        const Problem problem(batch_, index);
        if constexpr (PASS == Pass::FIRST) {
            problem.v()[j] = -rintf(total);
        } else {
            float b = k_ > 0 ? work_.b(index)[j] : 0.0f;
            if (k_ > 0 && this->template builds<PASS>(index)) absorb(b, problem.v()[j]);
            if (!stops) {
                b = problem.column_mass * inverse(total);
                if (is_far<S>(b)) *work_.far_after(index, k_) = k_ + 1;
                if (j == 0) write_relaxed(problem.iterations(), k_ + 1);
            }
            work_.b(index)[j] = b;
        }
    }

    HYSTAR_DEVICE void write_column_potentials() {
        const long long count = static_cast<long long>(work_.problems) * batch_.m;
        const int threads = block_.blocks() * S::THREADS;
        for (long long at = block_.rank() * S::THREADS + block_.thread(); at < count; at += threads) {
            const auto problem = static_cast<int>(at / batch_.m), j = static_cast<int>(at % batch_.m);
            batch_.v[at] += log2f(work_.b(problem)[j]);
        }
    }

    typename S::Shared& shared_;
    float b_[S::COLUMNS], sums_[S::COLUMNS];  // of the columns of the thread
    float worst_ = 0;
    bool building_ = false;
    int turn_ = 0;
};

}  // namespace hystar_fast
