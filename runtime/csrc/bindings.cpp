// Python face of the search core. Only this file knows Python; the work runs without the GIL.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <memory>
#include <optional>
#include <stdexcept>
#include <system_error>
#include <utility>

#include <nanobind/stl/optional.h>
#include <nanobind/stl/tuple.h>

#include "code_scan.h"
#include "system/buffer.h"
#include "system/file_map.h"
#include "system/map_guard.h"
#include "system/released_gil.h"

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
    std::unique_ptr<void, decltype(&std::free)> data(metah::allocate(bytes), &std::free);
    nb::capsule owner(data.get(), [](void* p) noexcept { std::free(p); });
    return Array<T>(static_cast<T*>(data.release()), shape, owner);
}

metah::Database database(const Codes& codes, const Ids& ids, size_t width, size_t weight) {
    metah::Database db;
    db.kernels = &metah::pick_kernels();
    db.codes = codes.data();
    db.rows = codes.shape(0);
    if (width < 1 || width > codes.shape(1) || weight < 1 || weight > metah::kMaxWidth)
        throw std::invalid_argument("width: must be 1..bytes of a row, weight: from 1 on");
    db.width = width;
    db.detail = codes.shape(1) - width;
    db.weight = db.detail ? weight : 1;
    if (db.whole_width() > metah::kMaxWidth)
        throw std::invalid_argument("codes: width must be 1..MAX_BITS / 8 bytes");
    if (db.rows > metah::kMaxRows) throw std::invalid_argument("codes: more than MAX_ROWS");
    if (ids.is_valid() && ids.shape(0) != db.rows) throw std::invalid_argument("ids: one a row");
    db.ids = ids.is_valid() ? ids.data() : nullptr;
    return db;
}

// Borrowed arrays that may lie in mapped files.
struct BorrowedCodes {
    BorrowedCodes(Codes codes_, Ids ids_)
        : codes(codes_), ids(ids_), codes_guard(codes.data(), codes.nbytes()) {
        if (ids.is_valid()) ids_guard.emplace(ids.data(), ids.nbytes());
    }
    bool lost() const { return codes_guard.lost() || (ids_guard && ids_guard->lost()); }

    Codes codes;
    Ids ids;
    metah::MapGuard codes_guard;
    std::optional<metah::MapGuard> ids_guard;
};

class BorrowingScan {
    using CodeDistances = std::optional<Array<int32_t>>;
    using Matches = std::tuple<Array<int64_t>, Array<int32_t>, CodeDistances>;
    using RangeMatches = std::tuple<Array<int64_t>, Array<int64_t>, Array<int32_t>, CodeDistances>;

  public:
    BorrowingScan(Codes codes, Ids ids, size_t width, size_t weight)
        : scan_(database(codes, ids, width, weight)),
          memory_(std::make_shared<BorrowedCodes>(codes, ids)) {}
    BorrowingScan(const BorrowingScan& other, Removed removed)
        : scan_(other.scan_, reinterpret_cast<const uint8_t*>(removed.data())),
          memory_(other.memory_),
          removed_(removed) {}

    BorrowingScan without(Removed removed) const {
        if (removed.shape(0) != scan_.db().rows) throw std::invalid_argument("removed: one a row");
        return {*this, removed};
    }

    const char* simd() const { return scan_.db().kernels->name; }
    size_t alive() const { return scan_.db().alive; }
    size_t table_bytes() const { return scan_.tables().bytes(); }
    void limit_tables(size_t bytes) { scan_.tables().limit(bytes); }
    size_t take_refused() { return scan_.tables().take_refused(); }

    // radius < 0: the groups alone.
    void prepare(int radius, int threads) {
        check(std::max(radius, 0), threads);
        read([&] { scan_.tables().prepare(radius, threads); });
    }

    Matches search(Codes queries, uint64_t k, int threads) {
        const metah::Queries q = checked(queries, 0, threads);
        const size_t columns = std::min<uint64_t>(k, alive());
        auto ids = empty<int64_t>({q.count, columns});
        auto distances = empty<int32_t>({q.count, columns});
        auto code_distances = detailed({q.count, columns});
        if (q.count && columns)
            read([&] {
                scan_.search(q, columns, threads, ids.data(), distances.data(),
                             data_of(code_distances));
            });
        return {ids, distances, code_distances};
    }

    RangeMatches range_search(Codes queries, int radius, int threads) {
        const metah::Queries q = checked(queries, radius, threads);
        metah::RangeFound found;
        read([&] { found = scan_.find(q, radius, threads); });
        auto lims = empty<int64_t>({q.count + 1});
        std::copy(found.lims.begin(), found.lims.end(), lims.data());
        const auto hits = static_cast<size_t>(found.lims.back());
        auto ids = empty<int64_t>({hits});
        auto distances = empty<int32_t>({hits});
        auto code_distances = detailed({hits});
        if (hits)
            read([&] {
                scan_.write(q, found, threads, ids.data(), distances.data(),
                            data_of(code_distances));
            });
        return {lims, ids, distances, code_distances};
    }

    Array<int64_t> count(Codes queries, int radius, int threads) {
        const metah::Queries q = checked(queries, radius, threads);
        auto counts = empty<int64_t>({q.count});
        read([&] { scan_.count(q, radius, threads, counts.data()); });
        return counts;
    }

  private:
    // Distances of the hash code, where they are not the distances.
    CodeDistances detailed(std::initializer_list<size_t> shape) const {
        if (!scan_.db().detail) return std::nullopt;
        return empty<int32_t>(shape);
    }
    static int32_t* data_of(CodeDistances& array) { return array ? array->data() : nullptr; }

    // Works without the GIL. Throws CodesChanged if codes or ids are in a file that was cut.
    template <class Work>
    void read(Work work) const {
        const metah::ReleasedGil released;
        const metah::MapGuard::Reading codes(memory_->codes_guard);
        std::optional<metah::MapGuard::Reading> ids;
        if (memory_->ids_guard) ids.emplace(*memory_->ids_guard);
        work();
        if (memory_->lost()) throw metah::CodesChanged();
    }

    // What memory safety needs; callers see the errors of metah_runtime.search.
    void check(int radius, int threads) const {
        if (radius < 0 || radius > scan_.db().bits())
            throw std::invalid_argument("radius: must be 0..bits");
        if (threads < 1 || threads > metah::kMaxThreads)
            throw std::invalid_argument("threads: must be 1..MAX_THREADS");
    }

    metah::Queries checked(const Codes& queries, int radius, int threads) const {
        check(radius, threads);
        if (queries.shape(1) != scan_.db().stride())
            throw std::invalid_argument("queries: other width");
        return {queries.data(), queries.shape(0)};
    }

    metah::CodeScan scan_;
    std::shared_ptr<BorrowedCodes> memory_;
    Removed removed_;
};

int get_buffer(PyObject* self, Py_buffer* view, int flags) {
    const auto* map = nb::inst_ptr<metah::FileMap>(self);
    return PyBuffer_FillInfo(view, self, const_cast<uint8_t*>(map->data()),
                             static_cast<Py_ssize_t>(map->size()), 1, flags);
}

PyType_Slot file_map_slots[] = {{Py_bf_getbuffer, reinterpret_cast<void*>(get_buffer)},
                                {0, nullptr}};

void raise_python_error(const std::exception_ptr& error, void*) {
    const auto errors = [](const char* name) {
        return nb::module_::import_("metah_runtime.errors").attr(name);
    };
    try {
        std::rethrow_exception(error);
    } catch (const metah::CodesChanged& changed) {
        PyErr_SetString(errors("CodesChanged").ptr(), changed.what());
    } catch (const std::system_error& failed) {
        errno = failed.code().value();
        PyErr_SetFromErrno(PyExc_OSError);
    }
}

}  // namespace

NB_MODULE(_native, m) {
    m.doc() = "Native search core of metah_runtime.";
    nb::set_leak_warnings(false);  // threads and maps may outlive the interpreter
    m.attr("MAX_ROWS") = metah::kMaxRows;
    m.attr("MAX_BITS") = metah::kMaxWidth * 8;
    m.attr("MAX_THREADS") = metah::kMaxThreads;
    nb::class_<BorrowingScan>(m, "CodeScan")
        .def(nb::init<Codes, Ids, size_t, size_t>(), nb::arg("codes"), nb::arg("ids").none(),
             nb::arg("width"), nb::arg("weight"))
        .def("without", &BorrowingScan::without)
        .def("prepare", &BorrowingScan::prepare)
        .def_prop_ro("table_bytes", &BorrowingScan::table_bytes)
        .def_prop_ro("simd", &BorrowingScan::simd)
        .def_prop_ro("alive", &BorrowingScan::alive)
        .def("search", &BorrowingScan::search)
        .def("range_search", &BorrowingScan::range_search)
        .def("count", &BorrowingScan::count)
        .def("limit_tables", &BorrowingScan::limit_tables)
        .def("take_refused", &BorrowingScan::take_refused);
    nb::class_<metah::FileMap>(m, "FileMap", nb::type_slots(file_map_slots))
        .def(nb::init<int, size_t>())
        .def("__len__", &metah::FileMap::size)
        .def("change", &metah::FileMap::change)
        .def("settle", [](const metah::FileMap& map) {
            const metah::ReleasedGil released;
            map.settle();
        });
    nb::register_exception_translator(raise_python_error);
}
