// DA-Net's 3x3 deformable convolution with the border rule of its published code, and its
// gradients. All maps are channels last, so that the channels that a tap reads are contiguous.
//
// Sums are in double and in the same order on every device: products over the channels are added
// to kLanes partial sums by channel, which are then reduced in halves; sums over cells use kSlices
// partial sums by cell in the same way.
//
// Complexity: O(N H W O C 9) for the convolution and for each gradient. On CUDA, grad_x also tests
// every tap of an image for every pixel, O(N (H W)^2 9), to avoid atomics.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>

#include "../core/device.h"

#if defined(PYCC_CUDA)
#include "../core/cuda_api.h"
#endif

namespace pycc::deform_conv {

constexpr std::int64_t kTaps = 9, kLanes = 32, kSlices = 8;

struct Sizes {
    std::int64_t images, channels, height, width, outputs;

    PYCC_HD std::int64_t cells() const { return height * width; }
};

// The places of an axis that a position reads, and their weights.
struct AxisReading {
    std::int64_t low;  // -1 if nothing is read
    double share;      // weight of the place after `low`; `low` has weight 1 - share
    bool inside;       // whether the weights depend on the position
};

// A position outside the map is rounded down: just after the last place it reads the last place
// with weight 1, just before the first it reads nothing. Only positions on the map are converted to
// integers, so that the conversion cannot overflow.
PYCC_HD AxisReading read_axis(double at, std::int64_t size) {
    const double last = static_cast<double>(size - 1);
    if (at >= 0.0 && at <= last) {
        const double whole = floor(at);
        return {static_cast<std::int64_t>(whole), at - whole, true};
    }
    const bool beyond = at > last && at < static_cast<double>(size);
    return {beyond ? size - 1 : -1, 0.0, false};
}

// The four pixels that a tap of the kernel blends. Pixels outside the map have weight and slope 0.
struct Tap {
    std::int64_t pixel[4];  // flat index
    double weight[4];       // for a NaN offset NaN at the first entry, whose pixel is then unused
    double down[4];         // derivatives of the weights by the offset down and to the right
    double right[4];
};

PYCC_HD Tap read_tap(const float* offset /* [2] (down, right) */, std::int64_t y, std::int64_t x,
                     std::int64_t k, const Sizes& sizes) {
    Tap tap = {};
    const double down = static_cast<double>(offset[0]), right = static_cast<double>(offset[1]);
    if (down != down || right != right) {  // a diverged network must not give a map of zeros
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
                const float* offset /* [N,H,W,9,2] (down, right) */,
                const float* weight /* [O,9,C] */, const Sizes& sizes, int threads);

void grad_offset_cpu(float* grad_offset /* [N,H,W,9,2] */, const float* grad_out /* [N,H,W,O] */,
                     const float* x /* [N,H,W,C] */,
                     const float* offset /* [N,H,W,9,2] (down, right) */,
                     const float* weight /* [O,9,C] */, const Sizes& sizes, int threads);

void grad_weight_cpu(float* grad_weight /* [O,9,C] */, const float* grad_out /* [N,H,W,O] */,
                     const float* x /* [N,H,W,C] */,
                     const float* offset /* [N,H,W,9,2] (down, right) */, const Sizes& sizes,
                     int threads);

#if defined(PYCC_CUDA)
void cuda(float* out /* [N,H,W,O] */, const float* x /* [N,H,W,C] */,
          const float* offset /* [N,H,W,9,2] (down, right) */, const float* weight /* [O,9,C] */,
          const Sizes& sizes, cudaStream_t stream);

void grad_x_cuda(float* grad_x /* [N,H,W,C] */, const float* grad_out /* [N,H,W,O] */,
                 const float* offset /* [N,H,W,9,2] (down, right) */,
                 const float* weight /* [O,9,C] */, const Sizes& sizes, cudaStream_t stream);

void grad_offset_cuda(float* grad_offset /* [N,H,W,9,2] */, const float* grad_out /* [N,H,W,O] */,
                      const float* x /* [N,H,W,C] */,
                      const float* offset /* [N,H,W,9,2] (down, right) */,
                      const float* weight /* [O,9,C] */, const Sizes& sizes, cudaStream_t stream);

void grad_weight_cuda(float* grad_weight /* [O,9,C] */, const float* grad_out /* [N,H,W,O] */,
                      const float* x /* [N,H,W,C] */,
                      const float* offset /* [N,H,W,9,2] (down, right) */, const Sizes& sizes,
                      cudaStream_t stream);
#endif

}  // namespace pycc::deform_conv
