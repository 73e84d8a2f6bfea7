#include "row_view.h"

#include <algorithm>
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

// The first kWidth bytes of each row.
template <size_t kWidth>
void copy_prefixes(const uint8_t* from, size_t stride, size_t rows, uint8_t* out) {
    for (size_t i = 0; i < rows; ++i, from += stride, out += kWidth)
        std::memcpy(out, from, kWidth);
}

}  // namespace

RowView::RowView(const Database& db, Part part)
    : db_(db),
      copies_(part == Part::whole ? db.weight : 1),
      width_(part == Part::whole ? db.whole_width() : db.width),
      detail_(part == Part::whole && db.detail) {}

void RowView::pack(const uint8_t* row, uint8_t* out) const {
    for (size_t i = 0; i < copies_; ++i, out += db_.width) std::memcpy(out, row, db_.width);
    if (detail_) std::memcpy(out, row + db_.width, db_.detail);
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
    const size_t block = std::max<size_t>((size_t{64} << 10) / width_ / 512 * 512, 512);
    std::vector<uint8_t> copy(block * width_);
    Renumbered to{scan, 0, {}};
    Scan part = scan;
    part.codes = copy.data();
    part.first = 0;
    part.context = &to;
    part.consume = renumber;
    for (to.base = scan.first; to.base < scan.last; to.base += block) {
        part.last = std::min(block, scan.last - to.base);
        part.end = copy.data() + part.last * width_;
        const uint8_t* row = db_.code(to.base);
        if (!detail_ && width_ == 8) {
            copy_prefixes<8>(row, db_.stride(), part.last, copy.data());
        } else if (!detail_ && width_ == 6) {
            copy_prefixes<6>(row, db_.stride(), part.last, copy.data());
        } else {
            for (size_t i = 0; i < part.last; ++i, row += db_.stride())
                pack(row, &copy[i * width_]);
        }
        db_.kernels->scan(part);
    }
}

}  // namespace metah
