// The window of a map with the largest sum, in float64 and always in the same order of additions:
//
//   column sums C[y][x]: rows in blocks of the window's height from row 0 on. A window that is a
//   block takes the block's sum from its last row to its first; any other adds the sum of its
//   rows in the upper block, from the last row up, and that of its rows in the lower block, from
//   the first row down (van Herk, Gil and Werman).
//
//   row sums: S_1 = C, S_2m[x] = S_m[x] + S_m[x + m]. From the lowest bit m of the width to the
//   highest, the sum of the bits so far moves m to the right: A[x] = S_m[x] + A[x + m].
//
// Nothing is subtracted, so a NaN or an infinity reaches its own windows only and nothing drifts.
#pragma once

#include <cstdint>

#include "../core/device.h"

#if defined(PYCC_CUDA)
#include <cuda_runtime.h>
#endif

namespace pycc {

struct SumSizes {
    std::int64_t maps, height, width;
    std::int64_t window_height, window_width;  // 1 to height, 1 to width

    PYCC_HD std::int64_t rows() const { return height - window_height + 1; }  // places of a window
    PYCC_HD std::int64_t cols() const { return width - window_width + 1; }
};

// The best window so far; NaN is the largest, of equal ones the lowest index wins.
struct BestWindow {
    double sum;
    std::int64_t index;  // flat among the places; -1 for none yet

    PYCC_HD void offer(double other, std::int64_t at) {
        const bool nan = sum != sum, other_nan = other != other;
        const bool equal = other == sum || (nan && other_nan);
        const bool larger = (other_nan && !nan) || other > sum;
        if (index < 0 || larger || (equal && at < index)) *this = {other, at};
    }
};

void max_window_sum_cpu(double* sum /* [N] */, std::int64_t* place /* [N,2] (y, x) */,
                        const float* maps /* [N,h,w] */, const SumSizes& sizes, int threads);

#if defined(PYCC_CUDA)
// Up to this width the row sums of a CUDA block are in its shared memory.
constexpr std::int64_t kMaxSharedWidth = 2048;

void max_window_sum_cuda(double* sum /* [N] */, std::int64_t* place /* [N,2] (y, x) */,
                         double* columns /* [N,rows,w], scratch */,
                         double* tails /* [N,rows,w], scratch; null up to kMaxSharedWidth */,
                         BestWindow* row_best /* [N,rows], scratch */,
                         const float* maps /* [N,h,w] */, const SumSizes& sizes,
                         cudaStream_t stream);
#endif

}  // namespace pycc
