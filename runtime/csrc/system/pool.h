// Persistent worker threads, shared by all searches of the process.
#pragma once
#include <cstddef>
#include <functional>

namespace metah {

// Calls task(0..tasks-1), each once, on the caller and on up to tasks - 1 workers; returns when all
// are done. Where the system starts no further thread, those that run do all tasks, at the least
// the caller alone. The first exception of a task is rethrown; the other tasks are still run. Works
// in a forked child, which starts its own workers.
void parallel(size_t tasks, const std::function<void(size_t)>& task);

}  // namespace metah
