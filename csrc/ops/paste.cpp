#include "paste.h"

#include <algorithm>
#include <cstring>

#include "../core/parallel.h"
#include "../core/simd.h"

namespace pycc {
namespace {

Box image_box(const PasteSizes& sizes) {
    return {0, sizes.height, 0, sizes.width};
}

// Calls body(n, warp, y, x) on the pixels that the warped mask covers in images [begin, end).
template <class Body>
void for_covered(std::int64_t begin, std::int64_t end, const std::uint8_t* mask,
                 const std::int64_t* top_left, const double* transform, const PasteSizes& sizes,
                 Sampling sampling, const Body& body) {
    for (std::int64_t n = begin; n < end; ++n) {
        const Warp warp(make_placement(top_left + 2 * n, transform + 4 * n), sizes.patch_height,
                        sizes.patch_width, sampling);
        const Box box = intersect(warp.footprint(), image_box(sizes));
        for (std::int64_t y = box.top; y < box.bottom; ++y) {
            for (std::int64_t x = box.left; x < box.right; ++x) {
                if (warp.covers(y, x, mask)) body(n, warp, y, x);
            }
        }
    }
}

PYCC_SIMD void paste_range(std::int64_t begin, std::int64_t end, float* out, const float* patch,
                           const std::uint8_t* mask, const std::int64_t* top_left,
                           const double* transform, const PasteSizes& sizes,
                           Sampling sampling) noexcept {
    const std::int64_t image_size = sizes.channels * sizes.height * sizes.width;
    const std::int64_t patch_size = sizes.channels * sizes.patch_height * sizes.patch_width;
    for_covered(begin, end, mask, top_left, transform, sizes, sampling,
                [&](std::int64_t n, const Warp& warp, std::int64_t y, std::int64_t x) {
                    const float* source = patch + (sizes.patches > 1 ? n : 0) * patch_size;
                    paste_pixel(out + n * image_size, source, mask, warp, y, x, sizes);
                });
}

PYCC_SIMD void scatter_range(std::int64_t begin, std::int64_t end, float* grad_patch,
                             const float* grad_out, const std::uint8_t* mask,
                             const std::int64_t* top_left, const double* transform,
                             const PasteSizes& sizes, Sampling sampling) noexcept {
    const std::int64_t plane = sizes.height * sizes.width;
    const std::int64_t patch_plane = sizes.patch_height * sizes.patch_width;
    for_covered(begin, end, mask, top_left, transform, sizes, sampling,
                [&](std::int64_t n, const Warp& warp, std::int64_t y, std::int64_t x) {
                    std::int64_t index[Warp::kMaxTaps];
                    double weight[Warp::kMaxTaps];
                    const int taps = warp.taps(y, x, mask, index, weight);
                    const float* source =
                        grad_out + n * sizes.channels * plane + y * sizes.width + x;
                    float* target = grad_patch + n * sizes.channels * patch_plane;
                    for (std::int64_t c = 0; c < sizes.channels; ++c) {
                        for (int k = 0; k < taps; ++k) {
                            target[c * patch_plane + index[k]] +=
                                static_cast<float>(weight[k]) * source[c * plane];
                        }
                    }
                });
}

// Images a thread should have to be worth its start: 0.2 ms at about 20 ns a covered pixel.
std::int64_t image_grain(const PasteSizes& sizes) {
    const std::int64_t area = std::max<std::int64_t>(sizes.patch_height * sizes.patch_width, 1);
    return std::max<std::int64_t>(10'000 / area, 1);
}

}  // namespace

void paste_patch_cpu(float* out, const float* images, const float* patch, const std::uint8_t* mask,
                     const std::int64_t* top_left, const double* transform, const PasteSizes& sizes,
                     Sampling sampling, int threads) {
    if (out != images) {
        constexpr std::int64_t kGrain = 1 << 20;  // floats, about 0.5 ms
        parallel_for(sizes.images * sizes.channels * sizes.height * sizes.width, kGrain, threads,
                     [&](std::int64_t begin, std::int64_t end) {
                         std::memcpy(out + begin, images + begin,
                                     static_cast<std::size_t>(end - begin) * sizeof(float));
                     });
    }
    parallel_for(
        sizes.images, image_grain(sizes), threads, [&](std::int64_t begin, std::int64_t end) {
            paste_range(begin, end, out, patch, mask, top_left, transform, sizes, sampling);
        });
}

void paste_patch_backward_cpu(float* grad_patch, const float* grad_out, const float* patch,
                              const std::uint8_t* mask, const std::int64_t* top_left,
                              const double* transform, const PasteSizes& sizes, Sampling sampling,
                              int threads) {
    const std::int64_t patch_size = sizes.channels * sizes.patch_height * sizes.patch_width;
    parallel_for(
        sizes.images, image_grain(sizes), threads, [&](std::int64_t begin, std::int64_t end) {
            std::fill(grad_patch + begin * patch_size, grad_patch + end * patch_size, 0.0F);
            scatter_range(begin, end, grad_patch, grad_out, mask, top_left, transform, sizes,
                          sampling);
            for (std::int64_t n = begin; n < end; ++n) {
                const float* values = patch + (sizes.patches > 1 ? n : 0) * patch_size;
                float* grad = grad_patch + n * patch_size;
                for (std::int64_t i = 0; i < patch_size; ++i) {
                    if (!unclipped(values[i], transform[4 * n + 3])) grad[i] = 0.0F;
                }
            }
        });
}

}  // namespace pycc
