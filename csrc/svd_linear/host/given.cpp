#include "svd_linear/host/given.h"

namespace hystar_fast::host {

namespace py = pybind11;

void* Reader::implementation(py::handle tensor) const {
    return PyLong_AsVoidPtr(result_of(PyObject_GetAttr(tensor.ptr(), cdata_.ptr())).ptr());
}

bool Reader::read_one(PyObject* tensor, std::size_t place, Key& key, Given& given) const {
    const auto* const type = reinterpret_cast<PyObject*>(Py_TYPE(tensor));
    if (type != tensor_.ptr() && type != parameter_.ptr()) return false;
    given.tensors[place] = implementation(tensor);
    const Handle handle = given.handle(place);
    std::int32_t layout = 0, dtype = 0, device_type = 0, device = 0;
    check(torch().get_layout(handle, &layout));
    check(torch().get_device_type(handle, &device_type));
    if (layout != torch().strided() || device_type != torch().cuda()) return false;
    check(torch().get_device_index(handle, &device));
    if (place > 0 && device != given.device) return false;
    given.device = device;
    given.addresses[place] = address(handle);
    if (given.addresses[place] == 0 || given.addresses[place] % 16) return false;
    if (result_of(PyObject_Vectorcall(is_neg_.ptr(), &tensor, 1, nullptr)).ptr() != Py_False) return false;
    std::int64_t dimensions = 0, *sizes = nullptr, *strides = nullptr;
    check(torch().get_dtype(handle, &dtype));
    check(torch().get_dim(handle, &dimensions));
    check(torch().get_sizes(handle, &sizes));
    check(torch().get_strides(handle, &strides));
    key.add(dtype), key.add(dimensions);
    key.add(sizes, dimensions), key.add(strides, dimensions);
    return true;
}

bool Reader::read(const py::tuple& tensors, Key& key, Given& given) const try {
    given.count = tensors.size();
    if (given.count > kMostTensors) return false;
    for (std::size_t i = 0; i < given.count; ++i) {
        PyObject* const tensor = PyTuple_GET_ITEM(tensors.ptr(), i);
        if (tensor == Py_None)
            key.add(-1);
        else if (!read_one(tensor, i, key, given))
            return false;
    }
    key.add(given.device);
    return true;
} catch (const Failed&) {
    return false;
}

}  // namespace hystar_fast::host
