// The tensors that a call gets from Python.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>

#include <pybind11/pybind11.h>

#include "svd_linear/host/tensors.h"

namespace hystar_fast::host {

constexpr std::size_t kMostTensors = 32, kMostWords = 192;

// All that the launches of a call depend on, as numbers.
class Key {
public:
    Key() { add(0); }  // for the option
    void add(std::int64_t word) {
        if (count_ == kMostWords) throw Failed();
        words_[count_++] = word;
    }
    void add(const std::int64_t* words, std::int64_t count) {
        for (std::int64_t i = 0; i < count; ++i) add(words[i]);
    }
    std::string with(std::int64_t option) {
        words_[0] = option;
        return {reinterpret_cast<const char*>(words_.data()), count_ * sizeof(std::int64_t)};
    }

private:
    std::array<std::int64_t, kMostWords> words_;
    std::size_t count_ = 0;
};

// The tensors of a call. As long as Python's objects live, so do they.
struct Given {
    std::array<void*, kMostTensors> tensors;  // each is an at::Tensor; not set for None
    std::array<std::uint64_t, kMostTensors> addresses;
    std::size_t count = 0;
    std::int32_t device = 0;

    Handle handle(std::size_t place) { return &tensors[place]; }
};

// Returns a result of Python's functions, or throws its error.
inline pybind11::object result_of(PyObject* result) {
    if (result == nullptr) throw pybind11::error_already_set();
    return pybind11::reinterpret_steal<pybind11::object>(result);
}

class Reader {
public:
    Reader(pybind11::type tensor, pybind11::type parameter)
        : tensor_(tensor), parameter_(parameter), is_neg_(tensor.attr("is_neg")) {}

    // Makes the key of a call. Returns false if it cannot be kept: a tensor is no plain one on one GPU, has no memory,
    // or begins between multiples of 16 bytes (a kernel is compiled for that, or against it).
    bool read(const pybind11::tuple& tensors, Key& key, Given& given) const;

    // Returns the address of the tensor's at::TensorImpl.
    void* implementation(pybind11::handle tensor) const;

private:
    bool read_one(PyObject* tensor, std::size_t place, Key& key, Given& given) const;

    const pybind11::object tensor_, parameter_, is_neg_;
    const pybind11::str cdata_{"_cdata"};
};

}  // namespace hystar_fast::host
