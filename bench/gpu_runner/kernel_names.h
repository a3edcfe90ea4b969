// The names of kernels by the rules of csrc/sinkhorn/cuda/shapes.cuh.
#pragma once

#include <cstdint>
#include <string>

#include "sinkhorn/cuda/shapes.cuh"

namespace runner {

struct TileSize {
    std::string* name;
    template <class T>
    void launch() const {
        *name = "tile " + std::to_string(T::MAX_COLUMNS);
    }
};

inline std::string kernel_name(const hystar_fast::Choice& choice, int64_t n, int64_t m, bool gradient) {
    using hystar_fast::Choice;
    const std::string shape = std::to_string(choice.shape);
    std::string name = "stream";
    if (choice.kind == Choice::TILE && gradient) hystar_fast::with_gradient_tile(n, m, TileSize{&name});
    if (choice.kind == Choice::TILE && !gradient) hystar_fast::with_tile(n, m, TileSize{&name});
    if (choice.kind == Choice::CLUSTER) name = "cluster " + shape + " x " + std::to_string(choice.blocks);
    if (choice.kind == Choice::SWEEP) name = "sweep " + shape + (m % 4 == 0 ? " by four" : " by one");
    return name;
}

}  // namespace runner
