// The largest and the least entry A(W, W') of every window W of a map, over the windows W' near it:
//
//   A(W, W') = S - S_{W and W' united} + g(W) + round((1 - |W and W' shared| / |W'|) g(W')),
//
// in whole units. Windows of equal size begin at every pair of a row and a column. What a network
// guesses for a window depends on how far W' lies along both axes, by spans: `row_span_of[i,k]` is
// the number of the span that windows of row k hide from those of row i, negative if none.
//
// Complexity: O(1) per pair of near windows, of which there are at most (rows columns)^2. On the
// CPU a thread takes rows of windows, on CUDA a block takes one window.
#pragma once

#include <cmath>
#include <cstdint>

#include "../core/device.h"

#if defined(PYCC_CUDA)
#include "../core/cuda_api.h"
#endif

namespace pycc::pair_extremes {

struct Sizes {
    std::int64_t height, width;                // of the map, cells
    std::int64_t rows, columns;                // of windows
    std::int64_t row_spans, column_spans;      // that may be hidden from a window
    std::int64_t window_height, window_width;  // cells
};

constexpr std::int64_t kFar = std::int64_t{1} << 62;  // without a near window: -kFar and kFar

// What two windows share along an axis: [first, end), empty if end <= first.
struct Shared {
    std::int64_t first, end;
};

PYCC_HD Shared shared_cells(std::int64_t a, std::int64_t b, std::int64_t length) {
    return a < b ? Shared{b, a + length} : Shared{a, b + length};
}

// The part of a guess for a window of `area` cells of which another window has `shared`.
PYCC_HD std::int64_t own_part(std::int64_t guess, std::int64_t shared, std::int64_t area) {
    const double share = 1.0 - static_cast<double>(shared) / static_cast<double>(area);
    return static_cast<std::int64_t>(rint(static_cast<double>(guess) * share));
}

PYCC_HD std::int64_t window_sum(const std::int64_t* table /* [height+1,width+1] */,
                                std::int64_t top, std::int64_t left, std::int64_t bottom,
                                std::int64_t right, std::int64_t width) {
    const std::int64_t *above = table + top * (width + 1), *below = table + bottom * (width + 1);
    return (below[right] - below[left]) - (above[right] - above[left]);
}

// Starts lie inside the map, spans are below their numbers, and nearness is symmetric.
void cpu(std::int64_t* most /* [rows,columns] */, std::int64_t* least /* [rows,columns] */,
         const std::int64_t* table /* [height+1,width+1] */,
         const std::int64_t* guesses /* [rows,row_spans,columns,column_spans] */,
         const std::int64_t* row_starts /* [rows] */,
         const std::int64_t* column_starts /* [columns] */,
         const std::int64_t* row_span_of /* [rows,rows] */,
         const std::int64_t* column_span_of /* [columns,columns] */, const Sizes& sizes,
         int threads);

#if defined(PYCC_CUDA)
void cuda(std::int64_t* most /* [rows,columns] */, std::int64_t* least /* [rows,columns] */,
          const std::int64_t* table /* [height+1,width+1] */,
          const std::int64_t* guesses /* [rows,row_spans,columns,column_spans] */,
          const std::int64_t* row_starts /* [rows] */,
          const std::int64_t* column_starts /* [columns] */,
          const std::int64_t* row_span_of /* [rows,rows] */,
          const std::int64_t* column_span_of /* [columns,columns] */, const Sizes& sizes,
          cudaStream_t stream);
#endif

}  // namespace pycc::pair_extremes
