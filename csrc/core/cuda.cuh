// What CUDA kernels share: loops over more items than there are threads, folds over the threads of
// a block, launches. Blocks have one or two dimensions; the first of two is a warp.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string>

namespace pycc {

constexpr int kWarp = 32;
constexpr unsigned int kAllLanes = 0xFFFFFFFFU;

__device__ inline int thread_of_block() {
    return static_cast<int>(threadIdx.y * blockDim.x + threadIdx.x);
}
__device__ inline int threads_per_block() {
    return static_cast<int>(blockDim.x * blockDim.y);
}
__device__ inline int lane_of_warp() {
    return thread_of_block() % kWarp;
}
__device__ inline int warp_of_block() {
    return thread_of_block() / kWarp;
}
__device__ inline int warps_per_block() {
    return threads_per_block() / kWarp;
}

// The items first, first + step, ... below `end`, for range-based loops.
class Strided {
  public:
    struct Iterator {
        std::int64_t at, step;

        __device__ std::int64_t operator*() const { return at; }
        __device__ void operator++() { at += step; }
        __device__ bool operator!=(const Iterator& end) const { return at < end.at; }
    };

    __device__ Strided(std::int64_t first, std::int64_t end, std::int64_t step)
        : first_(first), end_(end), step_(step) {}
    __device__ Iterator begin() const { return {first_, step_}; }
    __device__ Iterator end() const { return {end_, step_}; }

  private:
    std::int64_t first_, end_, step_;
};

// The items of [begin, end) that this thread takes where each thread of the grid takes one at a
// time; likewise below for each warp or block of the grid, each row of blocks (blockIdx.y), each
// thread or warp of a block, each lane of a warp.
__device__ inline Strided threads_of_grid(std::int64_t end, std::int64_t begin = 0) {
    const std::int64_t each = threads_per_block();
    return {begin + blockIdx.x * each + thread_of_block(), end, gridDim.x * each};
}
__device__ inline Strided warps_of_grid(std::int64_t end) {
    const std::int64_t each = warps_per_block();
    return {blockIdx.x * each + warp_of_block(), end, gridDim.x * each};
}
__device__ inline Strided blocks_of_grid(std::int64_t end) {
    return {blockIdx.x, end, gridDim.x};
}
__device__ inline Strided planes_of_grid(std::int64_t end) {
    return {blockIdx.y, end, gridDim.y};
}
__device__ inline Strided threads_of_block(std::int64_t end, std::int64_t begin = 0) {
    return {begin + thread_of_block(), end, threads_per_block()};
}
__device__ inline Strided warps_of_block(std::int64_t end) {
    return {warp_of_block(), end, warps_per_block()};
}
__device__ inline Strided lanes_of_warp(std::int64_t end) {
    return {lane_of_warp(), end, kWarp};
}

struct Sum {
    template <class T>
    __device__ T operator()(const T& a, const T& b) const {
        return a + b;
    }
};

template <class T>
__device__ T shuffle_down(const T& own, int lanes) {
    static_assert(sizeof(T) % sizeof(unsigned int) == 0);
    unsigned int words[sizeof(T) / sizeof(unsigned int)];
    std::memcpy(words, &own, sizeof own);
    for (unsigned int& word : words) word = __shfl_down_sync(kAllLanes, word, lanes);
    T other;
    std::memcpy(&other, words, sizeof other);
    return other;
}

// Folds what the lanes of a warp hold, half onto half. The first lane gets the result.
template <class T, class Fold>
__device__ T fold_warp(T own, const Fold& fold) {
    for (int half = kWarp / 2; half > 0; half /= 2) own = fold(own, shuffle_down(own, half));
    return own;
}

// Folds what the threads of a block hold, by a `fold` whose result depends on no order. All threads
// of the block call it and get the result; it is a barrier for what they wrote before.
template <int kThreads, class T, class Fold>
__device__ T fold_block(T own, const Fold& fold) {
    __shared__ T warps[kThreads / kWarp];
    own = fold_warp(own, fold);
    __syncthreads();  // an earlier call's results have been read
    if (lane_of_warp() == 0) warps[warp_of_block()] = own;
    __syncthreads();
    T all = warps[0];
    for (int warp = 1; warp < kThreads / kWarp; ++warp) all = fold(all, warps[warp]);
    return all;
}

// Folds what the same lane of every warp of a block holds, half of the warps onto half. All threads
// of the block call it, the first warp gets the results.
template <int kWarps, class T, class Fold>
__device__ T fold_across_warps(T own, const Fold& fold) {
    __shared__ T rows[kWarps][kWarp];
    const int warp = warp_of_block(), lane = lane_of_warp();
    __syncthreads();  // an earlier call's results have been read
    rows[warp][lane] = own;
    for (int half = kWarps / 2; half > 0; half /= 2) {
        __syncthreads();
        if (warp < half) rows[warp][lane] = fold(rows[warp][lane], rows[warp + half][lane]);
    }
    return rows[warp][lane];  // which no other thread touches now
}

inline void check_cuda(const char* what, cudaError_t error) {
    if (error != cudaSuccess) {
        throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(error));
    }
}

// Reports a refused launch (bad configuration, no image for this device). Does not synchronise.
inline void check_launch(const char* kernel) {
    check_cuda(kernel, cudaGetLastError());
}

inline unsigned int blocks_for(std::int64_t count, std::int64_t per_block) {
    return static_cast<unsigned int>((count + per_block - 1) / per_block);
}

// Blocks for a kernel whose loop takes what these leave.
inline unsigned int strided_blocks(std::int64_t count, std::int64_t per_block) {
    constexpr std::int64_t kMost = std::int64_t{1} << 20;
    const std::int64_t blocks = (count + per_block - 1) / per_block;
    return static_cast<unsigned int>(blocks < kMost ? blocks : kMost);
}

// The same for each of some planes, in blockIdx.y.
inline dim3 strided_planes(std::int64_t plane, std::int64_t per_block, std::int64_t planes) {
    constexpr std::int64_t kMost = 65535;  // of CUDA, along y
    return {strided_blocks(plane, per_block),
            static_cast<unsigned int>(planes < kMost ? planes : kMost)};
}

}  // namespace pycc
