// Python face of the native core. Only this file knows Python.
#include <nanobind/nanobind.h>

namespace nb = nanobind;

NB_MODULE(_native, m) {
    m.doc() = "Native search core of metah_runtime.";
}
