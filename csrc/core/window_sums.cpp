#include "window_sums.h"

#include <cstring>

#include "simd.h"

namespace pycc::window_sums {
namespace {

// Half of the widest vectors: full width is hardly faster where it exists, and code for vectors
// wider than the machine's is slow.
using Floats [[gnu::vector_size(32)]] = float;
using Doubles [[gnu::vector_size(32)]] = double;
using Signs [[gnu::vector_size(32)]] = std::int32_t;
using FourFloats [[gnu::vector_size(16)]] = float;

// Traits of a type of sum: the number per vector, and the conversion of the map's values.
template <class T>
struct Kind;

template <>
struct Kind<float> {
    using Vector = Floats;
    static constexpr std::int64_t kLanes = 8;
    [[gnu::always_inline]] static void read(float& sums, const float* values) {
        sums = *values < 0.0F ? 0.0F : *values;
    }
    [[gnu::always_inline]] static void read(Floats& sums, const float* values) {
        std::memcpy(&sums, values, sizeof sums);
        Signs bits = reinterpret_cast<Signs>(sums);
        bits &= ~(bits >> 31);  // clears values with the sign bit; a comparison may become scalar
        sums = reinterpret_cast<Floats>(bits);
    }
};

template <>
struct Kind<double> {
    using Vector = Doubles;
    static constexpr std::int64_t kLanes = 4;
    [[gnu::always_inline]] static void read(double& sums, const float* values) {
        sums = static_cast<double>(*values);
    }
    [[gnu::always_inline]] static void read(Doubles& sums, const float* values) {
        FourFloats four;
        std::memcpy(&four, values, sizeof four);
        sums = __builtin_convertvector(four, Doubles);
    }
};

// Computes column sums of kVectors * V neighbouring columns in registers: down the block, then up.
template <class T, class V, int kVectors>
[[gnu::always_inline]] inline void column_strip(T* sums, std::int64_t pitch, const Task& task,
                                                std::int64_t x) {
    constexpr std::int64_t kEach = sizeof(V) / sizeof(T);
    const Area& area = task.area;
    const float* column = task.map + area.left + x;
    sums += x;
    V sum[kVectors];
    const auto set = [&](std::int64_t row) {
        const float* values = column + row * task.width;
        for (int i = 0; i < kVectors; ++i) Kind<T>::read(sum[i], values + i * kEach);
    };
    const auto add = [&](std::int64_t row) {
        const float* values = column + row * task.width;
        for (int i = 0; i < kVectors; ++i) {
            V value;
            Kind<T>::read(value, values + i * kEach);
            sum[i] = value + sum[i];
        }
    };
    const auto keep = [&](std::int64_t y) {
        T* target = sums + (y - area.top) * pitch;
        for (int i = 0; i < kVectors; ++i) std::memcpy(target + i * kEach, &sum[i], sizeof(V));
    };
    const auto join = [&](std::int64_t y) {
        T* target = sums + (y - area.top) * pitch;
        for (int i = 0; i < kVectors; ++i) {
            V upper;
            std::memcpy(&upper, target + i * kEach, sizeof(V));
            upper = upper + sum[i];
            std::memcpy(target + i * kEach, &upper, sizeof(V));
        }
    };
    std::int64_t row = task.start + task.window_height - 1;
    set(row);
    while (row > area.bottom - 1) add(--row);
    keep(row);
    while (row > area.top) add(--row), keep(row);

    std::int64_t y = std::max(area.top, task.start + 1);
    if (y >= area.bottom) return;
    row = task.start + task.window_height;
    set(row);
    while (row < y + task.window_height - 1) add(++row);
    join(y);
    while (++y < area.bottom) add(++row), join(y);
}

template <class T>
[[gnu::always_inline]] inline void all_columns(T* sums, std::int64_t pitch, const Task& task) {
    using V = typename Kind<T>::Vector;
    constexpr std::int64_t kLanes = Kind<T>::kLanes;
    const std::int64_t cols = task.cols();
    // The last strip ends with the last column; it recomputes some columns of the previous one.
    for (std::int64_t x = 0; x < cols;) {
        const std::int64_t left = cols - x;
        if (left > 4 * kLanes && cols >= 8 * kLanes) {
            x = std::min(x, cols - 8 * kLanes);
            column_strip<T, V, 8>(sums, pitch, task, x);
            x += 8 * kLanes;
        } else if (left > kLanes && cols >= 4 * kLanes) {
            x = std::min(x, cols - 4 * kLanes);
            column_strip<T, V, 4>(sums, pitch, task, x);
            x += 4 * kLanes;
        } else if (cols >= kLanes) {
            x = std::min(x, cols - kLanes);
            column_strip<T, V, 1>(sums, pitch, task, x);
            x += kLanes;
        } else {
            column_strip<T, T, 1>(sums, pitch, task, x++);
        }
    }
}

}  // namespace

PYCC_SIMD void column_sums(double* sums /* [area rows,pitch] */, std::int64_t pitch,
                           const Task& task) noexcept {
    all_columns(sums, pitch, task);
}
PYCC_SIMD void column_sums(float* sums /* [area rows,pitch] */, std::int64_t pitch,
                           const Task& task) noexcept {
    all_columns(sums, pitch, task);
}

namespace {

enum class Tail { none, begin, extend };

// Doubles `count` row sums of `length` columns once, and adds to the tail.
template <class T, Tail kTail, bool kDouble>
[[gnu::always_inline]] inline void doubling(T* sums, T* tails, std::int64_t length,
                                            std::int64_t count) {
    using V = typename Kind<T>::Vector;
    for (std::int64_t x = 0; x < count; x += Kind<T>::kLanes) {
        V sum, next, tail;
        std::memcpy(&sum, sums + x, sizeof(V));
        if constexpr (kTail == Tail::begin) std::memcpy(tails + x, &sum, sizeof(V));
        if constexpr (kTail == Tail::extend) {
            std::memcpy(&tail, tails + x + length, sizeof(V));
            tail = sum + tail;
            std::memcpy(tails + x, &tail, sizeof(V));
        }
        if constexpr (kDouble) {
            std::memcpy(&next, sums + x + length, sizeof(V));
            sum = sum + next;
            std::memcpy(sums + x, &sum, sizeof(V));
        }
    }
}

// Replaces the column sums of `rows` rows by row sums of windows; if the width is no power of two,
// these are in tails instead.
template <class T>
[[gnu::always_inline]] inline void all_rows(T* sums, T* tails, std::int64_t pitch,
                                            std::int64_t rows, std::int64_t cols,
                                            std::int64_t window) {
    for (std::int64_t length = 1; length <= window; length *= 2) {
        const bool bit = (window & length) != 0, more = 2 * length <= window;
        const bool first = (window & (length - 1)) == 0;
        if (first && !more) return;
        const std::int64_t count = cols - length + 1;
        for (std::int64_t y = 0; y < rows; ++y) {
            T *own = sums + y * pitch, *tail = tails + y * pitch;
            if (!bit) {
                doubling<T, Tail::none, true>(own, tail, length, count);
            } else if (first) {
                doubling<T, Tail::begin, true>(own, tail, length, count);
            } else if (more) {
                doubling<T, Tail::extend, true>(own, tail, length, count);
            } else {
                doubling<T, Tail::extend, false>(own, tail, length, count);
            }
        }
    }
}

}  // namespace

PYCC_SIMD void row_sums(double* sums /* [rows,pitch] */, double* tails /* [rows,pitch] */,
                        std::int64_t pitch, std::int64_t rows, std::int64_t cols,
                        std::int64_t window) noexcept {
    all_rows(sums, tails, pitch, rows, cols, window);
}
PYCC_SIMD void row_sums(float* sums /* [rows,pitch] */, float* tails /* [rows,pitch] */,
                        std::int64_t pitch, std::int64_t rows, std::int64_t cols,
                        std::int64_t window) noexcept {
    all_rows(sums, tails, pitch, rows, cols, window);
}

}  // namespace pycc::window_sums
