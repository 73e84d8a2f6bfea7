// Which bytes of a row are compared, and scans over them.
#pragma once
#include <cstddef>
#include <cstdint>
#include <vector>

#include "database.h"
#include "scan/kernels.h"

namespace metah {

enum class Part {
    hash_code,
    whole,  // the hash code `weight` times, then the detail code
};

// The rows of a database as far as a search compares them. Rows that are not laid out so are copied
// block by block: the kernels know packed codes alone.
class RowView {
  public:
    RowView(const Database& db, Part part);

    // Bytes that are compared; where rows are copied, zeros fill them up to a width that is fast.
    size_t width() const { return width_; }
    int bits() const { return static_cast<int>(width_) * 8; }

    // Copies the compared bytes of rows (stride bytes each) to out (width bytes each), where what
    // fills them up is zero already.
    void pack(const uint8_t* rows, size_t count, uint8_t* out) const;
    std::vector<uint8_t> packed(const uint8_t* rows, size_t count) const;

    // As Kernels::scan and Kernels::distance_histograms; codes, end and width are filled in.
    void scan(Scan scan) const;

  private:
    const Database& db_;
    size_t copies_, width_;
    bool detail_;
};

}  // namespace metah
