// Python face of the search core. Only this file knows Python; the work runs without the GIL.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <algorithm>
#include <cstdlib>
#include <stdexcept>
#include <utility>

#include <nanobind/stl/pair.h>
#include <nanobind/stl/tuple.h>

#include "buffer.h"
#include "index.h"

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
    if (db.width < 1 || db.width > 128) throw std::invalid_argument("width must be 1..128");
    if (db.rows >= UINT32_MAX) throw std::invalid_argument("at most 2^32 - 2 rows");
    if (ids.is_valid() && ids.shape(0) != db.rows) throw std::invalid_argument("ids: one a row");
    db.ids = ids.is_valid() ? ids.data() : nullptr;
    return db;
}

// Keeps the borrowed arrays alive.
class Index {
  public:
    Index(Codes codes, Ids ids) : codes_(codes), ids_(ids), index_(database(codes, ids)) {}
    Index(const Index& other, Removed removed)
        : codes_(other.codes_), ids_(other.ids_), removed_(removed),
          index_(other.index_, reinterpret_cast<const uint8_t*>(removed.data())) {}

    Index without(Removed removed) const {
        if (removed.shape(0) != index_.db().rows)
            throw std::invalid_argument("removed: one a row");
        return {*this, removed};
    }

    const char* simd() const { return index_.db().kernels->name; }
    size_t alive() const { return index_.db().alive; }
    size_t table_bytes() const { return index_.tables().bytes(); }

    void prepare(int radius, int threads) {
        nb::gil_scoped_release release;
        index_.tables().prepare(radius, threads);
    }

    std::pair<Array<int64_t>, Array<int32_t>> search(Codes queries, uint64_t k, int threads) {
        const metah::Queries q = checked(queries);
        const size_t columns = std::min<uint64_t>(k, alive());
        auto ids = empty<int64_t>({q.count, columns});
        auto distances = empty<int32_t>({q.count, columns});
        if (q.count && columns) {
            nb::gil_scoped_release release;
            index_.search(q, columns, threads, ids.data(), distances.data());
        }
        return {ids, distances};
    }

    std::tuple<Array<int64_t>, Array<int64_t>, Array<int32_t>> range_search(Codes queries,
                                                                            int radius,
                                                                            int threads) {
        const metah::Queries q = checked(queries);
        metah::RangeFound found;
        {
            nb::gil_scoped_release release;
            found = index_.find(q, radius, threads);
        }
        auto lims = empty<int64_t>({q.count + 1});
        std::copy(found.lims.begin(), found.lims.end(), lims.data());
        const auto hits = static_cast<size_t>(found.lims.back());
        auto ids = empty<int64_t>({hits});
        auto distances = empty<int32_t>({hits});
        if (hits) {
            nb::gil_scoped_release release;
            index_.write(found, threads, ids.data(), distances.data());
        }
        return {lims, ids, distances};
    }

    Array<int64_t> count(Codes queries, int radius, int threads) {
        const metah::Queries q = checked(queries);
        auto counts = empty<int64_t>({q.count});
        nb::gil_scoped_release release;
        index_.count(q, radius, threads, counts.data());
        return counts;
    }

  private:
    metah::Queries checked(const Codes& queries) const {
        if (queries.shape(1) != index_.db().width)
            throw std::invalid_argument("queries: other width");
        return {queries.data(), queries.shape(0)};
    }

    Codes codes_;
    Ids ids_;
    Removed removed_;
    metah::Index index_;
};

}  // namespace

NB_MODULE(_native, m) {
    m.doc() = "Native search core of metah_runtime.";
    nb::class_<Index>(m, "Index")
        .def(nb::init<Codes, Ids>(), nb::arg("codes"), nb::arg("ids").none())
        .def("without", &Index::without)
        .def("prepare", &Index::prepare)
        .def_prop_ro("table_bytes", &Index::table_bytes)
        .def_prop_ro("simd", &Index::simd)
        .def_prop_ro("alive", &Index::alive)
        .def("search", &Index::search)
        .def("range_search", &Index::range_search)
        .def("count", &Index::count);
}
