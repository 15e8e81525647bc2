// DA-Net's 3x3 deformable convolution with its own rule at the border, and its gradients. All maps
// are channels last, so that what a tap reads of one pixel lies together.
//
// Sums are in double and in one order on every device: products over the channels go to
// kLanes sums by the channel, which are then folded in halves; sums over cells go to
// kSlices by the cell, folded alike.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>

#include "../core/device.h"

#if defined(PYCC_CUDA)
#include <cuda_runtime.h>
#endif

namespace pycc::deform_conv {

constexpr std::int64_t kTaps = 9, kLanes = 32, kSlices = 8;

struct Sizes {
    std::int64_t images, channels, height, width, outputs;

    PYCC_HD std::int64_t cells() const { return height * width; }
};

// What is read at position `at` of an axis of `size` places.
struct AxisReading {
    std::int64_t low;  // -1: nothing
    double share;      // of the place after `low`, which has the rest
    bool inside;       // whether moving `at` changes what is read
};

// Off the map a position counts as the whole number below it: just beyond the last place that is
// the last place in full, just before the first it is nothing. Only what is on the map becomes an
// integer.
PYCC_HD AxisReading read_axis(double at, std::int64_t size) {
    const double last = static_cast<double>(size - 1);
    if (at >= 0.0 && at <= last) {
        const double whole = floor(at);
        return {static_cast<std::int64_t>(whole), at - whole, true};
    }
    const bool beyond = at > last && at < static_cast<double>(size);
    return {beyond ? size - 1 : -1, 0.0, false};
}

// The four pixels that a tap of the kernel blends. What is off the map has weight 0 and slope 0.
struct Tap {
    std::int64_t pixel[4];  // flat
    double weight[4];       // NaN at the first pixel, which is then not meant, for a NaN offset
    double down[4];         // derivatives of the weights by the offset down and to the right
    double right[4];
};

PYCC_HD Tap read_tap(const float* offset /* [2] (down, right) */, std::int64_t y, std::int64_t x,
                     std::int64_t k, const Sizes& sizes) {
    Tap tap = {};
    const double down = static_cast<double>(offset[0]), right = static_cast<double>(offset[1]);
    if (down != down || right != right) {  // a network that diverged must not look empty
        tap.weight[0] = std::numeric_limits<double>::quiet_NaN();
        return tap;
    }
    const AxisReading row = read_axis(static_cast<double>(y + k / 3 - 1) + down, sizes.height);
    const AxisReading col = read_axis(static_cast<double>(x + k % 3 - 1) + right, sizes.width);
    if (row.low < 0 || col.low < 0) return tap;
    for (int corner = 0; corner < 4; ++corner) {
        const bool lower = corner >= 2, righter = corner % 2 == 1;
        const std::int64_t v = row.low + (lower ? 1 : 0), u = col.low + (righter ? 1 : 0);
        if (v >= sizes.height || u >= sizes.width) continue;
        const double of_row = lower ? row.share : 1.0 - row.share;
        const double of_col = righter ? col.share : 1.0 - col.share;
        tap.pixel[corner] = v * sizes.width + u;
        tap.weight[corner] = of_row * of_col;
        tap.down[corner] = row.inside ? (lower ? of_col : -of_col) : 0.0;
        tap.right[corner] = col.inside ? (righter ? of_row : -of_row) : 0.0;
    }
    return tap;
}

void cpu(float* out /* [N,H,W,O] */, const float* x /* [N,H,W,C] */,
         const float* offset /* [N,H,W,9,2] (down, right) */, const float* weight /* [O,9,C] */,
         const Sizes& sizes, int threads);

void grad_x_cpu(float* grad_x /* [N,H,W,C] */, const float* grad_out /* [N,H,W,O] */,
                const float* offset, const float* weight, const Sizes& sizes, int threads);

void grad_offset_cpu(float* grad_offset /* [N,H,W,9,2] */, const float* grad_out, const float* x,
                     const float* offset, const float* weight, const Sizes& sizes, int threads);

void grad_weight_cpu(float* grad_weight /* [O,9,C] */, const float* grad_out, const float* x,
                     const float* offset, const Sizes& sizes, int threads);

#if defined(PYCC_CUDA)
void cuda(float* out, const float* x, const float* offset, const float* weight, const Sizes& sizes,
          cudaStream_t stream);

void grad_x_cuda(float* grad_x, const float* grad_out, const float* offset, const float* weight,
                 const Sizes& sizes, cudaStream_t stream);

void grad_offset_cuda(float* grad_offset, const float* grad_out, const float* x,
                      const float* offset, const float* weight, const Sizes& sizes,
                      cudaStream_t stream);

void grad_weight_cuda(float* grad_weight, const float* grad_out, const float* x,
                      const float* offset, const Sizes& sizes, cudaStream_t stream);
#endif

}  // namespace pycc::deform_conv
