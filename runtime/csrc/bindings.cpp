// Python face of the search core. Only this file knows Python; the work runs without the GIL.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <algorithm>
#include <stdexcept>
#include <utility>

#include <nanobind/stl/pair.h>
#include <nanobind/stl/tuple.h>

#include "kernel.h"
#include "search.h"

namespace nb = nanobind;

namespace {

using Codes = nb::ndarray<const uint8_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Ids = nb::ndarray<const int64_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Removed = nb::ndarray<const bool, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
template <class T>
using Array = nb::ndarray<nb::numpy, T>;

template <class T>
Array<T> array(std::vector<T> values) {
    auto* own = new std::vector<T>(std::move(values));
    nb::capsule owner(own, [](void* p) noexcept { delete static_cast<std::vector<T>*>(p); });
    return Array<T>(own->data(), {own->size()}, owner);
}

template <class T>
Array<T> empty(std::initializer_list<size_t> shape) {
    size_t size = 1;
    for (size_t s : shape) size *= s;
    T* data = new T[size ? size : 1];
    nb::capsule owner(data, [](void* p) noexcept { delete[] static_cast<T*>(p); });
    return Array<T>(data, shape, owner);
}

class Index {
  public:
    Index(Codes codes, Ids ids, Removed removed)
        : codes_(codes), ids_(ids), removed_(removed) {
        db_.kernels = &metah::pick_kernels();
        db_.codes = codes.data();
        db_.rows = codes.shape(0);
        db_.width = codes.shape(1);
        if (db_.width < 1 || db_.width > 128) throw std::invalid_argument("width must be 1..128");
        if (db_.rows >= UINT32_MAX) throw std::invalid_argument("at most 2^32 - 2 rows");
        if (ids.is_valid() && ids.shape(0) != db_.rows) throw std::invalid_argument("ids: one a row");
        if (removed.is_valid() && removed.shape(0) != db_.rows)
            throw std::invalid_argument("removed: one a row");
        db_.ids = ids.is_valid() ? ids.data() : nullptr;
        if (removed.is_valid())
            db_.removed = reinterpret_cast<const uint8_t*>(removed.data());
        db_.alive = db_.rows;
        if (removed.is_valid())
            db_.alive -= std::count(db_.removed, db_.removed + db_.rows, uint8_t{1});
    }

    const char* simd() const { return db_.kernels->name; }
    size_t alive() const { return db_.alive; }

    std::pair<Array<int64_t>, Array<int32_t>> search(Codes queries, uint64_t k, int threads) {
        metah::Queries q = checked(queries);
        size_t columns = std::min<uint64_t>(k, db_.alive);
        auto ids = empty<int64_t>({q.count, columns});
        auto distances = empty<int32_t>({q.count, columns});
        if (q.count && columns) {
            nb::gil_scoped_release release;
            metah::search(db_, q, columns, threads, ids.data(), distances.data());
        }
        return {ids, distances};
    }

    std::tuple<Array<int64_t>, Array<int64_t>, Array<int32_t>> range_search(Codes queries,
                                                                            int radius,
                                                                            int threads) {
        metah::Queries q = checked(queries);
        metah::Ranges found;
        {
            nb::gil_scoped_release release;
            found = metah::range_search(db_, q, radius, threads);
        }
        return {array(std::move(found.lims)), array(std::move(found.ids)),
                array(std::move(found.distances))};
    }

    Array<int64_t> count(Codes queries, int radius, int threads) {
        metah::Queries q = checked(queries);
        auto counts = empty<int64_t>({q.count});
        nb::gil_scoped_release release;
        metah::count(db_, q, radius, threads, counts.data());
        return counts;
    }

  private:
    metah::Queries checked(const Codes& queries) const {
        if (queries.shape(1) != db_.width) throw std::invalid_argument("queries: other width");
        return {queries.data(), queries.shape(0)};
    }

    Codes codes_;  // keep the borrowed arrays alive
    Ids ids_;
    Removed removed_;
    metah::Database db_;
};

}  // namespace

NB_MODULE(_native, m) {
    m.doc() = "Native search core of metah_runtime.";
    nb::class_<Index>(m, "Index")
        .def(nb::init<Codes, Ids, Removed>(), nb::arg("codes"),
             nb::arg("ids").none(), nb::arg("removed").none())
        .def_prop_ro("simd", &Index::simd)
        .def_prop_ro("alive", &Index::alive)
        .def("search", &Index::search)
        .def("range_search", &Index::range_search)
        .def("count", &Index::count);
}
