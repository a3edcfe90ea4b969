// The device of bench/gpu_runner on the CPU, and the functions of the extension that it calls, with emulated blocks.
#include "device.h"

#include "block.h"

#include <cstdlib>
#include <cstring>
#include <vector>

#include "kernel_names.h"
#include "sinkhorn/cuda/sinkhorn.h"
#include "style_nce/cuda/style_nce.h"

extern "C" {
void sinkhorn_host(const float*, const uint8_t*, float*, float*, float*, int*, float*, int*, int, int, int, double, int,
                   double, int, int, int, uint64_t);
void sinkhorn_gradient_host(const float*, const uint8_t*, float*, const float*, int*, float*, int, int, int, double, int,
                            int, int, uint64_t);
void normalise_host(const float*, int64_t, const float*, int64_t, int64_t, int64_t, float*, float*);
int64_t workspace_host(int64_t);
void pass_host(int, const float*, const float*, const uint8_t*, int64_t, double, double, double, double, int, float*, int,
               float*, void*, void**);
void project_host(float*, float*, const float*, const float*, int64_t, int64_t, const float*, int64_t, double);
}

namespace {

// As an H200, but with few multiprocessors, because the emulation of a sweep has a fiber for each of their threads. Wide
// rows have so many that several warps add up the sums of a column.
constexpr hystar_fast::Gpu gpu(int64_t m) { return {m > 2400 ? 9 : 3, 16, 227 << 10}; }

uint64_t next_seed() {
    static uint64_t seed = 0;
    return ++seed;
}

// The fault that a test asks for, so that it sees the runner find it.
bool has_fault(const char* name) {
    const char* wanted = std::getenv("HYSTAR_RUNNER_FAULT");
    return wanted != nullptr && std::strcmp(wanted, name) == 0;
}
void spoil(float* cost, float* plan, int64_t rows, int64_t columns) {
    static int calls = 0;
    ++calls;
    float* last = plan + (rows - 1) * columns;
    if (has_fault("row")) last[0] += 0.01f;
    if (has_fault("unwritten")) std::memset(last, 0xff, sizeof(float));
    if (has_fault("outside")) last[columns] = 0;
    if (has_fault("input") && calls == 3) cost[0] += 1;
    if (has_fault("bits") && calls == 2) last[0] = std::nextafter(last[0], 2.0f);
}

template <class T>
T* at(uintptr_t address) {
    return reinterpret_cast<T*>(address);
}

}  // namespace

namespace runner::device {

std::string name() { return "emulated blocks"; }
int threads() { return 1; }
uintptr_t stream() { return 0; }
void* allocate(size_t bytes) { return std::malloc(bytes); }
void release(void* memory) { std::free(memory); }
void upload(void* to, const void* from, size_t bytes) { std::memcpy(to, from, bytes); }
void download(void* to, const void* from, size_t bytes) { std::memcpy(to, from, bytes); }
void fill(void* at, int byte, size_t bytes) { std::memset(at, byte, bytes); }
void finish() {}
std::string forward_kernel(int64_t batch, int64_t n, int64_t m) {
    return kernel_name(hystar_fast::choose(batch, n, m, gpu(m)), n, m, false);
}
std::string gradient_kernel(int64_t n, int64_t m) {
    return hystar_fast::sinkhorn_cuda_has_gradient(n, m) ? kernel_name(hystar_fast::choose_gradient(n, m, gpu(m)), n, m, true)
                                                         : "none";
}

}  // namespace runner::device

namespace hystar_fast {

int64_t sinkhorn_cuda_workspace(int64_t, int64_t, int64_t) { return 0; }  // the emulation has its own

void sinkhorn_cuda_forward(uintptr_t cost, uintptr_t mask, uintptr_t plan, uintptr_t u, uintptr_t v, uintptr_t status,
                           uintptr_t error, uintptr_t iterations, int64_t batch, int64_t n, int64_t m, double epsilon,
                           int64_t n_iter, double tol, uintptr_t, uintptr_t) {
    const Choice choice = choose(batch, n, m, gpu(m));
    sinkhorn_host(at<float>(cost), at<uint8_t>(mask), at<float>(plan), at<float>(u), at<float>(v), at<int>(status),
                  at<float>(error), at<int>(iterations), static_cast<int>(batch), static_cast<int>(n), static_cast<int>(m),
                  epsilon, static_cast<int>(n_iter), tol, choice.kind, choice.shape, choice.blocks, next_seed());
    spoil(at<float>(cost), at<float>(plan), batch * n, m);
}

bool sinkhorn_cuda_has_gradient(int64_t n, int64_t m) { return choose_gradient(n, m, gpu(m)).kind != Choice::STREAM; }
int64_t sinkhorn_cuda_unrolled_workspace(int64_t, int64_t, int64_t, int64_t) { return 0; }

void sinkhorn_cuda_unrolled_backward(uintptr_t cost, uintptr_t mask, uintptr_t dplan, uintptr_t iterations,
                                     uintptr_t dcost, int64_t batch, int64_t n, int64_t m, double epsilon, int64_t n_iter,
                                     uintptr_t, uintptr_t) {
    const Choice choice = choose_gradient(n, m, gpu(m));
    sinkhorn_gradient_host(at<float>(cost), at<uint8_t>(mask), nullptr, at<float>(dplan), at<int>(iterations),
                           at<float>(dcost), static_cast<int>(batch), static_cast<int>(n), static_cast<int>(m), epsilon,
                           static_cast<int>(n_iter), choice.kind, choice.blocks, next_seed());
}

void sinkhorn_cuda_implicit_backward(uintptr_t plan, uintptr_t dplan, uintptr_t iterations, uintptr_t dcost, int64_t batch,
                                     int64_t n, int64_t m, double epsilon, uintptr_t) {
    const Choice choice = choose_gradient(n, m, gpu(m));
    sinkhorn_gradient_host(nullptr, nullptr, at<float>(plan), at<float>(dplan), at<int>(iterations), at<float>(dcost),
                           static_cast<int>(batch), static_cast<int>(n), static_cast<int>(m), epsilon, 1, choice.kind,
                           choice.blocks, next_seed());
}

void style_nce_cuda_normalise(uintptr_t query, int64_t query_stride, uintptr_t target, int64_t target_stride, int64_t n,
                              int64_t d, uintptr_t units, uintptr_t lengths, uintptr_t) {
    normalise_host(at<float>(query), query_stride, at<float>(target), target_stride, n, d, at<float>(units),
                   at<float>(lengths));
}

int64_t style_nce_cuda_workspace(int64_t n) { return workspace_host(n); }

void style_nce_cuda_forward(uintptr_t sim, uintptr_t lengths, uintptr_t mask, int64_t n, double temperature, double gamma,
                            double lam, double epsilon, int64_t n_iter, int weights, uintptr_t loss, bool mean,
                            uintptr_t slope, uintptr_t, uintptr_t workspace) {
    void* parts[6];
    for (const int which : {0, 1}) {
        pass_host(which, at<float>(sim), at<float>(lengths), at<uint8_t>(mask), n, temperature, gamma, lam, epsilon, weights,
                  at<float>(loss), mean, at<float>(slope), at<void>(workspace), parts);
        if (which == 1 || weights == UNIFORM) continue;
        const auto part = [&](int i) { return reinterpret_cast<uintptr_t>(parts[i]); };
        sinkhorn_cuda_forward(part(0), 0, slope, part(1), part(2), part(4), part(3), part(5), 1, n, n,
                              weights == PAPER ? epsilon : lam, n_iter, 0.0, 0, 0);
    }
}

void style_nce_cuda_project(uintptr_t dquery, uintptr_t dtarget, uintptr_t units, uintptr_t lengths, int64_t n, int64_t d,
                            uintptr_t dloss, int64_t dloss_stride, double scale, uintptr_t) {
    project_host(at<float>(dquery), at<float>(dtarget), at<float>(units), at<float>(lengths), n, d, at<float>(dloss),
                 dloss_stride, scale);
}

}  // namespace hystar_fast
