// Paste a patch into images under a similarity transform; with the gradient of the patch.
//
// Complexity: O(C taps) per pixel of the warped patch's bounding box, with at most 4 taps (single)
// or 16 (nested), and a copy of the images, O(N C H W), unless out is images.
#pragma once

#include <cmath>
#include <cstdint>

#include "../core/device.h"
#include "../core/nullable.h"

#if defined(PYCC_CUDA)
#include "../core/cuda_api.h"
#endif

namespace pycc::paste_patch {

enum class Sampling : int { single = 0, nested = 1 };

// The placement of the patch in one image.
struct Placement {
    std::int64_t top, left;  // of the untransformed patch; of the zoomed one when nested
    double cosine, sine;     // of the counter-clockwise angle
    double zoom, brightness;
};

PYCC_HD Placement make_placement(const std::int64_t* top_left /* [2] */,
                                 const double* transform /* [4] cosine, sine, zoom, brightness */) {
    return {top_left[0], top_left[1], transform[0], transform[1], transform[2], transform[3]};
}

// A rectangle of pixels: rows [top, bottom), columns [left, right).
struct Box {
    std::int64_t top, bottom, left, right;
};

PYCC_HD Box intersect(const Box& a, const Box& b) {
    return {a.top > b.top ? a.top : b.top, a.bottom < b.bottom ? a.bottom : b.bottom,
            a.left > b.left ? a.left : b.left, a.right < b.right ? a.right : b.right};
}

// Two neighbouring samples of one axis and the weight of the second.
struct Pair {
    std::int64_t low, high;
    double weight;
};

PYCC_HD Pair bilinear_pair(double at, std::int64_t size) {
    const double last = static_cast<double>(size - 1);
    const double clamped = at < 0.0 ? 0.0 : (at > last ? last : at);
    const auto low = static_cast<std::int64_t>(floor(clamped));
    return {low, low + 1 < size ? low + 1 : low, clamped - static_cast<double>(low)};
}

PYCC_HD std::int64_t zoomed_side(std::int64_t side, double zoom) {
    return static_cast<std::int64_t>(rint(static_cast<double>(side) * zoom));  // half to even
}

// Returns the position in the original axis of sample i of a zoomed axis (corners are aligned).
PYCC_HD double zoom_source(std::int64_t i, std::int64_t side, std::int64_t zoomed) {
    if (zoomed <= 1) return 0.0;
    return static_cast<double>(i) * static_cast<double>(side - 1) / static_cast<double>(zoomed - 1);
}

// The geometry of one image: maps a pixel of the image to the patch pixels that it blends.
class Warp {
  public:
    static constexpr int kMaxTaps = 16;

    PYCC_HD Warp(const Placement& placement, std::int64_t height, std::int64_t width,
                 Sampling sampling)
        : place_(placement), height_(height), width_(width), sampling_(sampling) {
        const bool nested = sampling == Sampling::nested;
        side_y_ = nested ? zoomed_side(height, placement.zoom) : height;
        side_x_ = nested ? zoomed_side(width, placement.zoom) : width;
        centre_y_ = 0.5 * static_cast<double>(side_y_ - 1);
        centre_x_ = 0.5 * static_cast<double>(side_x_ - 1);
    }

    // Pixels of the image that the warped patch may cover.
    PYCC_HD Box footprint() const {
        if (sampling_ == Sampling::nested) {
            return {place_.top, place_.top + side_y_, place_.left, place_.left + side_x_};
        }
        const double half_y = 0.5 * static_cast<double>(height_);
        const double half_x = 0.5 * static_cast<double>(width_);
        return around(centre_y_, centre_x_, half_y, half_x, place_.zoom);
    }

    // Pixels of the image whose value may depend on patch pixel (v, u).
    PYCC_HD Box dependents(std::int64_t v, std::int64_t u) const {
        if (sampling_ == Sampling::single) {
            return around(static_cast<double>(v), static_cast<double>(u), 1.0, 1.0, place_.zoom);
        }
        const double step_y = step(height_, side_y_), step_x = step(width_, side_x_);
        return intersect(footprint(),
                         around(static_cast<double>(v) * step_y, static_cast<double>(u) * step_x,
                                step_y + 1.0, step_x + 1.0, 1.0));
    }

    // Writes the patch pixels (flat indices) that pixel (y, x) of the image blends, and their
    // weights; returns their number, or -1 if the pixel lies outside the warped mask.
    PYCC_HD int taps(std::int64_t y, std::int64_t x, const std::uint8_t* mask /* [p,q] or null */,
                     std::int64_t* index /* [16] */, double* weight /* [16] */) const {
        double row, col;
        if (sampling_ == Sampling::single) {
            rotate(y, x, place_.zoom, row, col);
            if (!masked(nearest(row), nearest(col), mask)) return -1;
            return blend(row, col, 1.0, nullptr, index, weight, 0);
        }
        const std::int64_t i = y - place_.top, j = x - place_.left;
        if (i < 0 || i >= side_y_ || j < 0 || j >= side_x_) return -1;
        // The last sample may overshoot by one rounding unit.
        const std::int64_t v = nearest(zoom_source(i, height_, side_y_));
        const std::int64_t u = nearest(zoom_source(j, width_, side_x_));
        if (!masked(v < height_ ? v : height_ - 1, u < width_ ? u : width_ - 1, mask)) return -1;
        rotate(y, x, 1.0, row, col);
        if (row < 0.0 || row > static_cast<double>(side_y_ - 1) || col < 0.0 ||
            col > static_cast<double>(side_x_ - 1)) {
            return 0;  // a sample outside the zoomed patch is exactly 0
        }
        const Pair rows = bilinear_pair(row, side_y_), cols = bilinear_pair(col, side_x_);
        int count = 0;
        for (int corner = 0; corner < 4; ++corner) {
            const bool high_row = corner >= 2, high_col = corner % 2 == 1;
            const double share = (high_row ? rows.weight : 1.0 - rows.weight) *
                                 (high_col ? cols.weight : 1.0 - cols.weight);
            if (share == 0.0) continue;
            const double v = zoom_source(high_row ? rows.high : rows.low, height_, side_y_);
            const double u = zoom_source(high_col ? cols.high : cols.low, width_, side_x_);
            count = blend(v, u, share, mask, index, weight, count);
        }
        return count;
    }

    PYCC_HD const Placement& placement() const { return place_; }

  private:
    PYCC_HD static std::int64_t nearest(double at) {
        return static_cast<std::int64_t>(floor(at + 0.5));
    }

    PYCC_HD bool masked(std::int64_t v, std::int64_t u,
                        const std::uint8_t* mask /* [p,q] or null */) const {
        if (v < 0 || v >= height_ || u < 0 || u >= width_) return false;
        return mask == nullptr || mask[v * width_ + u] != 0;
    }

    // Computes the position in the (zoomed) patch that pixel (y, x) of the image samples.
    PYCC_HD void rotate(std::int64_t y, std::int64_t x, double zoom, double& row,
                        double& col) const {
        const double dy = static_cast<double>(y - place_.top) - centre_y_;
        const double dx = static_cast<double>(x - place_.left) - centre_x_;
        row = centre_y_ + (place_.cosine * dy + place_.sine * dx) / zoom;
        col = centre_x_ + (place_.cosine * dx - place_.sine * dy) / zoom;
    }

    // Appends the four bilinear taps at (row, col) of the patch, with weights times `share`.
    PYCC_HD int blend(double row, double col, double share,
                      const std::uint8_t* mask /* [p,q] or null */,
                      std::int64_t* index /* [kMaxTaps] */, double* weight /* [kMaxTaps] */,
                      int count) const {
        const Pair rows = bilinear_pair(row, height_), cols = bilinear_pair(col, width_);
        for (int corner = 0; corner < 4; ++corner) {
            const bool high_row = corner >= 2, high_col = corner % 2 == 1;
            const double value = share * ((high_row ? rows.weight : 1.0 - rows.weight) *
                                          (high_col ? cols.weight : 1.0 - cols.weight));
            const std::int64_t at =
                (high_row ? rows.high : rows.low) * width_ + (high_col ? cols.high : cols.low);
            if (value == 0.0 || (mask != nullptr && mask[at] == 0)) continue;
            index[count] = at;
            weight[count++] = value;
        }
        return count;
    }

    // Returns a box of all image pixels whose rotated position lies within (half_y, half_x) of
    // (row, col).
    PYCC_HD Box around(double row, double col, double half_y, double half_x, double zoom) const {
        const double c = place_.cosine, s = place_.sine;
        const double dy = row - centre_y_, dx = col - centre_x_;
        const double y = centre_y_ + zoom * (c * dy - s * dx);
        const double x = centre_x_ + zoom * (c * dx + s * dy);
        const double reach_y = zoom * (fabs(c) * half_y + fabs(s) * half_x) + 1.0;
        const double reach_x = zoom * (fabs(c) * half_x + fabs(s) * half_y) + 1.0;
        return {place_.top + static_cast<std::int64_t>(floor(y - reach_y)),
                place_.top + static_cast<std::int64_t>(ceil(y + reach_y)) + 1,
                place_.left + static_cast<std::int64_t>(floor(x - reach_x)),
                place_.left + static_cast<std::int64_t>(ceil(x + reach_x)) + 1};
    }

    PYCC_HD static double step(std::int64_t side, std::int64_t zoomed) {
        if (side <= 1) return static_cast<double>(zoomed);  // one pixel feeds the whole axis
        return static_cast<double>(zoomed) / static_cast<double>(side - 1);
    }

    Placement place_;
    std::int64_t height_, width_;  // of the patch
    Sampling sampling_;
    std::int64_t side_y_, side_x_;  // of the zoomed patch when nested
    double centre_y_, centre_x_;
};

// The brightened patch value before it is clipped to [0,1].
PYCC_HD float shifted(float value, double brightness) {
    return value + static_cast<float>(brightness);
}

PYCC_HD float brightened(float value, double brightness) {  // NaN stays NaN
    const float sum = shifted(value, brightness);
    return sum < 0.0F ? 0.0F : (sum > 1.0F ? 1.0F : sum);
}

// Whether the clip to [0,1] passes the gradient of a patch value.
PYCC_HD bool unclipped(float value, double brightness) {
    const float sum = shifted(value, brightness);
    return sum >= 0.0F && sum <= 1.0F;
}

struct Sizes {
    std::int64_t images, channels, height, width;  // of the images
    std::int64_t patch_height, patch_width;
    std::int64_t patches;  // 1 (one for all) or `images`
};

// Writes pixel (y, x) of all channels of an image, if the warped patch covers it.
PYCC_HD void paste_pixel(float* image /* [C,H,W] */, const float* patch /* [C,p,q] */,
                         const std::uint8_t* mask /* [p,q] or null */, const Warp& warp,
                         std::int64_t y, std::int64_t x, const Sizes& sizes) {
    std::int64_t index[Warp::kMaxTaps];
    double weight[Warp::kMaxTaps];
    const int taps = warp.taps(y, x, mask, index, weight);
    if (taps < 0) return;
    for (std::int64_t c = 0; c < sizes.channels; ++c) {
        const float* values = patch + c * sizes.patch_height * sizes.patch_width;
        double sum = 0.0;
        for (int k = 0; k < taps; ++k) {
            const float value = brightened(values[index[k]], warp.placement().brightness);
            sum += weight[k] * static_cast<double>(value);
        }
        image[(c * sizes.height + y) * sizes.width + x] = static_cast<float>(sum);
    }
}

// Writes images with the warped patch inside the warped mask; out may be images itself.
void cpu(float* out /* [N,C,H,W] */, const float* images /* [N,C,H,W] */,
         const float* patch /* [N or 1,C,p,q] */, Nullable<const std::uint8_t> mask /* [p,q] */,
         const std::int64_t* top_left /* [N,2] (y, x) */,
         const double* transform /* [N,4] cosine, sine, zoom, brightness */, const Sizes& sizes,
         Sampling sampling, int threads);

// Writes the gradient of each image's patch; if the images share one (sizes.patches is 1), the
// first has the sum over all images.
void backward_cpu(float* grad_patch /* [N,C,p,q], overwritten */,
                  const float* grad_out /* [N,C,H,W] */, const float* patch /* [N or 1,C,p,q] */,
                  Nullable<const std::uint8_t> mask /* [p,q] or null */,
                  const std::int64_t* top_left /* [N,2] (y, x) */,
                  const double* transform /* [N,4] (cosine, sine, zoom, brightness) */,
                  const Sizes& sizes, Sampling sampling, int threads);

#if defined(PYCC_CUDA)
void cuda(float* out /* [N,C,H,W] */, const float* images /* [N,C,H,W] */,
          const float* patch /* [N or 1,C,p,q] */,
          Nullable<const std::uint8_t> mask /* [p,q] or null */,
          const std::int64_t* top_left /* [N,2] (y, x) */,
          const double* transform /* [N,4] (cosine, sine, zoom, brightness) */, const Sizes& sizes,
          Sampling sampling, cudaStream_t stream);

void backward_cuda(float* grad_patch /* [N or 1,C,p,q], overwritten */,
                   const float* grad_out /* [N,C,H,W] */, const float* patch /* [N or 1,C,p,q] */,
                   Nullable<const std::uint8_t> mask /* [p,q] or null */,
                   const std::int64_t* top_left /* [N,2] (y, x) */,
                   const double* transform /* [N,4] (cosine, sine, zoom, brightness) */,
                   const Sizes& sizes, Sampling sampling, cudaStream_t stream);
#endif

}  // namespace pycc::paste_patch
