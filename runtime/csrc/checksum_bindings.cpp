// Python face of the checksum. Only this file knows Python; buffers are read without the GIL.
#include <Python.h>
#include <nanobind/nanobind.h>

#include <stdexcept>

#include "system/crc32c.h"
#include "system/released_gil.h"

namespace nb = nanobind;

namespace {

// A contiguous read-only view of any object with the buffer protocol.
class View {
  public:
    explicit View(nb::handle object) {
        if (PyObject_GetBuffer(object.ptr(), &buffer_, PyBUF_SIMPLE) != 0) throw nb::python_error();
    }
    View(const View&) = delete;
    View& operator=(const View&) = delete;
    ~View() { PyBuffer_Release(&buffer_); }
    const void* data() const { return buffer_.buf; }
    size_t size() const { return static_cast<size_t>(buffer_.len); }

  private:
    Py_buffer buffer_{};
};

}  // namespace

NB_MODULE(_checksum, m) {
    m.doc() = "CRC-32C of bytes, by the machine's instruction where it has one.";
    m.def(
        "crc32c",
        [](nb::handle data, uint32_t crc) {
            View view(data);
            const metah::ReleasedGil released;
            return metah::crc32c(crc, view.data(), view.size());
        },
        nb::arg("data"), nb::arg("crc") = 0);
    m.def(
        "crc32c_portable",
        [](nb::handle data, uint32_t crc) {
            View view(data);
            const metah::ReleasedGil released;
            return metah::crc32c_portable(crc, view.data(), view.size());
        },
        nb::arg("data"), nb::arg("crc") = 0);
    m.def(
        "crc32c_blocks",
        [](nb::handle data, size_t block) {
            if (block == 0) throw std::invalid_argument("block must be >= 1 byte");
            View view(data);
            const size_t count = view.size() / block + (view.size() % block != 0);
            nb::bytearray out;
            out.resize(count * sizeof(uint32_t));
            auto* values = static_cast<uint32_t*>(out.data());
            {
                const metah::ReleasedGil released;
                metah::crc32c_blocks(view.data(), view.size(), block, values);
            }
            return out;
        },
        nb::arg("data"), nb::arg("block"));
    m.def("backend", &metah::crc32c_backend);
}
