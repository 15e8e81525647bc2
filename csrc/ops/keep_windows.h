// Band and block ablation: keep one window of an image and fill the rest; with its gradient.
//
// Complexity: O(N M C H W) writes, O(N M C h w) reads; backward O(N C (H W + M h w)).
#pragma once

#include <cstdint>

#include "../core/device.h"

#if defined(PYCC_CUDA)
#include "../core/cuda_api.h"
#endif

namespace pycc::keep_windows {

struct Sizes {
    std::int64_t images, windows, channels, height, width;  // N, M, C, H, W
    std::int64_t window_height, window_width;               // h <= H, w <= W
};

// Returns value modulo size, within [0, size); any value, size > 0.
PYCC_HD std::int64_t floor_modulo(std::int64_t value, std::int64_t size) {
    const std::int64_t rest = value % size;
    return rest < 0 ? rest + size : rest;
}

// Whether `at` is one of the `extent` places from `first` on, wrapping around an axis of `size`.
PYCC_HD bool in_window(std::int64_t at, std::int64_t first, std::int64_t extent,
                       std::int64_t size) {
    const std::int64_t offset = at - first;
    return (offset < 0 ? offset + size : offset) < extent;
}

// Writes images[n] to out[n*M+m] inside the window at top_left[m], which wraps around the borders,
// and `fill` elsewhere. `out` must not overlap the inputs.
void cpu(float* out /* [N*M,C,H,W] */, const float* images /* [N,C,H,W] */,
         const std::int64_t* top_left /* [M,2] */, const float* fill /* [C] */, const Sizes& sizes,
         int threads);

// Sums grad_out[n*M+m] inside its window into grad_images[n], from 0 and in the order of m.
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
