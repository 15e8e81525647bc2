#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <stdexcept>
#include <string>

namespace pycc {

// Reports a refused launch (bad configuration, no image for this device). Does not synchronise.
inline void check_launch(const char* kernel) {
    const cudaError_t error = cudaGetLastError();
    if (error != cudaSuccess) {
        throw std::runtime_error(std::string(kernel) + ": " + cudaGetErrorString(error));
    }
}

inline unsigned int blocks_for(std::int64_t count, std::int64_t per_block) {
    return static_cast<unsigned int>((count + per_block - 1) / per_block);
}

// Blocks for a kernel whose stride loop takes what these leave.
inline unsigned int strided_blocks(std::int64_t count, std::int64_t per_block) {
    constexpr std::int64_t kMost = std::int64_t{1} << 20;
    const std::int64_t blocks = (count + per_block - 1) / per_block;
    return static_cast<unsigned int>(blocks < kMost ? blocks : kMost);
}

}  // namespace pycc
