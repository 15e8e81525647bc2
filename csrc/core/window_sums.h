// Sums of all windows of a map, in float32 or float64, in a fixed order of additions:
//
//   column sums C[y][x]: rows are cut into blocks of the window's height, from row 0 on. A window
//   that is a block uses the block's sum, from its last row to its first. Any other window adds the
//   sum of its rows in the upper block, from the last row up, and that of its rows in the lower
//   block, from the first row down (van Herk, Gil and Werman). At most 3 additions per value.
//
//   row sums: S_1 = C, S_2m[x] = S_m[x] + S_m[x + m]. From the lowest set bit m of the width to the
//   highest, the sum of the bits so far moves m to the right: A[x] = S_m[x] + A[x + m]. At most
//   2 log2(width) additions per value.
//
// Nothing is subtracted, so that a NaN or an infinity affects only the windows that contain it, and
// errors do not accumulate.
//
// In float32 each value counts as max(value, 0), for upper bounds. NaN may count as 0 as well, so
// that these are no bounds for a map with NaN.
#pragma once

#include <algorithm>
#include <cstdint>

#include "device.h"
#include "memory.h"

namespace pycc::window_sums {

struct Sizes {
    std::int64_t maps, height, width;
    std::int64_t window_height, window_width;  // 1 to height, 1 to width

    PYCC_HD std::int64_t rows() const { return height - window_height + 1; }  // places of a window
    PYCC_HD std::int64_t cols() const { return width - window_width + 1; }
};

// The best window so far; NaN is the largest sum, and of equal sums the lowest index wins.
struct BestWindow {
    double sum;
    std::int64_t index;  // flat index of the place; -1 if there is none yet

    PYCC_HD void offer(double other, std::int64_t at) {
        const bool nan = sum != sum, other_nan = other != other;
        const bool equal = other == sum || (nan && other_nan);
        const bool larger = (other_nan && !nan) || other > sum;
        if (index < 0 || larger || (equal && at < index)) *this = {other, at};
    }
};

// The better of two windows, either of which may have index -1.
struct Better {
    PYCC_HD BestWindow operator()(BestWindow a, const BestWindow& b) const {
        if (b.index >= 0) a.offer(b.sum, b.index);
        return a;
    }
};

// Places of windows: rows [top, bottom), columns [left, right).
struct Area {
    std::int64_t top, bottom, left, right;

    std::int64_t count() const { return (bottom - top) * (right - left); }
};

// A map, a window size, and the places in `area`, whose rows are in the block that begins at row
// `start`.
struct Task {
    const float* map /* [height,width] */;
    std::int64_t width, window_height, window_width;
    Area area;
    std::int64_t start;

    std::int64_t cols() const { return area.right - area.left + window_width - 1; }
};

// Computes the column sums of the area's rows and of cols() columns from its left column on.
void column_sums(double* sums /* [area rows,pitch] */, std::int64_t pitch,
                 const Task& task) noexcept;
void column_sums(float* sums /* [area rows,pitch] */, std::int64_t pitch,
                 const Task& task) noexcept;

// Computes sums over windows of columns from the column sums in `sums`. The results are in `sums`
// if the window's width is a power of two, else in `tails`. Values after the last window of a row
// are undefined; 16 values after its last column are read and written.
void row_sums(double* sums /* [rows,pitch] */, double* tails /* [rows,pitch] */, std::int64_t pitch,
              std::int64_t rows, std::int64_t cols, std::int64_t window) noexcept;
void row_sums(float* sums /* [rows,pitch] */, float* tails /* [rows,pitch] */, std::int64_t pitch,
              std::int64_t rows, std::int64_t cols, std::int64_t window) noexcept;

// Buffers for window sums in T; calls body(y, left, sums, count) on the sums of each row.
template <class T>
class Sums {
  public:
    template <class Body>
    void compute(const float* map /* [height,width] */, std::int64_t width,
                 std::int64_t window_height, std::int64_t window_width, const Area& area,
                 const Body& body) {
        const std::int64_t first = area.top / window_height * window_height;
        for (std::int64_t start = first; start < area.bottom; start += window_height) {
            const std::int64_t top = std::max(start, area.top);
            const std::int64_t bottom = std::min(start + window_height, area.bottom);
            // Process columns in parts, so that the block's sums stay in the second-level cache.
            const std::int64_t most = (kSecondCache / (bottom - top)) - window_width;
            const std::int64_t step = std::max(most, std::max<std::int64_t>(window_width, 64));
            for (std::int64_t left = area.left; left < area.right; left += step) {
                const Area part{top, bottom, left, std::min(left + step, area.right)};
                block({map, width, window_height, window_width, part, start}, body);
            }
        }
    }

  private:
    static constexpr std::int64_t kSecondCache = (768 << 10) / sizeof(T);
    static constexpr std::int64_t kFirstCache = (20 << 10) / sizeof(T);

    template <class Body>
    void block(const Task& task, const Body& body) {
        const Area& area = task.area;
        const std::int64_t rows = area.bottom - area.top, cols = task.cols();
        const std::int64_t pitch = cols / 16 * 16 + 48;  // vectors read and write past the end
        const std::int64_t at_once = std::clamp<std::int64_t>(kFirstCache / (2 * pitch), 1, rows);
        sums_.reserve(rows * pitch);
        tails_.reserve(at_once * pitch);
        column_sums(sums_.data(), pitch, task);
        const bool power = (task.window_width & (task.window_width - 1)) == 0;
        for (std::int64_t row = 0; row < rows; row += at_once) {
            T* own = sums_.data() + row * pitch;
            const std::int64_t some = std::min(at_once, rows - row);
            row_sums(own, tails_.data(), pitch, some, cols, task.window_width);
            const T* ready = power ? own : tails_.data();
            for (std::int64_t y = 0; y < some; ++y) {
                body(area.top + row + y, area.left, ready + y * pitch, area.right - area.left);
            }
        }
    }

    AlignedScratch<T> sums_, tails_;
};

}  // namespace pycc::window_sums
