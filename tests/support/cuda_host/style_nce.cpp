// The kernels of csrc/style_nce/cuda/style_nce.cu on the CPU: the same block algorithms, one block after the other.
#include "style_nce/cuda/rows.cuh"

#include "block.h"

using namespace hystar_fast;

namespace {

constexpr int WARPS = 4;
using Block = HostBlock<WARPS>;

}  // namespace

extern "C" void normalise_host(const float* query, int64_t query_stride, const float* target, int64_t target_stride,
                               int64_t n, int64_t d, float* units, float* lengths) {
    Block on(1);
    for (int64_t row = 0; row < 2 * n; ++row) {
        Poisoned<float[WARPS]> scratch;
        const float* x = row < n ? query + row * query_stride : target + (row - n) * target_stride;
        on.launch([&](auto& block) {
            style_nce_cuda::unit(block, x, static_cast<int>(d), units + row * d, lengths + row, scratch.value);
        });
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
    Block on(n);
    for (int b = 0; b < blocks; ++b) {
        Poisoned<float[WARPS]> scratch;
        on.launch([&](auto& block) {
            if (which == 0) return style_nce_cuda::cost_row(block, job, b * WARPS + block.warp());
            style_nce_cuda::loss_row(block, job, b * WARPS + block.warp());
            style_nce_cuda::mean_of_losses(block, job, blocks, scratch.value);
        });
    }
}

extern "C" void project_host(float* dquery, float* dtarget, const float* units, const float* lengths, int64_t n, int64_t d,
                             const float* dloss, int64_t dloss_stride, double scale) {
    const style_nce_cuda::Projection projection{dquery, dtarget, units, lengths, dloss, dloss_stride, n, d,
                                                static_cast<float>(scale)};
    Block on(1);
    for (int64_t index = 0; index < ((dquery != nullptr) + (dtarget != nullptr)) * n; ++index) {
        Poisoned<float[WARPS]> scratch;
        on.launch([&](auto& block) { style_nce_cuda::project_row(block, projection, index, scratch.value); });
    }
}
