#include "density_map.h"

#include <algorithm>
#include <vector>

#include "../core/parallel.h"
#include "../core/simd.h"
#include "density_pass.h"
#include "density_taps.h"

namespace pycc::density_map {
namespace {

constexpr std::int64_t kBlock = 16;  // floats per iteration of a SIMD loop

// Pads a row of weights with zeros so that it starts and ends at full blocks of the map's row.
Cells widen_to_blocks(std::vector<float>& weights, const Cells& cells, std::int64_t cols) {
    const std::int64_t first = cells.first / kBlock * kBlock;
    const std::int64_t last = std::min((cells.last + kBlock - 1) / kBlock * kBlock, cols);
    weights.insert(weights.begin(), static_cast<std::size_t>(cells.first - first), 0.0F);
    weights.resize(static_cast<std::size_t>(last - first), 0.0F);
    return {first, last};
}

PYCC_SIMD void add_outer(float* __restrict__ map /* [rows, pitch] */, std::int64_t pitch,
                         const float* __restrict__ column /* [rows] */, std::int64_t rows,
                         const float* __restrict__ row /* [cols] */, std::int64_t cols) noexcept {
    const std::int64_t whole = cols / kBlock * kBlock;
    for (std::int64_t i = 0; i < rows; ++i) {
        float* target = map + i * pitch;
        const float factor = column[i];
        for (std::int64_t j = 0; j < whole; j += kBlock) {
            for (std::int64_t k = j; k < j + kBlock; ++k) target[k] += factor * row[k];
        }
        for (std::int64_t j = whole; j < cols; ++j) target[j] += factor * row[j];
    }
}

// Cuts the map's rows into bands of about equal work; bands[b] is the first row of band b.
std::vector<std::int64_t> balanced_bands(const std::vector<std::int64_t>& work,
                                         std::int64_t bands) {
    const auto rows = static_cast<std::int64_t>(work.size());
    std::int64_t total = 0, done = 0;
    for (const auto row_work : work) total += row_work;
    std::vector<std::int64_t> first{0};
    for (std::int64_t row = 0; row < rows; ++row) {
        done += work[static_cast<std::size_t>(row)];
        const auto band = static_cast<std::int64_t>(first.size());
        if (band < bands && done * bands >= total * band) first.push_back(row + 1);
    }
    first.resize(static_cast<std::size_t>(bands + 1), rows);
    first.back() = rows;
    return first;
}

}  // namespace

void cpu(float* map /* [height/stride,width/stride] */,
         const std::int64_t* pixels /* [count,2] (y, x) */, const double* sigma /* [count] */,
         std::int64_t count, std::int64_t height, std::int64_t width, std::int64_t stride,
         double truncate, Boundary boundary, int threads) {
    const std::int64_t rows = height / stride, cols = width / stride;
    if (rows == 0 || cols == 0) return;
    if (pass_is_faster(sigma, count, height, width, stride, truncate)) {
        sum_by_pass(map, pixels, sigma[0], count, height, width, stride, truncate, boundary,
                    threads);
        return;
    }

    // The work of each row, in cells, by a difference array over the rows that each head reaches.
    std::vector<std::int64_t> work(static_cast<std::size_t>(rows + 1), 0);
    std::int64_t total = rows * cols;
    for (std::int64_t n = 0; n < count; ++n) {
        const auto radius = kernel_radius(sigma[n], truncate);
        const Cells y = reached_cells({pixels[2 * n], radius, height, 1.0}, stride);
        const Cells x = reached_cells({pixels[2 * n + 1], radius, width, 1.0}, stride);
        if (y.first >= y.last || x.first >= x.last) continue;
        const std::int64_t row_work = x.last - x.first + kRowCost;
        work[static_cast<std::size_t>(y.first)] += row_work;
        work[static_cast<std::size_t>(y.last)] -= row_work;
        total += row_work * (y.last - y.first);
    }
    std::int64_t running = 0;
    for (auto& row_work : work) row_work = (running += row_work) + cols;
    work.pop_back();

    constexpr std::int64_t kWorkPerThread = 1 << 20;  // cells, about 0.2 ms
    const std::int64_t bands = std::clamp<std::int64_t>(
        total / kWorkPerThread, 1, std::min<std::int64_t>(std::max(threads, 1), rows));
    const auto first_row = balanced_bands(work, bands);

    // Consecutive heads are near in the map, so that the cells that they are added to stay in the
    // cache.
    const ByRow order(pixels, count, height);

    parallel_for(bands, 1, threads, [&](std::int64_t band_begin, std::int64_t band_end) {
        const std::int64_t top = first_row[static_cast<std::size_t>(band_begin)];
        const std::int64_t bottom = first_row[static_cast<std::size_t>(band_end)];
        std::fill(map + top * cols, map + bottom * cols, 0.0F);
        Taps taps;
        std::vector<float> column, row;
        for (const std::int64_t n : order.heads) {
            const auto radius = kernel_radius(sigma[n], truncate);
            Cells y = reached_cells({pixels[2 * n], radius, height, 1.0}, stride);
            y = {std::max(y.first, top), std::min(y.last, bottom)};
            if (y.first >= y.last) continue;
            taps.prepare(sigma[n], truncate);
            const Axis y_axis = taps.axis(pixels[2 * n], height, boundary);
            const Axis x_axis = taps.axis(pixels[2 * n + 1], width, boundary);
            Cells x = reached_cells(x_axis, stride);
            if (x.first >= x.last) continue;
            fill_weights(column, y, stride, y_axis, boundary, taps);
            fill_weights(row, x, stride, x_axis, boundary, taps);
            x = widen_to_blocks(row, x, cols);
            add_outer(map + y.first * cols + x.first, cols, column.data(), y.last - y.first,
                      row.data(), x.last - x.first);
        }
    });
}

}  // namespace pycc::density_map
