// Decides exactly whether a mask leaves any transport plan, by a maximum flow in integers.
#include "sinkhorn/cpu/sinkhorn.h"

#include <algorithm>
#include <numeric>
#include <vector>

namespace hystar_fast::sinkhorn {
namespace {

// A flow from rows to columns along allowed entries. With g = gcd(n, m), each row supplies m/g units and each column
// demands n/g. The rows are served one after the other, along shortest augmenting paths.
class Flow {
public:
    Flow(std::int64_t n, std::int64_t m, const std::function<bool(std::int64_t, std::int64_t)>& allowed)
        : n_(n), m_(m), words_((m + 63) / 64), unit_(std::gcd(n, m)), neighbours_(size(n * words_)), unseen_(size(words_)),
          holders_(size(m)), demand_(size(m), n / unit_), reached_from_(size(n)) {
        for (std::int64_t i = 0; i < n; ++i)
            for (std::int64_t j = 0; j < m; ++j)
                if (allowed(i, j)) neighbours_[size(i * words_ + j / 64)] |= std::uint64_t{1} << (j % 64);
    }

    bool serves_all() {
        for (std::int64_t row = 0; row < n_; ++row)
            for (std::int64_t supply = m_ / unit_; supply > 0;) {
                const std::int64_t end = find_path(row);
                if (end < 0) return false;
                supply -= augment(row, end, supply);
            }
        return true;
    }

private:
    struct Step {
        std::int64_t previous_row, taken_column;  // the row before on the path, and the column taken from this row
    };
    struct Share {
        std::int64_t row, amount;
    };
    static std::size_t size(std::int64_t value) { return static_cast<std::size_t>(value); }

    // Returns a column with demand left that a path from `start` reaches, or -1. Sets last_row_, the last row of the
    // path.
    std::int64_t find_path(std::int64_t start) {
        std::fill(unseen_.begin(), unseen_.end(), ~std::uint64_t{0});
        std::fill(reached_from_.begin(), reached_from_.end(), Step{-1, -1});
        reached_from_[size(start)] = {start, -1};
        queue_.assign(1, start);
        for (std::size_t head = 0; head < queue_.size(); ++head) {
            const std::int64_t row = queue_[head];
            for (std::int64_t word = 0; word < words_; ++word) {
                std::uint64_t fresh = neighbours_[size(row * words_ + word)] & unseen_[size(word)];
                unseen_[size(word)] &= ~fresh;
                for (; fresh; fresh &= fresh - 1) {
                    const std::int64_t column = word * 64 + __builtin_ctzll(fresh);
                    if (demand_[size(column)] > 0) {
                        last_row_ = row;
                        return column;
                    }
                    for (const Share& share : holders_[size(column)])
                        if (reached_from_[size(share.row)].previous_row < 0) {
                            reached_from_[size(share.row)] = {row, column};
                            queue_.push_back(share.row);
                        }
                }
            }
        }
        return -1;
    }

    // Sends as much of `supply` as possible along the path that find_path found, and returns the amount.
    std::int64_t augment(std::int64_t start, std::int64_t end, std::int64_t supply) {
        std::int64_t amount = std::min(supply, demand_[size(end)]);
        for (std::int64_t row = last_row_; row != start; row = reached_from_[size(row)].previous_row)
            amount = std::min(amount, flow(reached_from_[size(row)].taken_column, row));
        demand_[size(end)] -= amount;
        std::int64_t column = end;
        for (std::int64_t row = last_row_;; row = reached_from_[size(row)].previous_row) {
            add_flow(column, row, amount);
            if (row == start) return amount;
            column = reached_from_[size(row)].taken_column;
            add_flow(column, row, -amount);
        }
    }

    // The flow of a row into a column.
    std::int64_t flow(std::int64_t column, std::int64_t row) const {
        for (const Share& share : holders_[size(column)])
            if (share.row == row) return share.amount;
        return 0;
    }

    void add_flow(std::int64_t column, std::int64_t row, std::int64_t amount) {
        std::vector<Share>& shares = holders_[size(column)];
        const auto share = std::find_if(shares.begin(), shares.end(), [row](const Share& s) { return s.row == row; });
        if (share == shares.end()) {
            shares.push_back({row, amount});
        } else if ((share->amount += amount) == 0) {
            *share = shares.back();
            shares.pop_back();
        }
    }

    const std::int64_t n_, m_, words_, unit_;
    std::vector<std::uint64_t> neighbours_, unseen_;
    std::vector<std::vector<Share>> holders_;  // of each column: the rows that send into it, and how much
    std::vector<std::int64_t> demand_, queue_;
    std::vector<Step> reached_from_;
    std::int64_t last_row_ = 0;
};

}  // namespace

bool has_plan(std::int64_t n, std::int64_t m, const std::function<bool(std::int64_t, std::int64_t)>& allowed) {
    return Flow(n, m, allowed).serves_all();
}

}  // namespace hystar_fast::sinkhorn
