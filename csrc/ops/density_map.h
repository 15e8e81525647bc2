// Density maps: the sum of one truncated Gaussian per head.
//
// Complexity: O(sum over heads of the cells that the kernel reaches), about (2 radius / stride)^2
// per head; on the CPU, many heads of one sigma take two passes over the map (density_pass.h).
#pragma once

#include <cmath>
#include <cstdint>

#include "../core/device.h"

#if defined(PYCC_CUDA)
#include "../core/cuda_api.h"
#endif

namespace pycc::density_map {

enum class Boundary : int { clip = 0, renormalize = 1, reflect = 2 };

// One axis of the kernel of a head; the kernel is the outer product of two axes.
struct Axis {
    std::int64_t centre;  // pixel
    std::int64_t radius;  // pixels
    std::int64_t size;    // pixels of the image along this axis
    double scale;         // 1 / (sum of the taps in the normalisation)
};

PYCC_HD std::int64_t kernel_radius(double sigma, double truncate) {
    return static_cast<std::int64_t>(truncate * sigma + 0.5);
}

// Returns exp(-offset^2 / (2 sigma^2)); sigma 0 is a dot.
PYCC_HD double gaussian_tap(std::int64_t offset, double sigma) {
    if (offset == 0) return 1.0;
    const double z = static_cast<double>(offset) / sigma;
    return exp(-0.5 * z * z);
}

// Sums the taps at offsets -below ... above, from the outside in.
template <class Tap>
PYCC_HD double tap_sum(std::int64_t below, std::int64_t above, const Tap& tap) {
    double sum = 0.0;
    for (std::int64_t i = below; i > 0; --i) sum += tap(i);
    for (std::int64_t i = above; i > 0; --i) sum += tap(i);
    return sum + tap(0);
}

template <class Tap>
PYCC_HD Axis make_axis(std::int64_t centre, std::int64_t radius, std::int64_t size,
                       Boundary boundary, const Tap& tap) {
    std::int64_t below = radius, above = radius;
    if (boundary == Boundary::renormalize) {
        below = radius < centre ? radius : centre;
        above = radius < size - 1 - centre ? radius : size - 1 - centre;
    }
    return {centre, radius, size, 1.0 / tap_sum(below, above, tap)};
}

// Returns the weight of pixel i: its own tap and, with `reflect` (half-sample symmetric), the taps
// at all pixels j outside the image that mirror onto it: j = i + 2 size m, j = -1 - i + 2 size m.
template <class Tap>
PYCC_HD double pixel_weight(std::int64_t i, const Axis& axis, Boundary boundary, const Tap& tap) {
    const auto weight = [&](std::int64_t j) {
        const std::int64_t offset = j < axis.centre ? axis.centre - j : j - axis.centre;
        return offset <= axis.radius ? tap(offset) : 0.0;
    };
    const bool inside = axis.centre >= axis.radius && axis.centre + axis.radius < axis.size;
    if (inside || boundary != Boundary::reflect) return weight(i);
    const std::int64_t period = 2 * axis.size, turns = axis.radius / period + 2;
    double sum = 0.0;
    for (std::int64_t m = -turns; m <= turns; ++m) {
        sum += weight(i + period * m) + weight(-1 - i + period * m);
    }
    return sum;
}

// Returns the weight of a cell of `stride` pixels along one axis.
template <class Tap>
PYCC_HD float cell_weight(std::int64_t cell, std::int64_t stride, const Axis& axis,
                          Boundary boundary, const Tap& tap) {
    double sum = 0.0;
    for (std::int64_t i = cell * stride; i < (cell + 1) * stride; ++i) {
        sum += pixel_weight(i, axis, boundary, tap);
    }
    return static_cast<float>(sum * axis.scale);
}

// The cells [first, last) of an axis that a kernel reaches, mirrored taps included.
struct Cells {
    std::int64_t first, last;
};

PYCC_HD Cells reached_cells(const Axis& axis, std::int64_t stride) {
    const std::int64_t low = axis.centre > axis.radius ? axis.centre - axis.radius : 0;
    const std::int64_t end = axis.centre + axis.radius + 1;
    const std::int64_t high =
        end < axis.size ? end : axis.size;  // the pixel after the last one reached
    const std::int64_t cells = axis.size / stride, last = (high + stride - 1) / stride;
    return {low / stride, last < cells ? last : cells};
}

// Both axes of a head; scratch memory of the CUDA kernels.
struct HeadAxes {
    Axis y, x;
};

// Adds the heads, in order, to a map of zeros. Every pixel receives them in the same order for any
// number of threads, so that the result has the same bits.
void cpu(float* map /* [height/stride, width/stride], overwritten */,
         const std::int64_t* pixels /* [count,2] (y, x) inside the image */,
         const double* sigma /* [count] */, std::int64_t count, std::int64_t height,
         std::int64_t width, std::int64_t stride, double truncate, Boundary boundary, int threads);

#if defined(PYCC_CUDA)
void cuda(float* map /* [height/stride, width/stride], overwritten */,
          HeadAxes* axes /* [count] scratch */, const std::int64_t* pixels /* [count,2] */,
          const double* sigma /* [count] */, std::int64_t count, std::int64_t height,
          std::int64_t width, std::int64_t stride, double truncate, Boundary boundary,
          cudaStream_t stream);
#endif

}  // namespace pycc::density_map
