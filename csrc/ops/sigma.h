// Geometry-adaptive kernel widths: the mean distance from each head to its nearest others.
#pragma once

#include <cstdint>

#if defined(PYCC_CUDA)
#include <cuda_runtime.h>
#endif

namespace pycc {

constexpr int kMaxNeighbours = 32;

// sigma[i] = beta * mean distance from point i to its nearest `neighbours` others (all others if
// fewer). Exact: a k-d tree finds them. 2 <= count, 1 <= neighbours <= kMaxNeighbours.
void adaptive_sigma_cpu(float* sigma /* [count] */, const double* points /* [count,2] */,
                        std::int64_t count, int neighbours, double beta, int threads);

#if defined(PYCC_CUDA)
void adaptive_sigma_cuda(float* sigma /* [count] */, const double* points /* [count,2] */,
                         std::int64_t count, int neighbours, double beta, cudaStream_t stream);
#endif

}  // namespace pycc
