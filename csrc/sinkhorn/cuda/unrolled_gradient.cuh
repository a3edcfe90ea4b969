// Computes: the gradient of the cost through every iteration of a problem in registers (TileSolver).
// Grid: blocks or clusters, each of which takes one problem after the other and has a history.
// Each thread owns: the piece of A that it owns in the forward pass.
// Memory traffic: the cost twice, the gradient of the plan, dcost; the history is written and read once or twice (L2).
// Numerics: the iterations are repeated, which gives the scalings a_k, b_k of A up to rounding, and then undone:
//     Q = (M/N) a_k A b_k,  R = a_k A b_{k-1}      du -= Q dv,  dv = -R' du,  dK -= Q dv + R du
//   where the columns of Q and the rows of R sum to 1 up to rounding, for potentials of any size. dK changes by A times
//   outer products of a_k, h = a_k du and p = (M/N) b_k dv, b_{k-1}. These four vectors are the history. The products
//   are summed when all iterations of one A have been undone, so that A and their sum are never in registers at the
//   same time.
#pragma once

#include "sinkhorn/cuda/gradient.cuh"

namespace hystar_fast {

// The history of a block. Its vectors have the order of slots of T::Shared.
template <class T>
class History {
  public:
    static constexpr long long STEP = 2 * (T::ROW_SLOTS + T::COLUMN_SLOTS);
    static constexpr long long EPOCH = 4 + T::ROW_SLOTS + T::COLUMN_SLOTS;

    HYSTAR_BOTH static constexpr long long words(long long n_iter) { return n_iter * STEP + n_iter / 4 * EPOCH; }
    HYSTAR_DEVICE History(float* base, int n_iter) : steps_(base), epochs_(base + n_iter * STEP) {}

    // The vectors of iteration k >= 1: the scalings at its end, and b at its beginning (before). p replaces b after its
    // last use.
    HYSTAR_DEVICE float* a(int k) const { return steps_ + (k - 1) * STEP; }
    HYSTAR_DEVICE float* h(int k) const { return a(k) + T::ROW_SLOTS; }
    HYSTAR_DEVICE float* b(int k) const { return h(k) + T::ROW_SLOTS; }
    HYSTAR_DEVICE float* before(int k) const { return b(k) + T::COLUMN_SLOTS; }

    // For k a multiple of 4: whether scalings were absorbed after iteration k, and the potentials before that.
    HYSTAR_DEVICE float* absorbed(int k) const { return epochs_ + (k / 4 - 1) * EPOCH; }
    HYSTAR_DEVICE float* u(int k) const { return absorbed(k) + 4; }
    HYSTAR_DEVICE float* v(int k) const { return u(k) + T::ROW_SLOTS; }

  private:
    float *steps_, *epochs_;
};

template <class T, class Block>
class TileUnrolled : TileGradient<T, Block> {
    using Base = TileGradient<T, Block>;
    using typename Base::Entries;
    using Base::a_, Base::b_, Base::block_, Base::problem_, Base::scaling_, Base::shared_, Base::upstream_;

  public:
    HYSTAR_DEVICE TileUnrolled(Block& block, const Problem& problem, typename T::Shared& shared, const Upstream& upstream,
                               float* history)
        : Base(block, problem, shared, upstream), history_(history, problem.n_iter) {}

    HYSTAR_DEVICE void solve() {
        if (this->is_zero()) return;
        const int done = *problem_.iterations();
        start();
        int k = 1, last = 0;  // last: the last iteration with the present A, while going back; 0 while going forward
        for (;;) {
            if (last == 0 && !advance(k, done)) {
                weigh(k);
                last = k;
            }
            if (last != 0) {
                retreat(k);
                sum_up(k + 1, last);
                if (k == 0) break;
                copy(shared_.u, history_.u(k), T::ROW_SLOTS);
                copy(shared_.v, history_.v(k), T::COLUMN_SLOTS);
                last = k;
            } else {
                this->move_scalings();
            }
            this->rebuild();
            if (last == 0) load_aligned(b_, shared_.b + this->column_slot());
        }
    }

  private:
    // Write row values and column values to memory. Lanes that have the same values write them only once.
    HYSTAR_DEVICE void keep_rows(float* to, const float (&values)[T::ROWS]) const {
        if (this->lane_column() != 0) return;
#pragma unroll
        for (int i = 0; i < T::ROWS; ++i) to[this->row_slot() + i] = values[i];
    }
    HYSTAR_DEVICE void keep_columns(float* to, const float (&values)[T::COLUMNS]) const {
        if (block_.warp() == 0 && this->lane_row() == 0) store_aligned(to + this->column_slot(), values);
    }

    // Repeats the first iteration of the forward pass, and records it.
    HYSTAR_DEVICE void start() {
        this->first_iteration();
        float from[T::COLUMNS];
        load_aligned(from, shared_.v + this->column_slot());
#pragma unroll
        for (int c = 0; c < T::COLUMNS; ++c) from[c] = power_of_two(-from[c]);  // v = 0, beside this A
        keep_columns(history_.before(1), from);
        keep_rows(history_.a(1), scaling_);
        keep_columns(history_.b(1), b_);
    }

    // Repeats the iterations after k. Returns false after the last one, or true if scalings must be absorbed before the
    // next.
    HYSTAR_DEVICE bool advance(int& k, int done) {
        while (k < done) {
            keep_columns(history_.before(k + 1), b_);
            this->row_step();
            this->column_step();
            ++k;
            keep_rows(history_.a(k), scaling_);
            keep_columns(history_.b(k), b_);
            if (k % 4 != 0 || k == done) continue;
            const bool far = this->any_far();
            if (block_.thread() == 0) *history_.absorbed(k) = far ? 1.0f : 0.0f;
            if (!far) continue;
            copy(history_.u(k), shared_.u, T::ROW_SLOTS);
            copy(history_.v(k), shared_.v, T::COLUMN_SLOTS);
            block_.sync();
            return true;
        }
        return false;
    }

    // Undoes the iterations with the present A. Sets k to the last iteration before them.
    HYSTAR_DEVICE void retreat(int& k) {
        const int done = *problem_.iterations();
        do undo(k, k == done);
        while (--k > 0 && (k % 4 != 0 || *history_.absorbed(k) == 0));
    }

    HYSTAR_DEVICE void copy(float* to, const float* from, int count) {
        for (int i = block_.thread(); i < count; i += Block::THREADS) to[i] = from[i];
    }

    // Writes the part of dcost that comes from W = plan * dplan. The column sums of W, the first dv, go to shared_.b,
    // and its row sums, du, to the memory of h of the last iteration.
    HYSTAR_DEVICE void weigh(int done) {
        float du[T::ROWS] = {}, dv[T::COLUMNS] = {};
#pragma unroll
        for (int i = 0; i < T::ROWS; ++i) {
            const Entries own = this->entries(i);
            float* out = upstream_.dcost + own.first;
            float w[T::COLUMNS];
            this->read(w, upstream_.dplan, own);
#pragma unroll
            for (int k = 0; k < T::COLUMNS; ++k) {
                w[k] *= a_[i][k] * scaling_[i] * b_[k];
                du[i] += w[k];
                dv[k] += w[k];
                if (own.has(k)) out[T::LANE_COLUMNS * k] = -upstream_.inverse_epsilon * w[k];
            }
        }
        this->add_rows(du, shared_.a);
        keep_rows(history_.h(done), du);
        this->add_columns(dv, shared_.b);
    }

    // Undoes iteration k. shared_.b has the column sums of R du of the iteration after it, which are not scaled yet;
    // they are replaced by those of this iteration. Only the last iteration has a du.
    HYSTAR_DEVICE void undo(int k, bool is_last) {
        const float per_column = 1 / problem_.column_mass;
        float p[T::COLUMNS], h[T::ROWS], factor[T::COLUMNS];
        load_aligned(p, shared_.b + this->column_slot());
        load_aligned(factor, history_.b(k) + this->column_slot());
#pragma unroll
        for (int c = 0; c < T::COLUMNS; ++c) p[c] *= factor[c] * per_column;
        if (!is_last) {
            load_aligned(factor, history_.before(k + 1) + this->column_slot());
#pragma unroll
            for (int c = 0; c < T::COLUMNS; ++c) p[c] *= -factor[c];
        }
        this->times(p, h);
        this->add_rows(h, shared_.a);
#pragma unroll
        for (int i = 0; i < T::ROWS; ++i) {
            const float a = history_.a(k)[this->row_slot() + i], du = is_last ? history_.h(k)[this->row_slot() + i] : 0.0f;
            h[i] = a * (du - a * h[i]);
        }
        block_.sync_warp();
        keep_rows(history_.h(k), h);
        this->transposed_times(h, factor);
        this->add_columns(factor, shared_.b);
        keep_columns(history_.b(k), p);  // all threads have read b by now
    }

    // dcost += A * sum over the iterations first .. last of (a p' + h b') / epsilon. All of them have the present A.
    HYSTAR_DEVICE void sum_up(int first, int last) {
        constexpr int HEIGHT = T::ROWS % 2 == 0 && T::ROWS * T::COLUMNS < 96 ? 2 : 1;  // rows at the same time
        block_.sync();
#pragma unroll
        for (int i = 0; i < T::ROWS; i += HEIGHT) {
            float total[HEIGHT][T::COLUMNS] = {};
#pragma unroll 1
            for (int k = first; k <= last; ++k) {
                float p[T::COLUMNS], before[T::COLUMNS];
                load_aligned(p, history_.b(k) + this->column_slot());
                load_aligned(before, history_.before(k) + this->column_slot());
#pragma unroll
                for (int r = 0; r < HEIGHT; ++r) {
                    const float a = history_.a(k)[this->row_slot() + i + r], h = history_.h(k)[this->row_slot() + i + r];
#pragma unroll
                    for (int c = 0; c < T::COLUMNS; ++c)
                        total[r][c] = fmaf(a, p[c], fmaf(h, before[c], total[r][c]));
                }
            }
#pragma unroll
            for (int r = 0; r < HEIGHT; ++r) {
                const Entries own = this->entries(i + r);
                float* out = upstream_.dcost + own.first;
#pragma unroll
                for (int c = 0; c < T::COLUMNS; ++c)
                    if (own.has(c)) out[T::LANE_COLUMNS * c] += upstream_.inverse_epsilon * a_[i + r][c] * total[r][c];
            }
        }
    }

    History<T> history_;
};

}  // namespace hystar_fast
