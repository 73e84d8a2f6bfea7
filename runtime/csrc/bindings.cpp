// Python face of the search core. Only this file knows Python; the work runs without the GIL.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <algorithm>
#include <cstdlib>
#include <stdexcept>
#include <utility>

#include <nanobind/stl/pair.h>
#include <nanobind/stl/tuple.h>

#include "code_scan.h"
#include "system/buffer.h"

namespace nb = nanobind;

namespace {

using Codes = nb::ndarray<const uint8_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Ids = nb::ndarray<const int64_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Removed = nb::ndarray<const bool, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
template <class T>
using Array = nb::ndarray<nb::numpy, T>;

template <class T>
Array<T> empty(std::initializer_list<size_t> shape) {
    size_t bytes = sizeof(T);
    for (size_t s : shape) bytes *= s;
    void* data = metah::allocate(bytes);
    nb::capsule owner(data, [](void* p) noexcept { std::free(p); });
    return Array<T>(static_cast<T*>(data), shape, owner);
}

metah::Database database(const Codes& codes, const Ids& ids) {
    metah::Database db;
    db.kernels = &metah::pick_kernels();
    db.codes = codes.data();
    db.rows = codes.shape(0);
    db.width = codes.shape(1);
    if (db.width < 1 || db.width > metah::kMaxWidth)
        throw std::invalid_argument("codes: width must be 1..MAX_BITS / 8 bytes");
    if (db.rows > metah::kMaxRows) throw std::invalid_argument("codes: more than MAX_ROWS");
    if (ids.is_valid() && ids.shape(0) != db.rows) throw std::invalid_argument("ids: one a row");
    db.ids = ids.is_valid() ? ids.data() : nullptr;
    return db;
}

// Keeps the borrowed arrays alive.
class BorrowingScan {
  public:
    BorrowingScan(Codes codes, Ids ids) : codes_(codes), ids_(ids), scan_(database(codes, ids)) {}
    BorrowingScan(const BorrowingScan& other, Removed removed)
        : codes_(other.codes_),
          ids_(other.ids_),
          removed_(removed),
          scan_(other.scan_, reinterpret_cast<const uint8_t*>(removed.data())) {}

    BorrowingScan without(Removed removed) const {
        if (removed.shape(0) != scan_.db().rows) throw std::invalid_argument("removed: one a row");
        return {*this, removed};
    }

    const char* simd() const { return scan_.db().kernels->name; }
    size_t alive() const { return scan_.db().alive; }
    size_t table_bytes() const { return scan_.tables().bytes(); }

    // radius < 0: the groups alone.
    void prepare(int radius, int threads) {
        check(std::max(radius, 0), threads);
        nb::gil_scoped_release release;
        scan_.tables().prepare(radius, threads);
    }

    std::pair<Array<int64_t>, Array<int32_t>> search(Codes queries, uint64_t k, int threads) {
        const metah::Queries q = checked(queries, 0, threads);
        const size_t columns = std::min<uint64_t>(k, alive());
        auto ids = empty<int64_t>({q.count, columns});
        auto distances = empty<int32_t>({q.count, columns});
        if (q.count && columns) {
            nb::gil_scoped_release release;
            scan_.search(q, columns, threads, ids.data(), distances.data());
        }
        return {ids, distances};
    }

    std::tuple<Array<int64_t>, Array<int64_t>, Array<int32_t>> range_search(Codes queries,
                                                                            int radius,
                                                                            int threads) {
        const metah::Queries q = checked(queries, radius, threads);
        metah::RangeFound found;
        {
            nb::gil_scoped_release release;
            found = scan_.find(q, radius, threads);
        }
        auto lims = empty<int64_t>({q.count + 1});
        std::copy(found.lims.begin(), found.lims.end(), lims.data());
        const auto hits = static_cast<size_t>(found.lims.back());
        auto ids = empty<int64_t>({hits});
        auto distances = empty<int32_t>({hits});
        if (hits) {
            nb::gil_scoped_release release;
            scan_.write(found, threads, ids.data(), distances.data());
        }
        return {lims, ids, distances};
    }

    Array<int64_t> count(Codes queries, int radius, int threads) {
        const metah::Queries q = checked(queries, radius, threads);
        auto counts = empty<int64_t>({q.count});
        nb::gil_scoped_release release;
        scan_.count(q, radius, threads, counts.data());
        return counts;
    }

  private:
    // What memory safety needs; callers see the errors of metah_runtime.search.
    void check(int radius, int threads) const {
        if (radius < 0 || radius > scan_.db().bits())
            throw std::invalid_argument("radius: must be 0..bits");
        if (threads < 1 || threads > metah::kMaxThreads)
            throw std::invalid_argument("threads: must be 1..MAX_THREADS");
    }

    metah::Queries checked(const Codes& queries, int radius, int threads) const {
        check(radius, threads);
        if (queries.shape(1) != scan_.db().width)
            throw std::invalid_argument("queries: other width");
        return {queries.data(), queries.shape(0)};
    }

    Codes codes_;
    Ids ids_;
    Removed removed_;
    metah::CodeScan scan_;
};

}  // namespace

NB_MODULE(_native, m) {
    m.doc() = "Native search core of metah_runtime.";
    m.attr("MAX_ROWS") = metah::kMaxRows;
    m.attr("MAX_BITS") = metah::kMaxWidth * 8;
    m.attr("MAX_THREADS") = metah::kMaxThreads;
    nb::class_<BorrowingScan>(m, "CodeScan")
        .def(nb::init<Codes, Ids>(), nb::arg("codes"), nb::arg("ids").none())
        .def("without", &BorrowingScan::without)
        .def("prepare", &BorrowingScan::prepare)
        .def_prop_ro("table_bytes", &BorrowingScan::table_bytes)
        .def_prop_ro("simd", &BorrowingScan::simd)
        .def_prop_ro("alive", &BorrowingScan::alive)
        .def("search", &BorrowingScan::search)
        .def("range_search", &BorrowingScan::range_search)
        .def("count", &BorrowingScan::count);
}
