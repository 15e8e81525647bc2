// The window of a map with the largest sum, in float64 and in the order of core/window_sums.h.
//
// Complexity: O(h w log(window width)) additions per map; on the CPU, bounds skip most of them if
// few windows are near the maximum.
#pragma once

#include <cstdint>

#include "../core/nullable.h"
#include "../core/window_sums.h"

#if defined(PYCC_CUDA)
#include "../core/cuda_api.h"
#endif

namespace pycc::max_window_sum {

using window_sums::BestWindow;
using window_sums::Sizes;

// Up to this width, a CUDA block keeps its row sums in shared memory.
constexpr std::int64_t kMaxSharedWidth = 2048;

void cpu(double* sum /* [N] */, std::int64_t* place /* [N,2] (y, x) */,
         const float* maps /* [N,h,w] */, const Sizes& sizes, int threads);

#if defined(PYCC_CUDA)
void cuda(double* sum /* [N] */, std::int64_t* place /* [N,2] (y, x) */,
          double* columns /* [N,rows,w], scratch */,
          Nullable<double> tails /* [N,rows,w], scratch; null up to kMaxSharedWidth */,
          BestWindow* row_best /* [N,rows], scratch */, const float* maps /* [N,h,w] */,
          const Sizes& sizes, cudaStream_t stream);
#endif

}  // namespace pycc::max_window_sum
