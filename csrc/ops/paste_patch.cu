#include "../core/cuda.cuh"
#include "paste_patch.h"

namespace pycc::paste_patch {
namespace {

constexpr int kThreads = 256;

// One thread per pixel of the image; blockIdx.y is the image.
__global__ void paste_kernel(float* __restrict__ out, const float* __restrict__ patch,
                             const std::uint8_t* __restrict__ mask,
                             const std::int64_t* __restrict__ top_left,
                             const double* __restrict__ transform, Sizes sizes, Sampling sampling) {
    const std::int64_t plane = sizes.height * sizes.width;
    const std::int64_t patch_plane = sizes.patch_height * sizes.patch_width;
    for (const std::int64_t n : planes_of_grid(sizes.images)) {
        const Warp warp(make_placement(top_left + 2 * n, transform + 4 * n), sizes.patch_height,
                        sizes.patch_width, sampling);
        const Box box = intersect(warp.footprint(), {0, sizes.height, 0, sizes.width});
        if (box.top >= box.bottom || box.left >= box.right) continue;
        const std::int64_t box_width = box.right - box.left;
        const std::int64_t pixels = (box.bottom - box.top) * box_width;
        const float* source = patch + (sizes.patches > 1 ? n : 0) * sizes.channels * patch_plane;
        for (const std::int64_t i : threads_of_grid(pixels)) {
            const std::int64_t y = box.top + i / box_width, x = box.left + i % box_width;
            paste_pixel(out + n * sizes.channels * plane, source, mask, warp, y, x, sizes);
        }
    }
}

// Returns the gradient of patch pixel `at` of channel c from image n: gathered from the image
// pixels that blend it, in the order in which the CPU scatters.
__device__ float gather(std::int64_t at, std::int64_t c, std::int64_t n,
                        const float* grad_out /* [N,C,H,W] */,
                        const std::uint8_t* mask /* [p,q] or null */,
                        const std::int64_t* top_left /* [N,2] (y, x) */,
                        const double* transform /* [N,4] */, const Sizes& sizes,
                        Sampling sampling) {
    const Warp warp(make_placement(top_left + 2 * n, transform + 4 * n), sizes.patch_height,
                    sizes.patch_width, sampling);
    const Box box = intersect(warp.dependents(at / sizes.patch_width, at % sizes.patch_width),
                              {0, sizes.height, 0, sizes.width});
    const float* source = grad_out + (n * sizes.channels + c) * sizes.height * sizes.width;
    float sum = 0.0F;
    for (std::int64_t y = box.top; y < box.bottom; ++y) {
        for (std::int64_t x = box.left; x < box.right; ++x) {
            std::int64_t index[Warp::kMaxTaps];
            double weight[Warp::kMaxTaps];
            const int taps = warp.taps(y, x, mask, index, weight);
            for (int k = 0; k < taps; ++k) {
                if (index[k] == at)
                    sum += static_cast<float>(weight[k]) * source[y * sizes.width + x];
            }
        }
    }
    return sum;
}

// One thread per patch pixel: the same sums as on the CPU, to the bit, without atomics.
__global__ void paste_backward_kernel(float* __restrict__ grad_patch,
                                      const float* __restrict__ grad_out,
                                      const float* __restrict__ patch,
                                      const std::uint8_t* __restrict__ mask,
                                      const std::int64_t* __restrict__ top_left,
                                      const double* __restrict__ transform, Sizes sizes,
                                      Sampling sampling) {
    const std::int64_t plane = sizes.patch_height * sizes.patch_width;
    const std::int64_t work = sizes.patches * sizes.channels * plane;
    for (const std::int64_t i : threads_of_grid(work)) {
        const std::int64_t at = i % plane, c = (i / plane) % sizes.channels;
        const std::int64_t own = i / (plane * sizes.channels);
        const std::int64_t end = sizes.patches > 1 ? own + 1 : sizes.images;
        float total = 0.0F;
        for (std::int64_t n = own; n < end; ++n) {
            const float sum =
                gather(at, c, n, grad_out, mask, top_left, transform, sizes, sampling);
            total += unclipped(patch[i], transform[4 * n + 3]) ? sum : 0.0F;
        }
        grad_patch[i] = total;
    }
}

}  // namespace

void cuda(float* out /* [N,C,H,W] */, const float* images /* [N,C,H,W] */,
          const float* patch /* [N or 1,C,p,q] */,
          Nullable<const std::uint8_t> mask /* [p,q] or null */,
          const std::int64_t* top_left /* [N,2] (y, x) */,
          const double* transform /* [N,4] (cosine, sine, zoom, brightness) */, const Sizes& sizes,
          Sampling sampling, cudaStream_t stream) {
    const std::int64_t values = sizes.images * sizes.channels * sizes.height * sizes.width;
    if (values == 0) return;
    if (out != images) {
        const std::size_t bytes = static_cast<std::size_t>(values) * sizeof(float);
        check_cuda("paste_patch",
                   cudaMemcpyAsync(out, images, bytes, cudaMemcpyDeviceToDevice, stream));
    }
    if (sizes.patch_height * sizes.patch_width == 0) return;
    // A grid for the area of the patch; the strided loop covers what zoom and rotation add.
    const std::int64_t area = sizes.patch_height * sizes.patch_width;
    const dim3 grid = strided_planes(area, kThreads, sizes.images);
    launch("paste_patch", paste_kernel, grid, kThreads, 0, stream, out, patch, mask, top_left,
           transform, sizes, sampling);
}

void backward_cuda(float* grad_patch /* [N or 1,C,p,q] */, const float* grad_out /* [N,C,H,W] */,
                   const float* patch /* [N or 1,C,p,q] */,
                   Nullable<const std::uint8_t> mask /* [p,q] or null */,
                   const std::int64_t* top_left /* [N,2] (y, x) */,
                   const double* transform /* [N,4] (cosine, sine, zoom, brightness) */,
                   const Sizes& sizes, Sampling sampling, cudaStream_t stream) {
    const std::int64_t work =
        sizes.patches * sizes.channels * sizes.patch_height * sizes.patch_width;
    if (work == 0) return;
    launch("paste_patch backward", paste_backward_kernel, strided_blocks(work, kThreads), kThreads,
           0, stream, grad_patch, grad_out, patch, mask, top_left, transform, sizes, sampling);
}

}  // namespace pycc::paste_patch
