#include "system/free_memory.h"

#include <algorithm>
#include <cstdint>
#include <fstream>
#include <string>

namespace metah {
namespace {

// The number in a file that holds nothing else; `missing` for "max" and for no file.
size_t number_in(const std::string& path, size_t missing) {
    std::ifstream file(path);
    size_t value = 0;
    return file >> value ? value : missing;
}

// The number after a word that stands first in a line.
size_t number_after(const std::string& path, const std::string& word, size_t missing) {
    std::ifstream file(path);
    std::string first, rest;
    size_t value = 0;
    while (file >> first) {
        if (first == word) return file >> value ? value : missing;
        std::getline(file, rest);
    }
    return missing;
}

struct LimitFiles {
    const char *limit, *usage, *reclaimable;
};

constexpr LimitFiles kVersion1{"/memory.limit_in_bytes", "/memory.usage_in_bytes",
                               "total_inactive_file"};
constexpr LimitFiles kVersion2{"/memory.max", "/memory.current", "inactive_file"};

size_t left_in(const std::string& folder, const LimitFiles& files) {
    const size_t limit = number_in(folder + files.limit, SIZE_MAX);
    if (limit == SIZE_MAX) return SIZE_MAX;
    const size_t usage = number_in(folder + files.usage, 0);
    const size_t cache = number_after(folder + "/memory.stat", files.reclaimable, 0);
    const size_t held = usage - std::min(usage, cache);
    return limit - std::min(limit, held);
}

// The least that is left in a group and in those above it.
size_t left_up_from(const std::string& root, std::string group, const LimitFiles& files) {
    size_t least = left_in(root, files);
    while (group.size() > 1) {
        least = std::min(least, left_in(root + group, files));
        group.resize(group.rfind('/'));
    }
    return least;
}

}  // namespace

size_t free_memory() {
    const size_t kib = number_after("/proc/meminfo", "MemAvailable:", SIZE_MAX);
    size_t least = kib == SIZE_MAX ? SIZE_MAX : kib * 1024;
    std::ifstream groups("/proc/self/cgroup");
    for (std::string line; std::getline(groups, line);) {  // number:controllers:group
        const size_t first = line.find(':'), second = line.find(':', first + 1);
        if (second == std::string::npos) continue;
        const std::string group = line.substr(second + 1);
        const std::string controllers = line.substr(first + 1, second - first - 1);
        if (controllers.empty())
            least = std::min(least, left_up_from("/sys/fs/cgroup", group, kVersion2));
        else if (controllers.find("memory") != std::string::npos)
            least = std::min(least, left_up_from("/sys/fs/cgroup/memory", group, kVersion1));
    }
    return least;
}

}  // namespace metah
