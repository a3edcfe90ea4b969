// Arrays on the device between two guards. Before a call an output holds 0xff in every byte: NaN, or -1.
#pragma once

#include <cstring>
#include <random>
#include <vector>

#include "device.h"

namespace runner {

constexpr size_t GUARD = 1024;  // bytes on each side
constexpr unsigned char GUARD_BYTE = 0xa5;

class Memory {
  public:
    explicit Memory(size_t bytes) : bytes_(bytes), base_(static_cast<char*>(device::allocate(bytes + 2 * GUARD))) {
        device::fill(base_, GUARD_BYTE, GUARD);
        device::fill(base_ + GUARD + bytes_, GUARD_BYTE, GUARD);
        poison();
    }
    ~Memory() { device::release(base_); }
    Memory(const Memory&) = delete;
    Memory& operator=(const Memory&) = delete;

    void poison() { device::fill(base_ + GUARD, 0xff, bytes_); }
    uintptr_t at() const { return reinterpret_cast<uintptr_t>(base_ + GUARD); }
    size_t bytes() const { return bytes_; }
    std::vector<char> read() const {
        std::vector<char> copy(bytes_);
        device::download(copy.data(), base_ + GUARD, bytes_);
        return copy;
    }
    bool guards_are_whole() const {
        std::vector<unsigned char> copy(2 * GUARD);
        device::download(copy.data(), base_, GUARD);
        device::download(copy.data() + GUARD, base_ + GUARD + bytes_, GUARD);
        for (const unsigned char byte : copy)
            if (byte != GUARD_BYTE) return false;
        return true;
    }

  private:
    size_t bytes_;
    char* base_;
};

template <class T>
struct Array : Memory {
    explicit Array(size_t count) : Memory(count * sizeof(T)) {}
    explicit Array(const std::vector<T>& values) : Array(values.size()) { write(values); }
    void write(const std::vector<T>& values) { device::upload(reinterpret_cast<void*>(at()), values.data(), bytes()); }
    std::vector<T> values() const {
        std::vector<T> copy(bytes() / sizeof(T));
        device::download(copy.data(), reinterpret_cast<void*>(at()), bytes());
        return copy;
    }
};

// Uniform numbers in [low, high), the same on every machine.
inline std::vector<float> uniform(size_t count, float low, float high, uint64_t seed) {
    std::mt19937_64 random(seed);
    std::vector<float> values(count);
    for (float& value : values) value = low + (high - low) * static_cast<float>((random() >> 40) * 0x1p-24);
    return values;
}

}  // namespace runner
