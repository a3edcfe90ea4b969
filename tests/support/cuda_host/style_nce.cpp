// The kernels of csrc/style_nce/cuda/style_nce.cu on the CPU: the same block algorithms, one block after the other.
#include "style_nce/cuda/rows.cuh"

#include "block.h"

using namespace hystar_fast;

namespace {

constexpr int WARPS = 4;
using Block = HostBlock<WARPS>;
constexpr size_t SCRATCH = sizeof(float) * WARPS;

size_t words(int64_t count) { return sizeof(float) * static_cast<size_t>(count); }

}  // namespace

extern "C" void normalise_host(const float* query, int64_t query_stride, const float* target, int64_t target_stride,
                               int64_t n, int64_t d, float* units, float* lengths) {
    const memory::Known known({{"the query", query, words((n - 1) * query_stride + d)},
                               {"the target", target, words((n - 1) * target_stride + d)},
                               {"the units", units, words(2 * n * d)},
                               {"the lengths", lengths, words(2 * n)}});
    Block on(1, {SCRATCH});
    for (int64_t row = 0; row < 2 * n; ++row) {
        const float* x = row < n ? query + row * query_stride : target + (row - n) * target_stride;
        on.launch([&](auto& block) {
            style_nce_cuda::unit(block, x, static_cast<int>(d), units + row * d, lengths + row,
                                 &block.template shared<float>());
        }, static_cast<int>(row));
    }
}

extern "C" int64_t workspace_host(int64_t n) { return 4 * style_nce_cuda::Workspace::words(n); }

// The two kernels before and after the plan: the cost (0) and the loss (1). Writes the addresses of cost, u, v, error,
// status and iterations in the workspace to `parts`, for the Sinkhorn between them.
extern "C" void pass_host(int which, const float* sim, const float* lengths, const uint8_t* mask, int64_t n,
                          double temperature, double gamma, double lam, double epsilon, int weights, float* loss, int mean,
                          float* slope, void* workspace, void** parts) {
    const style_nce_cuda::Workspace work(workspace, n);
    const auto job = style_nce_cuda::make_job(sim, lengths, mask, slope, loss, static_cast<int>(n), mean != 0, weights,
                                              temperature, gamma, lam, epsilon, work);
    void* const found[] = {work.cost, work.u, work.v, work.error, work.status, work.iterations};
    std::memcpy(parts, found, sizeof found);
    const int blocks = static_cast<int>((n + WARPS - 1) / WARPS);
    const memory::Known known({{"sim", sim, words(n * n)},
                               {"the lengths", lengths, words(2 * n)},
                               {"the mask", mask, static_cast<size_t>(n * n)},
                               {"the loss", loss, words(mean != 0 ? 1 : n)},
                               {"the slope", slope, words(n * n)},
                               {"the workspace", workspace, words(style_nce_cuda::Workspace::words(n))}});
    Block on(n, {SCRATCH});
    for (int b = 0; b < blocks; ++b) {
        on.launch([&](auto& block) {
            if (which == 0) return style_nce_cuda::cost_row(block, job, b * WARPS + block.warp());
            style_nce_cuda::loss_row(block, job, b * WARPS + block.warp());
            style_nce_cuda::mean_of_losses(block, job, blocks, &block.template shared<float>());
        }, b);
    }
}

extern "C" void project_host(float* dquery, float* dtarget, const float* units, const float* lengths, int64_t n, int64_t d,
                             const float* dloss, int64_t dloss_stride, double scale) {
    const style_nce_cuda::Projection projection{dquery, dtarget, units, lengths, dloss, dloss_stride, n, d,
                                                static_cast<float>(scale)};
    const memory::Known known({{"dquery", dquery, words(n * d)},
                               {"dtarget", dtarget, words(n * d)},
                               {"the units", units, words(2 * n * d)},
                               {"the lengths", lengths, words(2 * n)},
                               {"dloss", dloss, words((n - 1) * dloss_stride + 1)}});
    Block on(1, {SCRATCH});
    for (int64_t index = 0; index < ((dquery != nullptr) + (dtarget != nullptr)) * n; ++index)
        on.launch([&](auto& block) { style_nce_cuda::project_row(block, projection, index, &block.template shared<float>()); },
                  static_cast<int>(index));
}
