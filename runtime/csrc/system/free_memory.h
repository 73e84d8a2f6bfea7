// How much memory this process may still take.
#pragma once
#include <cstddef>

namespace metah {

// Bytes that can be allocated without swapping, within the limits of all control groups that this
// process is in; SIZE_MAX where the system does not say.
size_t free_memory();

}  // namespace metah
