#include "svd_linear/host/launch.h"

#include <dlfcn.h>

#include <stdexcept>
#include <string>
#include <utility>

namespace hystar_fast::host {

namespace {

constexpr std::size_t kMostKnown = 128;  // tensor maps that are kept for one parameter
constexpr std::size_t kMostDimensions = 5;

struct Driver {
    int (*launch)(const Config*, void* function, void** parameters, void** extra);
    int (*encode)(void* map, std::int32_t type, std::uint32_t rank, void* address, const std::uint64_t* sizes,
                  const std::uint64_t* strides, const std::uint32_t* box, const std::uint32_t* steps,
                  std::int32_t interleave, std::int32_t swizzle, std::int32_t promotion, std::int32_t fill);
};

const Driver& driver() {
    static const Driver found = [] {
        void* library = dlopen("libcuda.so.1", RTLD_LAZY | RTLD_LOCAL);
        if (library == nullptr) throw std::runtime_error("libcuda.so.1 cannot be loaded");
        Driver functions{};
        functions.launch = reinterpret_cast<decltype(functions.launch)>(dlsym(library, "cuLaunchKernelEx"));
        functions.encode = reinterpret_cast<decltype(functions.encode)>(dlsym(library, "cuTensorMapEncodeTiled"));
        if (functions.launch == nullptr || functions.encode == nullptr)
            throw std::runtime_error("the driver is older than CUDA 12");
        return functions;
    }();
    return found;
}

}  // namespace

Matrix::Matrix(std::int32_t type, std::vector<std::uint64_t> sizes, std::vector<std::uint64_t> strides,
               std::vector<std::uint32_t> box, std::int32_t swizzle)
    : type(type), sizes(std::move(sizes)), strides(std::move(strides)), box(std::move(box)), swizzle(swizzle) {
    const std::size_t rank = this->box.size();
    if (rank > kMostDimensions || this->sizes.size() != rank || this->strides.size() + 1 != rank)
        throw std::invalid_argument("a matrix must have at most 5 dimensions, and a stride less");
}

const TensorMaps::Map& TensorMaps::at(std::uint64_t address) {
    const auto found = known_.find(address);
    if (found != known_.end()) return found->second;
    constexpr std::int32_t kNoInterleaving = 0, kPromoteTo128Bytes = 2, kZerosOutside = 0;
    constexpr std::array<std::uint32_t, kMostDimensions> steps = {1, 1, 1, 1, 1};
    alignas(64) Map map;
    const int error =
        driver().encode(map.data(), matrix_.type, static_cast<std::uint32_t>(matrix_.box.size()),
                        reinterpret_cast<void*>(address), matrix_.sizes.data(), matrix_.strides.data(),
                        matrix_.box.data(), steps.data(), kNoInterleaving, matrix_.swizzle, kPromoteTo128Bytes, kZerosOutside);
    if (error) throw std::runtime_error("a tensor map could not be encoded: CUDA error " + std::to_string(error));
    if (known_.size() >= kMostKnown) known_.clear();
    return known_.emplace(address, map).first->second;
}

int Ready::launch(void* stream) {
    config_.stream = stream;
    return driver().launch(&config_, function_, parameters_.data(), nullptr);
}

Launch::Launch(std::uintptr_t function, const Config& config, std::vector<Parameter> parameters)
    : function_(reinterpret_cast<void*>(function)), config_(config), parameters_(std::move(parameters)) {
    int maps = 0;
    for (const Parameter& parameter : parameters_) {
        addresses_ += parameter.kind != Parameter::Kind::kNumber;
        maps += parameter.kind == Parameter::Kind::kMap;
    }
    if (parameters_.size() > kMostParameters || maps > kMostMaps)
        throw std::invalid_argument("a kernel must have at most 64 parameters and 6 tensor maps");
}

void Launch::prepare(const std::uint64_t* addresses, Ready& ready) {
    ready.config_ = config_;
    ready.function_ = function_;
    int map = 0;
    for (std::size_t i = 0; i < parameters_.size(); ++i) {
        Parameter& parameter = parameters_[i];
        ready.parameters_[i] = &ready.words_[i];
        if (parameter.kind == Parameter::Kind::kNumber) {
            ready.words_[i] = parameter.number;
        } else if (parameter.kind == Parameter::Kind::kAddress) {
            ready.words_[i] = *addresses++;
        } else {
            ready.maps_[map] = parameter.maps->at(*addresses++);
            ready.parameters_[i] = &ready.maps_[map++];
        }
    }
}

}  // namespace hystar_fast::host
