// Keeping one window of an image and filling the rest: band and block ablation, with its gradient.
#pragma once

#include <cstdint>

#include "../core/device.h"

#if defined(PYCC_CUDA)
#include <cuda_runtime.h>
#endif

namespace pycc::keep_windows {

struct Sizes {
    std::int64_t images, windows, channels, height, width;  // N, M, C, H, W
    std::int64_t window_height, window_width;               // h <= H, w <= W
};

// value modulo size, within [0, size); any value, size > 0.
PYCC_HD std::int64_t floor_modulo(std::int64_t value, std::int64_t size) {
    const std::int64_t rest = value % size;
    return rest < 0 ? rest + size : rest;
}

// Whether `at` lies in the `extent` places from `first` on, around the border of an axis of `size`.
PYCC_HD bool in_window(std::int64_t at, std::int64_t first, std::int64_t extent,
                       std::int64_t size) {
    const std::int64_t offset = at - first;
    return (offset < 0 ? offset + size : offset) < extent;
}

// out[n*M+m] is images[n] inside the window at top_left[m], which wraps around the borders, and
// `fill` elsewhere. out overlaps nothing.
void cpu(float* out /* [N*M,C,H,W] */, const float* images /* [N,C,H,W] */,
         const std::int64_t* top_left /* [M,2] */, const float* fill /* [C] */, const Sizes& sizes,
         int threads);

// grad_images[n] sums, from 0 and in the order of m, what grad_out[n*M+m] holds in its window.
void backward_cpu(float* grad_images /* [N,C,H,W] */, const float* grad_out /* [N*M,C,H,W] */,
                  const std::int64_t* top_left /* [M,2] */, const Sizes& sizes, int threads);

#if defined(PYCC_CUDA)
void cuda(float* out /* [N*M,C,H,W] */, const float* images /* [N,C,H,W] */,
          const std::int64_t* top_left /* [M,2] */, const float* fill /* [C] */, const Sizes& sizes,
          cudaStream_t stream);

void backward_cuda(float* grad_images /* [N,C,H,W] */, const float* grad_out /* [N*M,C,H,W] */,
                   const std::int64_t* top_left /* [M,2] */, const Sizes& sizes,
                   cudaStream_t stream);
#endif

}  // namespace pycc::keep_windows
