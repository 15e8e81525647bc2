// The density map of heads of one sigma by a pass along rows and a pass down columns: its time
// hardly grows with the number of heads.
//
// Complexity: O(count * cells of a row that a kernel reaches + map * taps of a column).
#pragma once

#include <cstdint>

#include "density_map.h"

namespace pycc::density_map {

constexpr std::int64_t kRowCost = 32;  // starting a row of a window takes about as long as 32 cells

// Whether all heads have one sigma, and the passes take less time than a window for each head. The
// answer does not depend on threads, nor does the result.
bool pass_is_faster(const double* sigma /* [count] */, std::int64_t count, std::int64_t height,
                    std::int64_t width, std::int64_t stride, double truncate);

// Computes what density_map::cpu computes, but for the rounding of float32 sums: 1e-6 of the
// largest cell, more where many heads share a cell.
void sum_by_pass(float* map /* [height/stride,width/stride], overwritten */,
                 const std::int64_t* pixels /* [count,2] (y, x) */, double sigma,
                 std::int64_t count, std::int64_t height, std::int64_t width, std::int64_t stride,
                 double truncate, Boundary boundary, int threads);

}  // namespace pycc::density_map
