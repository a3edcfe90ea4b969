// Small kernels, each with one fault that the emulation must find and, if a line has the comment "fault", name that
// line. `faults NAME` runs one of them, `faults` lists the names.
#include <cstdio>
#include <map>

#include "block.h"

using namespace hystar_fast;

namespace {

constexpr int WARPS = 2, WORDS = 64;
struct Shared {
    float first[WORDS], second[WORDS];
};
using Block = HostBlock<WARPS>;
using OneWarp = HostBlock<1>;
using Grid = HostGrid<WARPS>;
using Cluster = HostCluster<WARPS>;

float *input, *output;  // [WORDS] in global memory

template <class Kernel>
void on_block(Kernel kernel) {
    Block on(1, {sizeof(Shared)});
    on.launch([&](auto& block) { kernel(block, block.template shared<Shared>()); });
}
template <class Kernel>
void on_warp(Kernel kernel) {
    OneWarp on(1, {sizeof(Shared)});
    on.launch([&](auto& block) { kernel(block, block.template shared<Shared>()); });
}
template <class Kernel>
void on_grid(Kernel kernel) {
    Grid on(1, {sizeof(Shared)}, 2);
    on.launch([&](auto& block) { kernel(block, block.template shared<Shared>()); });
}
template <class Kernel>
void on_cluster(Kernel kernel) {
    Cluster on(1, sizeof(Shared), 2);
    on.launch([&](auto& block) { kernel(block, block.template shared<Shared>()); });
}

const std::map<std::string, void (*)()> KERNELS = {
    {"nothing wrong",
     [] {
         on_block([](auto& block, Shared& shared) {
             shared.first[block.thread()] = static_cast<float>(block.thread());
             shared.second[0] = 1;  // all threads write the same value
             block.sync();
             output[block.thread()] = shared.first[WORDS - 1 - block.thread()] + shared.second[0];
         });
     }},
    {"no barrier of the block",
     [] {
         on_block([](auto& block, Shared& shared) {
             shared.first[block.thread()] = 1;
             block.sync_warp();
             output[block.thread()] = shared.first[WORDS - 1 - block.thread()];  // fault
         });
     }},
    {"a value is overwritten too early",
     [] {
         on_block([](auto& block, Shared& shared) {
             shared.first[block.thread()] = 1;
             block.sync();
             output[block.thread()] = shared.first[WORDS - 1 - block.thread()];
             shared.first[block.thread()] = 2;  // fault
         });
     }},
    {"different values are written at the same time",
     [] {
         on_block([](auto& block, Shared& shared) {
             shared.first[0] = static_cast<float>(block.thread());  // fault
         });
     }},
    {"a shuffle is no barrier",
     [] {
         on_warp([](auto& block, Shared& shared) {
             shared.first[block.lane()] = 1;
             block.shuffle_xor(0, 16);
             output[block.lane()] = shared.first[block.lane() ^ 16];  // fault
         });
     }},
    {"a vote of a warp is no barrier",
     [] {
         on_warp([](auto& block, Shared& shared) {
             shared.first[block.lane()] = 1;
             block.any(true);
             output[block.lane()] = shared.first[block.lane() ^ 16];  // fault
         });
     }},
    {"a volatile access is no barrier",
     [] {
         on_warp([](auto& block, Shared& shared) {
             shared.first[block.lane()] = 1;
             write_relaxed(reinterpret_cast<int*>(shared.second), block.lane());
             read_relaxed(reinterpret_cast<int*>(shared.second));
             output[block.lane()] = shared.first[block.lane() ^ 16];  // fault
         });
     }},
    {"blocks of a launch have no order",
     [] {
         Block on(1);
         for (int b = 0; b < 2; ++b)
             on.launch([&](auto& block) {
                 if (b == 0) output[block.thread()] = 1;
                 else input[block.thread()] = output[block.thread()];  // fault
             }, b);
     }},
    {"a copy is read before it has arrived",
     [] {
         on_grid([](auto& block, Shared& shared) {
             block.copy_async(shared.first + block.thread(), input + block.thread());
             block.commit_copies();
             output[block.thread()] = shared.first[block.thread()];  // fault
         });
     }},
    {"a copy that was not committed is not waited for",
     [] {
         on_grid([](auto& block, Shared& shared) {
             block.copy_async(shared.first + block.thread(), input + block.thread());
             block.wait_for_copies(0);
             output[block.thread()] = shared.first[block.thread()];  // fault
         });
     }},
    {"a copy is seen by others after a barrier",
     [] {
         on_grid([](auto& block, Shared& shared) {
             block.copy_async(shared.first + block.thread(), input + block.thread());
             block.commit_copies();
             block.wait_for_copies(0);
             output[block.thread()] = shared.first[block.thread() ^ 1];  // fault
         });
     }},
    {"the source of a copy is overwritten",
     [] {
         on_grid([](auto& block, Shared& shared) {
             if (block.rank() > 0) return;
             block.copy_async(shared.first + block.thread(), input + block.thread());
             block.commit_copies();
             input[block.thread()] = 0;  // fault
             block.wait_for_copies(0);
         });
     }},
    {"outside global memory",
     [] {
         on_block([](auto& block, Shared&) {
             output[block.thread() + 1] = 0;  // fault
         });
     }},
    {"far outside global memory",
     [] {
         on_block([](auto& block, Shared&) {
             output[block.thread()] = input[1000000 + block.thread()];  // fault
         });
     }},
    {"outside shared memory",
     [] {
         on_block([](auto& block, Shared& shared) {
             float* at = shared.first;
             output[block.thread()] = at[block.thread() - 1];  // fault
         });
     }},
    {"outside an array in shared memory",
     [] {
         on_block([](auto& block, Shared& shared) {
             shared.first[block.thread() + 1] = 0;  // fault
         });
     }},
    {"the shared memory of another block",
     [] {
         on_grid([](auto& block, Shared& shared) {
             static float* first = nullptr;
             const memory::Unwatched unwatched;
             if (first == nullptr) first = shared.first;
             memory::watch();
             if (first != shared.first) output[block.thread()] = first[block.thread()];  // fault
         });
     }},
    {"a block that may not have started",
     [] {
         on_cluster([](auto& block, Shared& shared) {
             block.remote(shared.first, 1 - block.rank())[block.thread()] = 1;  // fault
             block.sync_cluster();
         });
     }},
    {"a block that may have ended",
     [] {
         on_cluster([](auto& block, Shared& shared) {
             block.sync_cluster();
             block.remote(shared.first, 1 - block.rank())[block.thread()] = 1;  // fault
         });
     }},
    {"a barrier that not all threads reach",
     [] {
         on_block([](auto& block, Shared&) {
             if (block.warp() == 0) block.sync();
         });
     }},
};

}  // namespace

int main(int count, char** arguments) {
    const memory::Space from("the input", sizeof(float) * WORDS), to("the output", sizeof(float) * WORDS);
    input = reinterpret_cast<float*>(from.at());
    output = reinterpret_cast<float*>(to.at());
    if (count > 1) KERNELS.at(arguments[1])();
    else
        for (const auto& [name, kernel] : KERNELS) std::puts(name.c_str());
}
