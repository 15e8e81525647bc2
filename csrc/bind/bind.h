// Deduces the Python signature of a kernel from its C++ type.
//
//   T*, T a number            the address of a tensor of that dtype
//   T*, T a struct            the address of a tensor of uint8, used as raw scratch memory
//   Nullable<T>               the same, or None
//   number                    int, float or bool
//   enum, const Struct&       a member of the enumeration, an object of the class, both bound
//   cudaStream_t              the address of the stream
//
// `kernels` of the module has, for each kernel, the function and the kinds of its parameters: a
// Python type, or for a tensor the name of its dtype, with "?" if it may be None. pycc.ops checks
// arguments against these before it passes an address.
#pragma once

#include <pybind11/native_enum.h>
#include <pybind11/pybind11.h>

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <sstream>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include "../core/nullable.h"

#if defined(PYCC_CUDA)
#include "../core/cuda_api.h"
#endif

namespace pycc::binding {

namespace py = pybind11;

template <class T>
const char* dtype_name() {
    if constexpr (std::is_same_v<T, float>) {
        return "float32";
    } else if constexpr (std::is_same_v<T, double>) {
        return "float64";
    } else if constexpr (std::is_same_v<T, std::int32_t>) {
        return "int32";
    } else if constexpr (std::is_same_v<T, std::int64_t>) {
        return "int64";
    } else if constexpr (std::is_same_v<T, std::uint8_t>) {
        return "uint8";
    } else if constexpr (std::is_same_v<T, std::uint32_t>) {
        return "uint32";
    } else if constexpr (std::is_same_v<T, std::uint64_t>) {
        return "uint64";
    } else {
        static_assert(std::is_class_v<T> && std::is_trivially_copyable_v<T>, "no dtype is known");
        return "uint8";
    }
}

// The type to which pybind11 converts a parameter of type P, and its kind.
template <class P, class = void>
struct Parameter;

template <class T>
struct Parameter<T, std::enable_if_t<std::is_arithmetic_v<T> || std::is_enum_v<T>>> {
    using Passed = T;
    static T unwrap(T value) { return value; }
    static py::object kind() { return py::type::of(py::cast(T{})); }
};

template <class T>
struct Parameter<const T&> {
    using Passed = const T&;
    static const T& unwrap(const T& value) { return value; }
    static py::object kind() { return py::type::of<T>(); }
};

template <class T>
struct Parameter<T*> {
    using Passed = std::uintptr_t;
    static T* unwrap(Passed address) { return reinterpret_cast<T*>(address); }
    static py::object kind() { return py::str(dtype_name<std::remove_const_t<T>>()); }
};

template <class T>
struct Parameter<Nullable<T>> {
    using Passed = std::uintptr_t;
    static Nullable<T> unwrap(Passed address) { return {Parameter<T*>::unwrap(address)}; }
    static py::object kind() { return Parameter<T*>::kind() + py::str("?"); }
};

#if defined(PYCC_CUDA)
template <>
struct Parameter<cudaStream_t> {
    using Passed = std::uintptr_t;
    static cudaStream_t unwrap(Passed address) { return reinterpret_cast<cudaStream_t>(address); }
    static py::object kind() { return py::type::of(py::int_()); }
};
#endif

template <class P>
constexpr bool kWritten = false;
template <class T>
constexpr bool kWritten<T*> = !std::is_const_v<T>;
template <class T>
constexpr bool kWritten<Nullable<T>> = !std::is_const_v<T>;

// Whether a kernel's outputs precede its inputs; the last parameter is `threads` or a stream.
template <class... Parameters>
constexpr bool outputs_first() {
    constexpr bool written[] = {kWritten<Parameters>...};
    for (std::size_t i = 1; i + 1 < sizeof...(Parameters); ++i) {
        if (written[i] && !written[i - 1]) return false;
    }
    return written[0];
}

template <class... Parameters>
void kernel(py::module_& m, const char* name, void (*function)(Parameters...)) {
    static_assert(outputs_first<Parameters...>(), "a kernel's outputs and scratch come first");
    m.def(
        name,
        [function](typename Parameter<Parameters>::Passed... passed) {
            function(Parameter<Parameters>::unwrap(passed)...);
        },
        py::call_guard<py::gil_scoped_release>());
    m.attr("kernels")[name] =
        py::make_tuple(m.attr(name), py::make_tuple(Parameter<Parameters>::kind()...));
}

template <class Enum>
void enumeration(py::module_& m, const char* name,
                 std::initializer_list<std::pair<const char*, Enum>> members) {
    py::native_enum<Enum> bound(m, name, "enum.Enum");
    for (const auto& [member, value] : members) bound.value(member, value);
    bound.finalize();
}

struct Anything {
    template <class T>
    operator T() const;
};

template <class T, class Index, class = void>
constexpr bool kHasFields = false;
template <class T, std::size_t... I>
constexpr bool
    kHasFields<T, std::index_sequence<I...>, std::void_t<decltype(T{(void(I), Anything{})...})>> =
        true;

template <class Struct, class Make, std::size_t... I>
void define_init(py::class_<Struct>& bound, const Make& make, const std::vector<std::string>& names,
                 std::index_sequence<I...>) {
    bound.def(py::init(make), py::kw_only(), py::arg(names[I].c_str())...);
}

// The class of Struct, whose objects take all of its fields by keyword; see PYCC_STRUCT.
template <class Struct, class Members, class... Fields>
py::class_<Struct> structure(py::module_& m, const char* name, const char* listed,
                             std::tuple<Fields&...> (Members::*fields)()) {
    static_assert((std::is_arithmetic_v<Fields> && ...), "an address in a struct goes unchecked");
    static_assert(!kHasFields<Struct, std::make_index_sequence<sizeof...(Fields) + 1>>,
                  "a field is missing");
    std::vector<std::string> names;
    std::istringstream stream(listed);
    for (std::string field; std::getline(stream >> std::ws, field, ',');) names.push_back(field);
    const auto make = [fields](Fields... values) {
        Members members{};
        (members.*fields)() = std::tie(values...);
        return Struct(members);
    };
    py::class_<Struct> bound(m, name);
    define_init(bound, make, names, std::index_sequence_for<Fields...>());
    return bound;
}

}  // namespace pycc::binding

// Binds a struct of numbers by its name in Python and the names of its fields.
#define PYCC_STRUCT(m, Struct, name, ...)                                                 \
    [&m] {                                                                                \
        struct Members : Struct {                                                         \
            auto fields() { return std::tie(__VA_ARGS__); }                               \
        };                                                                                \
        return pycc::binding::structure<Struct>(m, name, #__VA_ARGS__, &Members::fields); \
    }()
