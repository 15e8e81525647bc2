#include "../core/cuda.cuh"
#include "paste.h"

namespace pycc {
namespace {

constexpr int kThreads = 256;

// One thread a pixel of the image; blockIdx.y is the image.
__global__ void paste_kernel(float* __restrict__ out, const float* __restrict__ patch,
                             const std::uint8_t* __restrict__ mask,
                             const std::int64_t* __restrict__ top_left,
                             const double* __restrict__ transform, PasteSizes sizes,
                             Sampling sampling) {
    const std::int64_t plane = sizes.height * sizes.width;
    const std::int64_t patch_plane = sizes.patch_height * sizes.patch_width;
    for (std::int64_t n = blockIdx.y; n < sizes.images; n += gridDim.y) {
        const Warp warp(make_placement(top_left + 2 * n, transform + 4 * n), sizes.patch_height,
                        sizes.patch_width, sampling);
        const Box box = intersect(warp.footprint(), {0, sizes.height, 0, sizes.width});
        if (box.top >= box.bottom || box.left >= box.right) continue;
        const std::int64_t box_width = box.right - box.left;
        const std::int64_t pixels = (box.bottom - box.top) * box_width;
        const float* source = patch + (sizes.patches > 1 ? n : 0) * sizes.channels * patch_plane;
        for (std::int64_t i = std::int64_t{blockIdx.x} * kThreads + threadIdx.x; i < pixels;
             i += std::int64_t{gridDim.x} * kThreads) {
            const std::int64_t y = box.top + i / box_width, x = box.left + i % box_width;
            if (!warp.covers(y, x, mask)) continue;
            paste_pixel(out + n * sizes.channels * plane, source, mask, warp, y, x, sizes);
        }
    }
}

// One thread a patch pixel gathers from the image pixels that blend it, in the order in which the
// CPU scatters: the same sums to the bit, without atomics.
__global__ void paste_backward_kernel(float* __restrict__ grad_patch,
                                      const float* __restrict__ grad_out,
                                      const float* __restrict__ patch,
                                      const std::uint8_t* __restrict__ mask,
                                      const std::int64_t* __restrict__ top_left,
                                      const double* __restrict__ transform, PasteSizes sizes,
                                      Sampling sampling) {
    const std::int64_t plane = sizes.height * sizes.width;
    const std::int64_t patch_plane = sizes.patch_height * sizes.patch_width;
    const std::int64_t work = sizes.images * sizes.channels * patch_plane;
    for (std::int64_t i = std::int64_t{blockIdx.x} * kThreads + threadIdx.x; i < work;
         i += std::int64_t{gridDim.x} * kThreads) {
        const std::int64_t at = i % patch_plane, c = (i / patch_plane) % sizes.channels;
        const std::int64_t n = i / (patch_plane * sizes.channels);
        const Warp warp(make_placement(top_left + 2 * n, transform + 4 * n), sizes.patch_height,
                        sizes.patch_width, sampling);
        const Box box = intersect(warp.dependents(at / sizes.patch_width, at % sizes.patch_width),
                                  {0, sizes.height, 0, sizes.width});
        const float* source = grad_out + (n * sizes.channels + c) * plane;
        float sum = 0.0F;
        for (std::int64_t y = box.top; y < box.bottom; ++y) {
            for (std::int64_t x = box.left; x < box.right; ++x) {
                if (!warp.covers(y, x, mask)) continue;
                std::int64_t index[Warp::kMaxTaps];
                double weight[Warp::kMaxTaps];
                const int taps = warp.taps(y, x, mask, index, weight);
                for (int k = 0; k < taps; ++k) {
                    if (index[k] == at) {
                        sum += static_cast<float>(weight[k]) * source[y * sizes.width + x];
                    }
                }
            }
        }
        const float* values = patch + (sizes.patches > 1 ? n : 0) * sizes.channels * patch_plane;
        grad_patch[i] =
            unclipped(values[c * patch_plane + at], warp.placement().brightness) ? sum : 0.0F;
    }
}

}  // namespace

void paste_patch_cuda(float* out, const float* images, const float* patch, const std::uint8_t* mask,
                      const std::int64_t* top_left, const double* transform,
                      const PasteSizes& sizes, Sampling sampling, cudaStream_t stream) {
    const std::int64_t values = sizes.images * sizes.channels * sizes.height * sizes.width;
    if (values == 0) return;
    if (out != images) {
        const cudaError_t error =
            cudaMemcpyAsync(out, images, static_cast<std::size_t>(values) * sizeof(float),
                            cudaMemcpyDeviceToDevice, stream);
        if (error != cudaSuccess) {
            throw std::runtime_error(std::string("paste_patch: ") + cudaGetErrorString(error));
        }
    }
    if (sizes.patch_height * sizes.patch_width == 0) return;
    // A grid for the patch's own area; the stride loop takes what zoom and rotation add.
    const std::int64_t area = sizes.patch_height * sizes.patch_width;
    const dim3 grid(blocks_for(area < (1 << 24) ? area : (1 << 24), kThreads),
                    static_cast<unsigned int>(sizes.images < 65535 ? sizes.images : 65535));
    paste_kernel<<<grid, kThreads, 0, stream>>>(out, patch, mask, top_left, transform, sizes,
                                                sampling);
    check_launch("paste_patch");
}

void paste_patch_backward_cuda(float* grad_patch, const float* grad_out, const float* patch,
                               const std::uint8_t* mask, const std::int64_t* top_left,
                               const double* transform, const PasteSizes& sizes, Sampling sampling,
                               cudaStream_t stream) {
    const std::int64_t work =
        sizes.images * sizes.channels * sizes.patch_height * sizes.patch_width;
    if (work == 0) return;
    const std::int64_t most = std::int64_t{1} << 30;
    paste_backward_kernel<<<blocks_for(work < most ? work : most, kThreads), kThreads, 0, stream>>>(
        grad_patch, grad_out, patch, mask, top_left, transform, sizes, sampling);
    check_launch("paste_patch backward");
}

}  // namespace pycc
