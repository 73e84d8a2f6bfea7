// Runs without Python's global lock for the life of the object.
#pragma once
#include <Python.h>
#include <unistd.h>
#if defined(__GLIBC__)
#include <cxxabi.h>
#endif

namespace metah {

// As nb::gil_scoped_release, but a thread that comes back after the interpreter has ended sleeps
// until the process is gone. Before Python 3.14 such a thread is ended by pthread_exit, whose
// unwinding terminates the process at the first function that is noexcept.
class ReleasedGil {
  public:
    ReleasedGil() : state_(PyEval_SaveThread()) {}
    ReleasedGil(const ReleasedGil&) = delete;
    ReleasedGil& operator=(const ReleasedGil&) = delete;
    ~ReleasedGil() { take_back(state_); }

  private:
    // Not inlined: the unwinding must find the handler in a function of its own.
    __attribute__((noinline)) static void take_back(PyThreadState* state) {
#if defined(__GLIBC__)
        try {
            PyEval_RestoreThread(state);
        } catch (abi::__forced_unwind&) {
            for (;;) pause();
        }
#else
        PyEval_RestoreThread(state);
#endif
    }

    PyThreadState* state_;
};

}  // namespace metah
