#include "deform_conv.h"

#include <algorithm>

#include "../core/memory.h"
#include "../core/parallel.h"
#include "../core/simd.h"

namespace pycc::deform_conv {
namespace {

// Adds factor * a[c] * b[c] to sums[c % 32] for all channels c.
inline void add_products(double* sums /* [32] */, double factor, const float* a /* [C] */,
                         const float* b /* [C] */, std::int64_t channels) {
    std::int64_t c = 0;
    for (; c + kLanes <= channels; c += kLanes) {
        for (std::int64_t lane = 0; lane < kLanes; ++lane) {
            sums[lane] +=
                factor * static_cast<double>(a[c + lane]) * static_cast<double>(b[c + lane]);
        }
    }
    for (std::int64_t lane = 0; c + lane < channels; ++lane) {
        sums[lane] += factor * static_cast<double>(a[c + lane]) * static_cast<double>(b[c + lane]);
    }
}

// Reduces rows of `width` sums in halves into the first row; `rows` is a power of two.
inline void fold(double* sums /* [rows,width] */, std::int64_t rows, std::int64_t width) {
    for (std::int64_t half = rows / 2; half > 0; half /= 2) {
        for (std::int64_t i = 0; i < half * width; ++i) sums[i] += sums[half * width + i];
    }
}

PYCC_SIMD void convolve(std::int64_t begin, std::int64_t end, float* out /* [N,H,W,O] */,
                        const float* x /* [N,H,W,C] */,
                        const float* offset /* [N,H,W,9,2] (down, right) */,
                        const float* weight /* [O,9,C] */, const Sizes& sizes) noexcept {
    const std::int64_t channels = sizes.channels, cells = sizes.cells();
    for (std::int64_t i = begin; i < end; ++i) {  // over [N,H,W]
        const std::int64_t cell = i % cells, row = cell / sizes.width, col = cell % sizes.width;
        const float* image = x + (i - cell) * channels;
        for (std::int64_t o = 0; o < sizes.outputs; ++o) {
            alignas(64) double sums[kLanes] = {};
            for (std::int64_t k = 0; k < kTaps; ++k) {
                const Tap tap = read_tap(offset + (i * kTaps + k) * 2, row, col, k, sizes);
                const float* kernel = weight + (o * kTaps + k) * channels;
                for (int corner = 0; corner < 4; ++corner) {
                    if (tap.weight[corner] == 0.0) continue;  // ignored, even if the pixel is NaN
                    add_products(sums, tap.weight[corner], kernel,
                                 image + tap.pixel[corner] * channels, channels);
                }
            }
            fold(sums, kLanes, 1);
            out[i * sizes.outputs + o] = static_cast<float>(sums[0]);
        }
    }
}

// Computes up to 32 channels of the gradient of one image. One thread scatters to them, in the
// order of cells and taps.
PYCC_SIMD void scatter(std::int64_t n, std::int64_t first, std::int64_t lanes,
                       float* grad_x /* [N,H,W,C] */, double* sums /* [H,W,lanes], scratch */,
                       const float* grad_out /* [N,H,W,O] */,
                       const float* offset /* [N,H,W,9,2] (down, right) */,
                       const float* weight /* [O,9,C] */, const Sizes& sizes) noexcept {
    const std::int64_t channels = sizes.channels, cells = sizes.cells();
    std::fill(sums, sums + cells * lanes, 0.0);
    for (std::int64_t cell = 0; cell < cells; ++cell) {
        const std::int64_t i = n * cells + cell;
        for (std::int64_t k = 0; k < kTaps; ++k) {
            const Tap tap = read_tap(offset + (i * kTaps + k) * 2, cell / sizes.width,
                                     cell % sizes.width, k, sizes);
            alignas(64) double grad[kLanes] = {};  // gradient of the tap's value
            for (std::int64_t o = 0; o < sizes.outputs; ++o) {
                const double upstream = static_cast<double>(grad_out[i * sizes.outputs + o]);
                const float* kernel = weight + (o * kTaps + k) * channels + first;
                for (std::int64_t lane = 0; lane < lanes; ++lane) {
                    grad[lane] += upstream * static_cast<double>(kernel[lane]);
                }
            }
            for (int corner = 0; corner < 4; ++corner) {
                if (!(tap.weight[corner] > 0.0)) continue;  // for NaN, the pixel is unused
                double* target = sums + tap.pixel[corner] * lanes;
                for (std::int64_t lane = 0; lane < lanes; ++lane) {
                    target[lane] += tap.weight[corner] * grad[lane];
                }
            }
        }
    }
    for (std::int64_t cell = 0; cell < cells; ++cell) {
        float* target = grad_x + (n * cells + cell) * channels + first;
        for (std::int64_t lane = 0; lane < lanes; ++lane) {
            target[lane] = static_cast<float>(sums[cell * lanes + lane]);
        }
    }
}

PYCC_SIMD void differentiate(std::int64_t begin, std::int64_t end,
                             float* grad_offset /* [N,H,W,9,2] */,
                             const float* grad_out /* [N,H,W,O] */, const float* x /* [N,H,W,C] */,
                             const float* offset /* [N,H,W,9,2] (down, right) */,
                             const float* weight /* [O,9,C] */, const Sizes& sizes) noexcept {
    const std::int64_t channels = sizes.channels, cells = sizes.cells();
    for (std::int64_t i = begin; i < end; ++i) {  // over [N,H,W]
        const std::int64_t cell = i % cells, row = cell / sizes.width, col = cell % sizes.width;
        const float* image = x + (i - cell) * channels;
        for (std::int64_t k = 0; k < kTaps; ++k) {
            const std::int64_t at = (i * kTaps + k) * 2;
            const Tap tap = read_tap(offset + at, row, col, k, sizes);
            double down = 0.0, right = 0.0;
            for (int corner = 0; corner < 4; ++corner) {
                if (tap.down[corner] == 0.0 && tap.right[corner] == 0.0) continue;
                alignas(64) double sums[kLanes] = {};  // the gradient by the corner's weight
                for (std::int64_t o = 0; o < sizes.outputs; ++o) {
                    add_products(sums, static_cast<double>(grad_out[i * sizes.outputs + o]),
                                 weight + (o * kTaps + k) * channels,
                                 image + tap.pixel[corner] * channels, channels);
                }
                fold(sums, kLanes, 1);
                if (tap.down[corner] != 0.0) down += tap.down[corner] * sums[0];
                if (tap.right[corner] != 0.0) right += tap.right[corner] * sums[0];
            }
            grad_offset[at] = static_cast<float>(down);
            grad_offset[at + 1] = static_cast<float>(right);
        }
    }
}

// Computes up to 32 channels of one tap of one output's kernel: a sum over all cells and images.
PYCC_SIMD void correlate(std::int64_t o, std::int64_t k, std::int64_t first, std::int64_t lanes,
                         float* grad_weight /* [O,9,C] */, const float* grad_out /* [N,H,W,O] */,
                         const float* x /* [N,H,W,C] */,
                         const float* offset /* [N,H,W,9,2] (down, right) */,
                         const Sizes& sizes) noexcept {
    const std::int64_t channels = sizes.channels, cells = sizes.cells();
    alignas(64) double sums[kSlices * kLanes] = {};
    for (std::int64_t i = 0; i < sizes.images * cells; ++i) {
        const std::int64_t cell = i % cells;
        const Tap tap = read_tap(offset + (i * kTaps + k) * 2, cell / sizes.width,
                                 cell % sizes.width, k, sizes);
        const double upstream = static_cast<double>(grad_out[i * sizes.outputs + o]);
        double* target = sums + i % kSlices * kLanes;
        for (int corner = 0; corner < 4; ++corner) {
            if (tap.weight[corner] == 0.0) continue;
            const double factor = upstream * tap.weight[corner];
            const float* values = x + (i - cell + tap.pixel[corner]) * channels + first;
            for (std::int64_t lane = 0; lane < lanes; ++lane) {
                target[lane] += factor * static_cast<double>(values[lane]);
            }
        }
    }
    fold(sums, kSlices, kLanes);
    for (std::int64_t lane = 0; lane < lanes; ++lane) {
        grad_weight[(o * kTaps + k) * channels + first + lane] = static_cast<float>(sums[lane]);
    }
}

// Items per thread, for 0.2 ms of work at about 1 ns per product.
std::int64_t grain_of(std::int64_t products) {
    return std::max<std::int64_t>(200'000 / std::max<std::int64_t>(products, 1), 1);
}

std::int64_t blocks_of_lanes(const Sizes& sizes) {
    return (sizes.channels + kLanes - 1) / kLanes;
}

}  // namespace

void cpu(float* out /* [N,H,W,O] */, const float* x /* [N,H,W,C] */,
         const float* offset /* [N,H,W,9,2] (down, right) */, const float* weight /* [O,9,C] */,
         const Sizes& sizes, int threads) {
    const std::int64_t products = sizes.outputs * kTaps * (20 + 4 * sizes.channels);
    parallel_for(sizes.images * sizes.cells(), grain_of(products), threads,
                 [&](std::int64_t begin, std::int64_t end) {
                     convolve(begin, end, out, x, offset, weight, sizes);
                 });
}

void grad_x_cpu(float* grad_x /* [N,H,W,C] */, const float* grad_out /* [N,H,W,O] */,
                const float* offset /* [N,H,W,9,2] (down, right) */,
                const float* weight /* [O,9,C] */, const Sizes& sizes, int threads) {
    const std::int64_t blocks = blocks_of_lanes(sizes), cells = sizes.cells();
    const std::int64_t products = cells * kTaps * (4 + sizes.outputs) * kLanes;
    parallel_for(sizes.images * blocks, grain_of(products), threads,
                 [&](std::int64_t begin, std::int64_t end) {
                     AlignedScratch<double> sums;
                     for (std::int64_t i = begin; i < end; ++i) {
                         const std::int64_t first = i % blocks * kLanes;
                         const std::int64_t lanes =
                             std::min<std::int64_t>(kLanes, sizes.channels - first);
                         sums.reserve(cells * lanes);
                         scatter(i / blocks, first, lanes, grad_x, sums.data(), grad_out, offset,
                                 weight, sizes);
                     }
                 });
}

void grad_offset_cpu(float* grad_offset /* [N,H,W,9,2] */, const float* grad_out /* [N,H,W,O] */,
                     const float* x /* [N,H,W,C] */,
                     const float* offset /* [N,H,W,9,2] (down, right) */,
                     const float* weight /* [O,9,C] */, const Sizes& sizes, int threads) {
    const std::int64_t products = kTaps * (20 + 4 * sizes.outputs * sizes.channels);
    parallel_for(sizes.images * sizes.cells(), grain_of(products), threads,
                 [&](std::int64_t begin, std::int64_t end) {
                     differentiate(begin, end, grad_offset, grad_out, x, offset, weight, sizes);
                 });
}

void grad_weight_cpu(float* grad_weight /* [O,9,C] */, const float* grad_out /* [N,H,W,O] */,
                     const float* x /* [N,H,W,C] */,
                     const float* offset /* [N,H,W,9,2] (down, right) */, const Sizes& sizes,
                     int threads) {
    const std::int64_t blocks = blocks_of_lanes(sizes);
    const std::int64_t products = sizes.images * sizes.cells() * 4 * kLanes;
    parallel_for(sizes.outputs * kTaps * blocks, grain_of(products), threads,
                 [&](std::int64_t begin, std::int64_t end) {
                     for (std::int64_t i = begin; i < end; ++i) {
                         const std::int64_t first = i % blocks * kLanes;
                         const std::int64_t lanes =
                             std::min<std::int64_t>(kLanes, sizes.channels - first);
                         const std::int64_t k = i / blocks % kTaps;
                         correlate(i / blocks / kTaps, k, first, lanes, grad_weight, grad_out, x,
                                   offset, sizes);
                     }
                 });
}

}  // namespace pycc::deform_conv
