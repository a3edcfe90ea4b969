// Divides the rows of svd_linear on the CPU among threads: whole samples, or columns if there are too few samples.
#include <algorithm>

#include "cpu/threads.h"
#include "svd_linear/cpu/rows.h"

namespace hystar_fast::svd_linear {
namespace {

constexpr std::int64_t kValuesPerThread = 1 << 20;  // for which a thread pays while those of the product still spin
constexpr std::int64_t kStep = 64;                  // columns that threads do not share: two cache lines of bfloat16

}  // namespace

template <typename T>
void run(const Kernels<T>& kernels, const Pass<T>& pass, int threads) {
    const std::int64_t useful = std::min<std::int64_t>(threads, pass.samples * pass.tokens * pass.rank / kValuesPerThread);
    cpu::run_on_threads(static_cast<int>(useful), [&](int rank, int size) {
        const bool whole = pass.samples >= size;
        const std::int64_t left = whole ? 0 : cpu::part_begin(pass.rank, rank, size, kStep);
        const std::int64_t right = whole ? pass.rank : cpu::part_begin(pass.rank, rank + 1, size, kStep);
        const std::int64_t last = whole ? cpu::part_begin(pass.samples, rank + 1, size) : pass.samples;
        for (std::int64_t sample = whole ? cpu::part_begin(pass.samples, rank, size) : 0; sample < last; ++sample) {
            const std::int64_t at = sample * pass.tokens * pass.rank + left, row = sample * pass.rank + left;
            kernels.pass({pass.values + at, pass.others ? pass.others + at : nullptr, pass.scale + row,
                          pass.scaled ? pass.scaled + at : nullptr, pass.sums ? pass.sums + row : nullptr, pass.tokens,
                          right - left, pass.rank});
        }
    });
}

template void run(const Kernels<float>&, const Pass<float>&, int);
template void run(const Kernels<Bfloat16>&, const Pass<Bfloat16>&, int);

}  // namespace hystar_fast::svd_linear
