#include "svd_linear/host/tensors.h"

#include <dlfcn.h>

#include <array>
#include <string>

namespace hystar_fast::host {

namespace {

template <typename Function>
void look_up(const char* library, const char* name, Function& function) {
    void* const loaded = dlopen(library, RTLD_LAZY | RTLD_LOCAL | RTLD_NOLOAD);
    function = loaded == nullptr ? nullptr : reinterpret_cast<Function>(dlsym(loaded, name));
    if (function == nullptr) throw std::runtime_error(std::string("torch has no ") + name + " in " + library);
}

}  // namespace

const Torch& torch() {
    static const Torch found = [] {
        Torch functions{};
        constexpr const char* kCpu = "libtorch_cpu.so";
        constexpr const char* kCuda = "libtorch_cuda.so";
        look_up(kCpu, "aoti_torch_get_data_ptr", functions.get_data_ptr);
        look_up(kCpu, "aoti_torch_get_dim", functions.get_dim);
        look_up(kCpu, "aoti_torch_get_sizes", functions.get_sizes);
        look_up(kCpu, "aoti_torch_get_strides", functions.get_strides);
        look_up(kCpu, "aoti_torch_get_storage_offset", functions.get_storage_offset);
        look_up(kCpu, "aoti_torch_get_dtype", functions.get_dtype);
        look_up(kCpu, "aoti_torch_get_layout", functions.get_layout);
        look_up(kCpu, "aoti_torch_get_device_type", functions.get_device_type);
        look_up(kCpu, "aoti_torch_get_device_index", functions.get_device_index);
        look_up(kCpu, "aoti_torch_empty_strided", functions.empty_strided);
        look_up(kCpu, "aoti_torch__reinterpret_tensor", functions.reinterpret);
        look_up(kCpu, "aoti_torch_delete_tensor_object", functions.remove);
        look_up(kCpu, "aoti_torch_get_current_device_index", functions.current_device);
        look_up(kCpu, "aoti_torch_device_type_cuda", functions.cuda);
        look_up(kCpu, "aoti_torch_layout_strided", functions.strided);
        look_up(kCuda, "aoti_torch_get_current_cuda_stream", functions.current_stream);
        look_up(kCuda, "aoti_torch_cuda_mm_out", functions.mm_out);
        look_up(kCuda, "aoti_torch_cuda_addmm_out", functions.addmm_out);
        return functions;
    }();
    return found;
}

Tensor Tensor::empty(const Layout& layout) {
    Handle made = nullptr;
    check(torch().empty_strided(static_cast<std::int64_t>(layout.sizes.size()), layout.sizes.data(),
                                layout.strides.data(), layout.dtype, layout.device_type, layout.device_index, &made));
    return Tensor(made);
}

namespace {

Tensor matrix(Handle tensor, const std::array<std::int64_t, 2>& sizes, const std::array<std::int64_t, 2>& strides) {
    std::int64_t offset = 0;
    Handle made = nullptr;
    check(torch().get_storage_offset(tensor, &offset));
    check(torch().reinterpret(tensor, 2, sizes.data(), strides.data(), offset, &made));
    return Tensor(made);
}

}  // namespace

Tensor rows(Handle tensor) {
    std::int64_t dimensions = 0, *sizes = nullptr, count = 1;
    check(torch().get_dim(tensor, &dimensions));
    check(torch().get_sizes(tensor, &sizes));
    for (std::int64_t i = 0; i + 1 < dimensions; ++i) count *= sizes[i];
    const std::int64_t columns = sizes[dimensions - 1];
    return matrix(tensor, {count, columns}, {columns, 1});
}

Tensor transposed(Handle tensor) {
    std::int64_t *sizes = nullptr, *strides = nullptr;
    check(torch().get_sizes(tensor, &sizes));
    check(torch().get_strides(tensor, &strides));
    return matrix(tensor, {sizes[1], sizes[0]}, {strides[1], strides[0]});
}

std::uint64_t address(Handle tensor) {
    void* found = nullptr;
    check(torch().get_data_ptr(tensor, &found));
    return reinterpret_cast<std::uint64_t>(found);
}

}  // namespace hystar_fast::host
