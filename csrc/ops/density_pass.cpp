#include "density_pass.h"

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <vector>

#include "../core/memory.h"
#include "../core/parallel.h"
#include "../core/simd.h"
#include "density_taps.h"

namespace pycc::density_map {
namespace {

constexpr std::int64_t kLanes = 16;               // floats of a vector
constexpr std::int64_t kAcross = 2 * kLanes;      // columns that are summed in registers
constexpr std::int64_t kDown = 4;                 // rows that share what is read
constexpr std::int64_t kWorkPerThread = 1 << 20;  // cells, about 0.2 ms

using Lanes = float __attribute__((vector_size(kLanes * sizeof(float))));

PYCC_SIMD void add_scaled(float* __restrict__ target /* [count] */,
                          const float* __restrict__ weights /* [count] */, std::int64_t count,
                          float factor) noexcept {
    for (std::int64_t i = 0; i < count; ++i) target[i] += factor * weights[i];
}

// What the kernels of heads add to the cells of one row of pixels; several of them share weights.
class Rows {
  public:
    Rows(const Taps& taps, std::int64_t width, std::int64_t stride, Boundary boundary)
        : taps_(taps),
          width_(width),
          stride_(stride),
          boundary_(boundary),
          end_(width / stride * stride),
          shared_(static_cast<std::size_t>(stride)) {}

    // Adds the kernel of a head in column x, times its factor along the other axis.
    void add(float* row /* [width/stride] */, std::int64_t x, float factor) {
        const std::int64_t radius = taps_.radius();
        if (x < radius || x + radius >= end_) {
            const Axis axis = taps_.axis(x, width_, boundary_);
            const Cells cells = reached_cells(axis, stride_);
            if (cells.first >= cells.last) return;
            fill_weights(own_, cells, stride_, axis, boundary_, taps_);
            add_scaled(row + cells.first, own_.data(), cells.last - cells.first, factor);
            return;
        }
        // A division takes as long as a few vectors.
        const std::int64_t first = stride_ == 1 ? x - radius : (x - radius) / stride_;
        std::vector<float>& weights =
            shared_[stride_ == 1 ? 0U : static_cast<std::size_t>(x % stride_)];
        if (weights.empty()) {
            const Axis axis = taps_.axis(x, width_, boundary_);
            fill_weights(weights, reached_cells(axis, stride_), stride_, axis, boundary_, taps_);
        }
        add_scaled(row + first, weights.data(), static_cast<std::int64_t>(weights.size()), factor);
    }

  private:
    const Taps& taps_;
    std::int64_t width_, stride_;
    Boundary boundary_;
    std::int64_t end_;                        // pixels that belong to a cell
    std::vector<std::vector<float>> shared_;  // of heads away from the border, by x % stride
    std::vector<float> own_;
};

// The weights with which the rows of pixels above and below a cell count: [radius + stride +
// radius] without scale, between kDown - 1 zeros on both sides.
std::vector<float> column_weights(const Taps& taps, std::int64_t stride) {
    const std::int64_t radius = taps.radius(), length = 2 * radius + stride;
    std::vector<float> weights(static_cast<std::size_t>(length + 2 * (kDown - 1) * stride), 0.0F);
    for (std::int64_t i = 0; i < length; ++i) {
        double sum = 0.0;
        for (std::int64_t pixel = 0; pixel < stride; ++pixel) {
            const std::int64_t offset = std::abs(i - radius - pixel);
            if (offset <= radius) sum += taps(offset);
        }
        weights[static_cast<std::size_t>((kDown - 1) * stride + i)] = static_cast<float>(sum);
    }
    return weights;
}

// Sums kDown rows of the map, kAcross columns of each: row r takes source row i with the weight
// weights[i - r * stride]. Rows that are null hold zeros.
PYCC_SIMD void sum_down(float* __restrict__ map /* [kDown, pitch] */, std::int64_t pitch,
                        const float* const* __restrict__ source /* [count] */, std::int64_t count,
                        const float* __restrict__ weights, std::int64_t stride,
                        std::int64_t column) noexcept {
    Lanes sums[kDown][2] = {};
    for (std::int64_t i = 0; i < count; ++i) {
        if (source[i] == nullptr) continue;
        Lanes low, high;
        std::memcpy(&low, source[i] + column, sizeof low);
        std::memcpy(&high, source[i] + column + kLanes, sizeof high);
        for (std::int64_t r = 0; r < kDown; ++r) {
            const float weight = weights[i - r * stride];
            sums[r][0] += low * weight;
            sums[r][1] += high * weight;
        }
    }
    for (std::int64_t r = 0; r < kDown; ++r) {
        std::memcpy(map + r * pitch + column, &sums[r][0], sizeof sums[r]);
    }
}

// Returns the row of the image that row y beyond its border shows; -1 if none.
std::int64_t shown_row(std::int64_t y, std::int64_t height, Boundary boundary) {
    if (y >= 0 && y < height) return y;
    if (boundary != Boundary::reflect) return -1;
    const std::int64_t turned = (y % (2 * height) + 2 * height) % (2 * height);
    return std::min(turned, 2 * height - 1 - turned);
}

}  // namespace

bool pass_is_faster(const double* sigma /* [count] */, std::int64_t count, std::int64_t height,
                    std::int64_t width, std::int64_t stride, double truncate) {
    if (count < 2 || !std::all_of(sigma, sigma + count, [&](double s) { return s == *sigma; })) {
        return false;
    }
    const std::int64_t rows = height / stride, cols = width / stride;
    const std::int64_t taps = 2 * kernel_radius(*sigma, truncate) + stride;
    const std::int64_t high = std::min(rows, taps / stride), wide = std::min(cols, taps / stride);
    // A tap of the pass takes about a quarter of the time of a cell of a window.
    return rows * cols * taps / 4 + count * wide < count * high * (wide + kRowCost);
}

void sum_by_pass(float* map /* [height/stride,width/stride] */,
                 const std::int64_t* pixels /* [count,2] (y, x) */, double sigma,
                 std::int64_t count, std::int64_t height, std::int64_t width, std::int64_t stride,
                 double truncate, Boundary boundary, int threads) {
    const std::int64_t rows = height / stride, cols = width / stride;
    const std::int64_t pitch = (cols + kAcross - 1) / kAcross * kAcross;
    Taps taps;
    taps.prepare(sigma, truncate);
    const std::int64_t radius = taps.radius();
    const ByRow order(pixels, count, height);
    const auto begin_of = [&](std::int64_t y) { return order.first[static_cast<std::size_t>(y)]; };
    const std::vector<float> weights = column_weights(taps, stride);
    const std::int64_t reach = 2 * radius + stride + (kDown - 1) * stride;
    const std::int64_t kept = std::min(reach, height);

    const std::int64_t groups = (rows + kDown - 1) / kDown;
    // A thread also sums the rows around its own, so that it takes at least as many of its own.
    const std::int64_t around = (reach + kDown * stride - 1) / (kDown * stride);
    const std::int64_t grain =
        std::max(around, 1 + kWorkPerThread / (kDown * pitch * (2 * radius + stride)));
    parallel_for(groups, grain, threads, [&](std::int64_t begin, std::int64_t end) {
        // The rows of pixels that the present rows of the map reach, each with the kernels of its
        // heads along it. A row stays in the cache until it has been used.
        AlignedScratch<float> across, sums;
        across.reserve(kept * pitch);
        sums.reserve(kDown * pitch);
        const auto row_of = [&](std::int64_t y) { return across.data() + y % kept * pitch; };
        Rows kernels(taps, width, stride, boundary);
        std::vector<float> heads(static_cast<std::size_t>(width), 0.0F);  // of each pixel of a row
        const auto column_of = [&](std::int64_t i) {
            return static_cast<std::size_t>(
                pixels[2 * order.heads[static_cast<std::size_t>(i)] + 1]);
        };
        std::vector<const float*> source(static_cast<std::size_t>(reach));
        std::int64_t next = std::max<std::int64_t>(begin * kDown * stride - radius, 0);
        for (std::int64_t group = begin; group < end; ++group) {
            const std::int64_t top = group * kDown, first = top * stride - radius;
            for (; next < std::min(first + reach, height); ++next) {
                float* row = row_of(next);
                std::fill(row, row + pitch, 0.0F);
                const auto scale = static_cast<float>(taps.axis(next, height, boundary).scale);
                for (std::int64_t i = begin_of(next); i < begin_of(next + 1); ++i) {
                    ++heads[column_of(i)];
                }
                for (std::int64_t i = begin_of(next); i < begin_of(next + 1); ++i) {
                    float& here = heads[column_of(i)];  // 0 after the first of several heads
                    if (here > 0.0F) {
                        kernels.add(row, static_cast<std::int64_t>(column_of(i)), here * scale);
                    }
                    here = 0.0F;
                }
            }
            for (std::int64_t i = 0; i < reach; ++i) {
                const std::int64_t y = shown_row(first + i, height, boundary);
                const bool empty = y < 0 || begin_of(y) == begin_of(y + 1);
                source[static_cast<std::size_t>(i)] = empty ? nullptr : row_of(y);
            }
            for (std::int64_t column = 0; column < pitch; column += kAcross) {
                sum_down(sums.data(), pitch, source.data(), reach,
                         weights.data() + (kDown - 1) * stride, stride, column);
            }
            for (std::int64_t row = top; row < std::min(top + kDown, rows); ++row) {
                std::memcpy(map + row * cols, sums.data() + (row - top) * pitch,
                            static_cast<std::size_t>(cols) * sizeof(float));
            }
        }
    });
}

}  // namespace pycc::density_map
