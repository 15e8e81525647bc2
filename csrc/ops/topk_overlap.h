// The number of cells that are among the k largest of both of two maps.
//
// Complexity per row: O(cells), expected on the CPU (selection without sorting); on CUDA at most
// 8 passes over the row, of 8 bits each.
#pragma once

#include <cstdint>
#include <cstring>

#include "../core/device.h"

#if defined(PYCC_CUDA)
#include "../core/cuda_api.h"
#endif

namespace pycc::topk_overlap {

// Maps floats to unsigned integers of the same order: both zeros are equal, NaN exceeds infinity.
PYCC_HD std::uint32_t order_key(float value) {
    std::uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    const std::uint32_t magnitude = bits & 0x7FFFFFFFU;
    const std::uint32_t negative = 0U - (bits >> 31);  // all bits or none
    const std::uint32_t key = magnitude == 0 ? 0x80000000U : bits ^ (negative | 0x80000000U);
    return magnitude > 0x7F800000U ? 0xFFFFFFFFU : key;
}

// Returns a value with this key.
PYCC_HD float key_value(std::uint32_t key) {
    const std::uint32_t bits = (key >> 31) != 0 ? key & 0x7FFFFFFFU : ~key;
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

// Ranks the cells of a map by value; of equal values, the lower index has the higher rank. No two
// ranks are equal, so that the k largest cells are those that reach the k-th largest rank.
PYCC_HD std::uint64_t cell_rank(float value, std::uint32_t index) {
    return (static_cast<std::uint64_t>(order_key(value)) << 32) | (0xFFFFFFFFU - index);
}

// 0 <= k <= cells < 2^32.
void cpu(std::int64_t* overlap /* [rows] */, const float* a /* [rows,cells] */,
         const float* b /* [rows,cells] */, std::int64_t rows, std::int64_t cells, std::int64_t k,
         int threads);

#if defined(PYCC_CUDA)
void cuda(std::int64_t* overlap /* [rows] */, const float* a /* [rows,cells] */,
          const float* b /* [rows,cells] */, std::int64_t rows, std::int64_t cells, std::int64_t k,
          cudaStream_t stream);
#endif

}  // namespace pycc::topk_overlap
