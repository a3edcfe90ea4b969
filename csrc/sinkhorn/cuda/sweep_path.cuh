// The path of a block of the sweeping kernel: its rows and their order, the ring through which they are read, the
// workspace.
//
// The rows of the whole batch are divided evenly. A block takes one part of them, which may end in the middle of a
// problem. A step is one row for each team of the block, all of the same problem. Steps are read through a ring of
// slots in shared memory. A thread copies the values that it will read itself, so a slot needs no barrier: it is filled
// again after its values have been added to sums. Sweeps go forward and back in turn, so the steps in the ring at the
// end of a sweep are the first of the next.
#pragma once

#include <type_traits>

#include "sinkhorn/cuda/shapes.cuh"
#include "sinkhorn/cuda/stream.cuh"

namespace hystar_fast {

// The workspace of a batch. Column vectors have a pitch, so that they are aligned.
struct SweepWorkspace {
    static HYSTAR_BOTH constexpr long long column_pitch(int m) { return (m + 3) / 4 * 4; }
    // The most sums of a column that the blocks write: one for each pair of a block and a problem that it works on.
    static HYSTAR_BOTH constexpr long long parts(long long problems, int blocks) { return problems + blocks - 1; }
    static HYSTAR_BOTH constexpr long long words(long long problems, int n, int m, int blocks) {
        return (problems + parts(problems, blocks)) * column_pitch(m) + problems * (Workspace::words(n, m) + 2) +
               parts(problems, blocks);
    }

    HYSTAR_BOTH SweepWorkspace(float* base, const Batch& batch, long long count, int blocks)
        : problems(static_cast<int>(count)), pitch(column_pitch(batch.m)), scalings(base) {
        partial = scalings + count * pitch;
        rows = partial + parts(count, blocks) * pitch;
        worst = rows + count * Workspace::words(batch.n, batch.m);
        far = reinterpret_cast<int*>(worst + parts(count, blocks));
    }
    HYSTAR_DEVICE float* b(int problem) const { return scalings + problem * pitch; }
    HYSTAR_DEVICE float* columns(int part) const { return partial + part * pitch; }
    // Iteration k writes k + 1 here if a scaling is far (is_far). The next iteration reads it.
    HYSTAR_DEVICE int* far_after(long long problem, int k) const { return far + 2 * problem + k % 2; }

    int problems;
    long long pitch;
    float *scalings, *partial;  // b of a problem; the column sums of part number `block + problem`
    float* rows;                // a Workspace for every problem; its two u hold the scalings a in turn
    float* worst;               // the largest |row - 1| of a part
    int* far;
};

template <int COUNT>
struct alignas(4 * COUNT) Vector {
    float value[COUNT];
};

// The passes: row sums and column maxima of the cost; an iteration; the plan.
enum class Pass { FIRST, ITERATE, PLAN };

template <class S, class Block>
class SweepPath {
  public:
    // `ring` has `stages` slots of S::SLOT floats.
    HYSTAR_DEVICE SweepPath(Block& block, const Batch& batch, const SweepWorkspace& work, float* ring, int stages)
        : block_(block), batch_(batch), work_(work), ring_(ring), stages_(stages) {
        const long long first = share(block.rank()), last = share(block.rank() + 1) - 1;
        first_problem_ = static_cast<int>(first / batch.n);
        last_problem_ = static_cast<int>(last / batch.n);
        first_row_ = static_cast<int>(first % batch.n);
        end_row_ = static_cast<int>(last % batch.n) + 1;
        right_of_first_ = batch.m - first_column();
    }

  protected:
    // A step of a sweep: the rows from `row` on, one for each team, and the address of this thread's part of its row.
    struct Step {
        int problem, row;
        const float* from;
    };
    using Piece = Vector<S::VECTOR>;

    // Rows are numbered over the whole batch: their number, the first row of a block, and the block that has a row.
    HYSTAR_DEVICE long long total() const { return static_cast<long long>(work_.problems) * batch_.n; }
    HYSTAR_DEVICE long long share(int block) const { return total() * block / block_.blocks(); }
    HYSTAR_DEVICE int owner(long long row) const { return static_cast<int>(((row + 1) * block_.blocks() - 1) / total()); }

    HYSTAR_DEVICE int team() const { return block_.warp() / S::TEAM_WARPS; }
    HYSTAR_DEVICE int team_thread() const { return block_.thread() % S::TEAM_THREADS; }
    // The columns of a thread are pieces of VECTOR columns, at equal distances, so that their addresses differ by
    // constants.
    HYSTAR_DEVICE int first_column() const { return team_thread() * S::VECTOR; }
    HYSTAR_DEVICE static constexpr int apart(int piece) { return piece * S::TEAM_THREADS * S::VECTOR; }
    HYSTAR_DEVICE bool has(int piece) const { return apart(piece) < right_of_first_; }
    template <class T>
    HYSTAR_DEVICE static auto* piece_at(T* first, int piece) {
        using At = std::conditional_t<std::is_const_v<T>, const Piece, Piece>;
        return reinterpret_cast<At*>(first + apart(piece));
    }
    HYSTAR_DEVICE Piece* place(int slot, int piece) const {
        return reinterpret_cast<Piece*>(ring_ + slot * S::SLOT) + piece * S::THREADS + block_.thread();
    }
    HYSTAR_DEVICE int* iterations(long long problem) const { return batch_.iterations + problem; }

    // Returns true if this pass works on the problem. With a tolerance, an iteration skips problems that have met it.
    template <Pass PASS>
    HYSTAR_DEVICE bool active(int problem) const {
        return PASS != Pass::ITERATE || k_ == 0 || read_relaxed(iterations(problem)) >= k_;
    }
    // Returns true if this pass reads the cost of the problem, instead of A.
    template <Pass PASS>
    HYSTAR_DEVICE bool builds(int problem) const {
        if (PASS == Pass::PLAN) return false;
        return PASS == Pass::FIRST || k_ == 0 || *work_.far_after(problem, k_ - 1) == k_;
    }

    HYSTAR_DEVICE bool exists(const Step& step) const {
        return step.problem >= first_problem_ && step.problem <= last_problem_;
    }
    HYSTAR_DEVICE int begin(int problem) const { return problem == first_problem_ ? first_row_ : 0; }
    HYSTAR_DEVICE int end(int problem) const { return problem == last_problem_ ? end_row_ : batch_.n; }
    template <Pass PASS>
    HYSTAR_DEVICE Step first_step() const {
        Step step{forward_ ? first_problem_ - 1 : last_problem_ + 1, 0, nullptr};
        enter_next<PASS>(step);
        return step;
    }
    template <Pass PASS>
    HYSTAR_DEVICE void enter_next(Step& step) const {
        do step.problem += forward_ ? 1 : -1;
        while (exists(step) && !active<PASS>(step.problem));
        if (!exists(step)) return;
        const int first = begin(step.problem);
        step.row = forward_ ? first : first + (end(step.problem) - first - 1) / S::TEAMS * S::TEAMS;
        const Problem problem(batch_, step.problem);
        const float* matrix = builds<PASS>(step.problem) ? problem.cost() : problem.plan();
        step.from = matrix + problem.at(step.row + team(), first_column());
    }
    template <Pass PASS>
    HYSTAR_DEVICE void advance(Step& step) const {
        if (!exists(step)) return;
        const int rows = forward_ ? S::TEAMS : -S::TEAMS;
        step.row += rows;
        step.from += static_cast<long long>(rows) * batch_.m;
        if (step.row < begin(step.problem) || step.row >= end(step.problem)) enter_next<PASS>(step);
    }
    HYSTAR_DEVICE int beside(int slot) const {
        if (forward_) return slot + 1 == stages_ ? 0 : slot + 1;
        return slot == 0 ? stages_ - 1 : slot - 1;
    }

    HYSTAR_DEVICE void fetch(const Step& step, int slot) {
        if (step.row + team() >= end(step.problem)) return;
#pragma unroll
        for (int k = 0; k < S::PIECES; ++k)
            if (has(k)) block_.copy_async(place(slot, k), step.from + apart(k));
    }
    // Reads the entries of a row that this thread has.
    HYSTAR_DEVICE void read(float (&entries)[S::COLUMNS], int slot, bool there, float otherwise) const {
#pragma unroll
        for (int k = 0; k < S::PIECES; ++k) {
            Piece piece;
#pragma unroll
            for (int e = 0; e < S::VECTOR; ++e) piece.value[e] = otherwise;
            if (there && has(k)) piece = *place(slot, k);
#pragma unroll
            for (int e = 0; e < S::VECTOR; ++e) entries[k * S::VECTOR + e] = piece.value[e];
        }
    }
    // Writes them to the plan, and to the slot if its values are used again.
    HYSTAR_DEVICE void write(const float (&entries)[S::COLUMNS], const Problem& problem, int row, int slot,
                             bool stays) const {
        float* plan = problem.plan() + problem.at(row, first_column());
#pragma unroll
        for (int k = 0; k < S::PIECES; ++k) {
            if (!has(k)) continue;
            Piece piece;
#pragma unroll
            for (int e = 0; e < S::VECTOR; ++e) piece.value[e] = entries[k * S::VECTOR + e];
            *piece_at(plan, k) = piece;
            if (stays) *place(slot, k) = piece;
        }
    }

    // One sweep: calls take(step, slot, stays) for every step of the block. `stays` is true if the slot is not filled
    // again. `resident` means that the ring already has the first steps.
    template <Pass PASS, class Take>
    HYSTAR_DEVICE void sweep(bool resident, Take take) {
        Step step = first_step<PASS>(), ahead = step;
        for (int i = 0, slot = slot_; i < stages_; ++i, slot = beside(slot)) {
            if (!resident && exists(ahead)) fetch(ahead, slot);
            block_.commit_copies();
            advance<PASS>(ahead);
        }
        for (int slot = slot_; exists(step); slot = beside(slot)) {
            const bool refilled = exists(ahead);
            block_.wait_for_copies(stages_ - 1);
            take(step, slot, !refilled);
            if (refilled) fetch(ahead, slot);
            block_.commit_copies();
            slot_ = slot;
            advance<PASS>(step);
            advance<PASS>(ahead);
        }
        forward_ = !forward_;
    }

    Block& block_;
    const Batch& batch_;
    const SweepWorkspace& work_;
    float* ring_;
    int stages_, slot_ = 0;  // the number of slots, and the slot with which a sweep begins
    int first_problem_, last_problem_, first_row_, end_row_, right_of_first_;
    int k_ = 0;  // the iteration
    bool forward_ = true;
};

}  // namespace hystar_fast
