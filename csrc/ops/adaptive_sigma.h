// Geometry-adaptive kernel widths: the mean distance from each head to its nearest other heads.
//
// Complexity: on the CPU a k-d tree, O(count log count) for scattered points; on CUDA all pairs,
// O(count^2).
#pragma once

#include <cmath>
#include <cstdint>

#include "../core/device.h"

#if defined(PYCC_CUDA)
#include "../core/cuda_api.h"
#endif

namespace pycc::adaptive_sigma {

constexpr int kMaxNeighbours = 32;

// The `wanted` smallest squared distances so far, ascending.
class Nearest {
  public:
    PYCC_HD explicit Nearest(int wanted) : wanted_(wanted) { reset(); }
    PYCC_HD void reset() {
        for (int k = 0; k < wanted_; ++k) squared_[k] = HUGE_VAL;
    }
    PYCC_HD double worst() const { return squared_[wanted_ - 1]; }
    PYCC_HD void offer(double squared) {
        for (int k = 0; k < wanted_; ++k) {  // without a branch, which would be unpredictable
            const double kept = squared_[k];
            squared_[k] = squared < kept ? squared : kept;
            squared = squared < kept ? kept : squared;
        }
    }
    PYCC_HD double mean_distance() const {
        double sum = 0.0;
        for (int k = 0; k < wanted_; ++k) sum += sqrt(squared_[k]);
        return sum / wanted_;
    }

  private:
    int wanted_;
    double squared_[kMaxNeighbours];
};

// Writes sigma[i] = beta * mean distance from point i to its `neighbours` nearest others (all
// others if fewer), exactly. 2 <= count, 1 <= neighbours <= kMaxNeighbours.
void cpu(float* sigma /* [count] */, const double* points /* [count,2] */, std::int64_t count,
         int neighbours, double beta, int threads);

#if defined(PYCC_CUDA)
void cuda(float* sigma /* [count] */, const double* points /* [count,2] */, std::int64_t count,
          int neighbours, double beta, cudaStream_t stream);
#endif

}  // namespace pycc::adaptive_sigma
