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

// Without a call for whole words.
void copy(uint8_t* out, const uint8_t* from, size_t bytes) {
    if (bytes % 8) {
        std::memcpy(out, from, bytes);
    } else {
        for (size_t i = 0; i < bytes; i += 8) std::memcpy(out + i, from + i, 8);
    }
}

}  // namespace

RowView::RowView(const Database& db, Part part)
    : db_(db),
      copies_(part == Part::whole ? db.weight : 1),
      width_(part == Part::whole ? db.whole_width() : db.width),
      detail_(part == Part::whole && db.detail) {
    if (width_ != db.stride() && width_ > 8) width_ = std::bit_ceil(width_);
}

void RowView::pack(const uint8_t* row, uint8_t* out) const {
    const uint8_t* end = out + width_;
    for (size_t i = 0; i < copies_; ++i, out += db_.width) copy(out, row, db_.width);
    if (detail_) {
        copy(out, row + db_.width, db_.detail);
        out += db_.detail;
    }
    std::fill(out, const_cast<uint8_t*>(end), uint8_t{0});
}

std::vector<uint8_t> RowView::packed(const uint8_t* rows, size_t count) const {
    std::vector<uint8_t> out(count * width_);
    for (size_t i = 0; i < count; ++i) pack(rows + i * db_.stride(), &out[i * width_]);
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
        const uint8_t* row = db_.code(to.base);
        if (width_ == 8) {
            for (size_t i = 0; i < part.last; ++i, row += db_.stride())
                std::memcpy(&block[i * 8], row, 8);
        } else {
            for (size_t i = 0; i < part.last; ++i, row += db_.stride())
                pack(row, &block[i * width_]);
        }
        db_.kernels->scan(part);
    }
}

}  // namespace metah
