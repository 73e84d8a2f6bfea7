#pragma once
#include <cstdint>

#define INLINE inline __attribute__((always_inline))
