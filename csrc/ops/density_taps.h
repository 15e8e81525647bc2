// The weights of Gaussians along one axis, shared by both ways to sum a density map on the CPU.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "density_map.h"

namespace pycc::density_map {

// One half of a kernel's taps, reused while consecutive heads have the same sigma.
class Taps {
  public:
    void prepare(double sigma, double truncate) {
        if (sigma == sigma_) return;
        sigma_ = sigma;
        const auto radius = kernel_radius(sigma, truncate);
        taps_.resize(static_cast<std::size_t>(radius + 1));
        for (std::int64_t i = 0; i <= radius; ++i) {
            taps_[static_cast<std::size_t>(i)] = gaussian_tap(i, sigma);
        }
        scale_ = make_axis(0, radius, 1, Boundary::clip, *this).scale;
    }
    double operator()(std::int64_t offset) const { return taps_[static_cast<std::size_t>(offset)]; }
    std::int64_t radius() const { return static_cast<std::int64_t>(taps_.size()) - 1; }

    Axis axis(std::int64_t centre, std::int64_t size, Boundary boundary) const {
        if (boundary == Boundary::renormalize) {
            return make_axis(centre, radius(), size, boundary, *this);
        }
        return {centre, radius(), size, scale_};  // the same for every head of this sigma
    }

  private:
    double sigma_ = -1.0;
    double scale_ = 1.0;
    std::vector<double> taps_;
};

// Computes the weights of the cells [first, last) of an axis.
inline void fill_weights(std::vector<float>& weights, const Cells& cells, std::int64_t stride,
                         const Axis& axis, Boundary boundary, const Taps& taps) {
    weights.resize(static_cast<std::size_t>(cells.last - cells.first));
    float* weight = weights.data();
    if (stride == 1 && boundary != Boundary::reflect) {  // a cell is a pixel, its weight a tap
        const std::int64_t middle = std::clamp(axis.centre, cells.first, cells.last);
        for (std::int64_t i = cells.first; i < middle; ++i) {
            *weight++ = static_cast<float>(taps(axis.centre - i) * axis.scale);
        }
        for (std::int64_t i = middle; i < cells.last; ++i) {
            *weight++ = static_cast<float>(taps(i - axis.centre) * axis.scale);
        }
        return;
    }
    for (std::int64_t cell = cells.first; cell < cells.last; ++cell) {
        *weight++ = cell_weight(cell, stride, axis, boundary, taps);
    }
}

// The heads in the order of the rows of their pixels; those of a row keep their order.
struct ByRow {
    std::vector<std::int64_t> heads;  // [count]
    std::vector<std::int64_t> first;  // [height + 1]: where each row begins in `heads`

    ByRow(const std::int64_t* pixels /* [count,2] (y, x) */, std::int64_t count,
          std::int64_t height)
        : heads(static_cast<std::size_t>(count)), first(static_cast<std::size_t>(height + 1), 0) {
        for (std::int64_t n = 0; n < count; ++n) {
            ++first[static_cast<std::size_t>(pixels[2 * n] + 1)];
        }
        for (std::size_t y = 1; y < first.size(); ++y) first[y] += first[y - 1];
        std::vector<std::int64_t> next = first;
        for (std::int64_t n = 0; n < count; ++n) {
            std::int64_t& place = next[static_cast<std::size_t>(pixels[2 * n])];
            heads[static_cast<std::size_t>(place++)] = n;
        }
    }
};

}  // namespace pycc::density_map
