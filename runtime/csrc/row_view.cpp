#include "row_view.h"

#include <algorithm>
#include <bit>
#include <cstring>

namespace metah {
namespace {

// Hits of a block of rows, whose numbers begin at `base`, as hits of all rows.
struct Renumbered {
    const Scan& scan;
    size_t base;
    std::vector<Hit> hits;
};

void renumber(void* context, uint32_t query, const Hit* hits, uint32_t n) {
    auto& to = *static_cast<Renumbered*>(context);
    to.hits.assign(hits, hits + n);
    for (Hit& hit : to.hits) hit.row += static_cast<uint32_t>(to.base);
    to.scan.consume(to.scan.context, query, to.hits.data(), n);
}

// Copies a hash code of kWidth bytes (0: any number) `copies` times, then a detail code.
template <size_t kWidth>
inline void pack_row(const uint8_t* row, size_t width, size_t copies, size_t detail, uint8_t* out) {
    if constexpr (kWidth) width = kWidth;
    for (size_t i = 0; i < copies; ++i, out += width) std::memcpy(out, row, width);
    row += width;
    for (; detail >= 8; detail -= 8, row += 8, out += 8) std::memcpy(out, row, 8);
    if (detail) std::memcpy(out, row, detail);
}

template <size_t kWidth>
void pack_rows(const Database& db, size_t copies, size_t detail, const uint8_t* rows, size_t count,
               uint8_t* out, size_t step) {
    const size_t width = db.width, stride = db.stride();
    if (copies == 1 && !detail)
        for (; count; --count, rows += stride, out += step)
            pack_row<kWidth>(rows, width, 1, 0, out);
    else if (detail == 8)
        for (; count; --count, rows += stride, out += step)
            pack_row<kWidth>(rows, width, copies, 8, out);
    else
        for (; count; --count, rows += stride, out += step)
            pack_row<kWidth>(rows, width, copies, detail, out);
}

}  // namespace

RowView::RowView(const Database& db, Part part)
    : db_(db),
      copies_(part == Part::whole ? db.weight : 1),
      width_(part == Part::whole ? db.whole_width() : db.width),
      detail_(part == Part::whole && db.detail) {
    if (width_ != db.stride() && width_ > 8) width_ = std::bit_ceil(width_);
}

void RowView::pack(const uint8_t* rows, size_t count, uint8_t* out) const {
    const auto pack = db_.width == 4   ? pack_rows<4>
                      : db_.width == 6 ? pack_rows<6>
                      : db_.width == 8 ? pack_rows<8>
                                       : pack_rows<0>;
    pack(db_, copies_, detail_ ? db_.detail : 0, rows, count, out, width_);
}

std::vector<uint8_t> RowView::packed(const uint8_t* rows, size_t count) const {
    std::vector<uint8_t> out(count * width_);
    pack(rows, count, out.data());
    return out;
}

void RowView::scan(Scan scan) const {
    scan.width = width_;
    if (width_ == db_.stride()) {
        scan.codes = db_.codes;
        scan.end = db_.code(db_.rows);
        db_.kernels->scan(scan);
        return;
    }
    // In the second cache beside the tables of a batch of queries.
    const size_t rows = std::max<size_t>((size_t{64} << 10) / width_ / 512 * 512, 512);
    std::vector<uint8_t> block(rows * width_);
    Renumbered to{scan, 0, {}};
    Scan part = scan;
    part.codes = block.data();
    part.first = 0;
    part.context = &to;
    part.consume = renumber;
    for (to.base = scan.first; to.base < scan.last; to.base += rows) {
        part.last = std::min(rows, scan.last - to.base);
        part.end = block.data() + part.last * width_;
        pack(db_.code(to.base), part.last, block.data());
        db_.kernels->scan(part);
    }
}

}  // namespace metah
