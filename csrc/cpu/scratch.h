// Aligned scratch memory for one call.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>

namespace hystar_fast::cpu {

// `count` values that begin at a cache line; zeros unless `zeroed` is false.
template <typename T>
class Scratch {
public:
    explicit Scratch(std::int64_t count, bool zeroed = true) {
        const std::size_t bytes = (static_cast<std::size_t>(count) * sizeof(T) + 63) / 64 * 64;
        memory_.reset(static_cast<T*>(std::aligned_alloc(64, bytes ? bytes : 64)));
        if (!memory_) throw std::bad_alloc();
        if (zeroed) std::memset(memory_.get(), 0, bytes);
    }
    T* get() const { return memory_.get(); }

private:
    struct Free {
        void operator()(T* memory) const { std::free(memory); }
    };
    std::unique_ptr<T, Free> memory_;
};

// `count` rounded up to a multiple of `step`.
inline std::int64_t round_up(std::int64_t count, std::int64_t step) { return (count + step - 1) / step * step; }

}  // namespace hystar_fast::cpu
