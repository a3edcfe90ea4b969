// A launch of a compiled kernel that repeats an earlier one with other addresses. It calls the driver itself, which is
// found when the first launch is made: neither headers nor libraries of CUDA are needed to build or to load this.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <unordered_map>
#include <utility>
#include <vector>

namespace hystar_fast::host {

constexpr int kMostParameters = 64, kMostMaps = 6;
constexpr std::int64_t kMapBytes = 128;  // of a tensor map, which must begin at a multiple of 64

// What cuLaunchKernelEx takes: CUlaunchConfig of the driver API.
struct Config {
    std::uint32_t grid_x, grid_y, grid_z, block_x, block_y, block_z, shared;
    void* stream;
    void* attributes;
    std::uint32_t attribute_count;
};

// The matrix that TMA finds by a tensor map, but for its address. The innermost dimension is the first; strides are in
// bytes, without that of the innermost.
struct Matrix {
    Matrix(std::int32_t type, std::vector<std::uint64_t> sizes, std::vector<std::uint64_t> strides,
           std::vector<std::uint32_t> box, std::int32_t swizzle);
    std::int32_t type;
    std::vector<std::uint64_t> sizes, strides;
    std::vector<std::uint32_t> box;
    std::int32_t swizzle;
};

// Tensor maps of one parameter, by address. Those that were made are kept.
class TensorMaps {
public:
    explicit TensorMaps(Matrix matrix) : matrix_(std::move(matrix)) {}
    using Map = std::array<std::uint64_t, kMapBytes / 8>;
    const Map& at(std::uint64_t address);

private:
    Matrix matrix_;
    std::unordered_map<std::uint64_t, Map> known_;
};

// One parameter of a kernel: a number, or an address, by itself or in a tensor map.
struct Parameter {
    enum class Kind { kNumber, kAddress, kMap } kind;
    std::uint64_t number = 0;
    std::unique_ptr<TensorMaps> maps;
};

// A launch with its addresses filled in. It owns what the driver reads, so it can be made while Python's lock is held
// and given to the driver after the lock has been released.
class Ready {
public:
    // Returns the error of the driver, or 0.
    int launch(void* stream);

private:
    friend class Launch;
    alignas(64) std::array<TensorMaps::Map, kMostMaps> maps_;
    std::array<std::uint64_t, kMostParameters> words_;
    std::array<void*, kMostParameters> parameters_;
    Config config_;
    void* function_;
};

class Launch {
public:
    Launch(std::uintptr_t function, const Config& config, std::vector<Parameter> parameters);

    // Fills in the addresses, which are those of the parameters that are no numbers, in their order.
    void prepare(const std::uint64_t* addresses, Ready& ready);

    std::size_t addresses() const { return addresses_; }

private:
    void* function_;
    Config config_;
    std::vector<Parameter> parameters_;
    std::size_t addresses_ = 0;
};

}  // namespace hystar_fast::host
