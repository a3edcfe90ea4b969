// Tensors of torch through its stable C functions (torch/csrc/inductor/aoti_torch/c/shim.h), which are looked up in the
// libraries that torch has loaded. So neither a header nor a library of torch is needed to build, and one build serves
// every torch, with and without CUDA.
//
// These functions take at::Tensor*. An at::Tensor is one pointer, to the address that Python shows as `_cdata`.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <stdexcept>
#include <utility>
#include <vector>

namespace hystar_fast::host {

using Handle = void*;

struct Torch {
    int (*get_data_ptr)(Handle, void**);
    int (*get_dim)(Handle, std::int64_t*);
    int (*get_sizes)(Handle, std::int64_t**);
    int (*get_strides)(Handle, std::int64_t**);
    int (*get_storage_offset)(Handle, std::int64_t*);
    int (*get_dtype)(Handle, std::int32_t*);
    int (*get_layout)(Handle, std::int32_t*);
    int (*get_device_type)(Handle, std::int32_t*);
    int (*get_device_index)(Handle, std::int32_t*);
    int (*empty_strided)(std::int64_t, const std::int64_t*, const std::int64_t*, std::int32_t, std::int32_t,
                         std::int32_t, Handle*);
    int (*reinterpret)(Handle, std::int64_t, const std::int64_t*, const std::int64_t*, std::int64_t, Handle*);
    int (*remove)(Handle);
    int (*current_device)(std::int32_t*);
    std::int32_t (*cuda)();
    std::int32_t (*strided)();
    int (*current_stream)(std::int32_t device, void**);
    int (*mm_out)(Handle out, Handle a, Handle b);
    int (*addmm_out)(Handle out, Handle input, Handle a, Handle b, double beta, double alpha);
};

// Returns the functions. Throws if torch has not loaded its CUDA library, or has no such functions.
const Torch& torch();

// A function of torch failed. It is called again through Python, which raises the error as it is.
struct Failed : std::runtime_error {
    Failed() : std::runtime_error("a function of torch failed") {}
};

inline void check(int error) {
    if (error) throw Failed();
}

// What a tensor is, but for its address.
struct Layout {
    std::vector<std::int64_t> sizes, strides;
    std::int32_t dtype, device_type, device_index;
};

// A tensor that is ours.
class Tensor {
public:
    explicit Tensor(Handle handle) : handle_(handle) {}
    Tensor(Tensor&& other) noexcept : handle_(std::exchange(other.handle_, nullptr)) {}
    Tensor& operator=(Tensor&&) = delete;
    ~Tensor() {
        if (handle_ != nullptr) torch().remove(handle_);
    }
    static Tensor empty(const Layout& layout);

    Handle get() const { return handle_; }
    Handle release() { return std::exchange(handle_, nullptr); }

private:
    Handle handle_;
};

// The rows of a contiguous tensor, [n, columns], on the same memory.
Tensor rows(Handle tensor);

// A matrix transposed, on the same memory.
Tensor transposed(Handle matrix);

std::uint64_t address(Handle tensor);

}  // namespace hystar_fast::host
