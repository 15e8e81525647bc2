// Shared helpers of CUDA kernels: strided loops, reductions over the threads of a block, launches.
// Blocks have one or two dimensions; in blocks of two, the first dimension is a warp.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string>
#include <type_traits>

#include "cuda_api.h"

// PYCC_SHARED(name, T[n]) declares shared memory of a block, without initial value;
// PYCC_DYNAMIC_SHARED(T, name) that of the size given at the launch.
#if defined(PYCC_CUDA_HOST)
#define PYCC_SHARED(name, ...)       \
    using name##_type = __VA_ARGS__; \
    static char name##_site;         \
    name##_type& name = pycc::host::shared_variable<name##_type>(&name##_site)
#define PYCC_DYNAMIC_SHARED(T, name) \
    T* const name = static_cast<T*>(pycc::host::dynamic_shared_memory())
#else
#define PYCC_SHARED(name, ...)       \
    using name##_type = __VA_ARGS__; \
    __shared__ name##_type name
#define PYCC_DYNAMIC_SHARED(T, name) extern __shared__ T name[]
#endif

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

// The items of [begin, end) of this thread, if the threads of the grid take one item each in turn.
// The functions below do the same for the warps or blocks of the grid, the rows of blocks
// (blockIdx.y), the threads or warps of a block, and the lanes of a warp.
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

// Reduces the values of the lanes of a warp in halves. The first lane gets the result.
template <class T, class Fold>
__device__ T fold_warp(T own, const Fold& fold) {
    for (int half = kWarp / 2; half > 0; half /= 2) own = fold(own, shuffle_down(own, half));
    return own;
}

// Reduces the values of the threads of a block by an associative and commutative `fold`. All
// threads of the block must call it and get the result; it is a barrier for their earlier writes.
template <int kThreads, class T, class Fold>
__device__ T fold_block(T own, const Fold& fold) {
    PYCC_SHARED(warps, T[kThreads / kWarp]);
    own = fold_warp(own, fold);
    __syncthreads();  // the results of an earlier call have been read
    if (lane_of_warp() == 0) warps[warp_of_block()] = own;
    __syncthreads();
    T all = warps[0];
    for (int warp = 1; warp < kThreads / kWarp; ++warp) all = fold(all, warps[warp]);
    return all;
}

// Reduces, for each lane, the values of all warps of a block in halves. All threads of the block
// must call it; the first warp gets the results.
template <int kWarps, class T, class Fold>
__device__ T fold_across_warps(T own, const Fold& fold) {
    PYCC_SHARED(rows, T[kWarps][kWarp]);
    const int warp = warp_of_block(), lane = lane_of_warp();
    __syncthreads();  // the results of an earlier call have been read
    rows[warp][lane] = own;
    for (int half = kWarps / 2; half > 0; half /= 2) {
        __syncthreads();
        if (warp < half) rows[warp][lane] = fold(rows[warp][lane], rows[warp + half][lane]);
    }
    return rows[warp][lane];  // no other thread accesses it now
}

inline void check_cuda(const char* what, cudaError_t error) {
    if (error != cudaSuccess) {
        throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(error));
    }
}

// Starts a kernel. Throws, with this name, if the launch is refused (bad configuration, no code for
// this device). No synchronisation.
template <class... Parameters>
void launch(const char* name, void (*kernel)(Parameters...), dim3 grid, dim3 block,
            std::size_t shared, [[maybe_unused]] cudaStream_t stream,
            std::common_type_t<Parameters>... arguments) {
#if defined(PYCC_CUDA_HOST)
    host::run(name, grid, block, shared, [&] { kernel(arguments...); });
#else
    // clang-format off
    kernel<<<grid, block, shared, stream>>>(arguments...);
    // clang-format on
    check_cuda(name, cudaGetLastError());
#endif
}

// The most blocks along an axis, at most `limit`: fewer in tests of strided loops.
inline std::int64_t most_blocks(std::int64_t limit) {
#if defined(PYCC_CUDA_HOST)
    if (host::emulation.most_blocks > 0) return host::emulation.most_blocks;
#endif
    return limit;
}

inline unsigned int blocks_for(std::int64_t count, std::int64_t per_block) {
    return static_cast<unsigned int>((count + per_block - 1) / per_block);
}

// Number of blocks for a kernel with a strided loop, which handles counts beyond the limit.
inline unsigned int strided_blocks(std::int64_t count, std::int64_t per_block) {
    const std::int64_t most = most_blocks(std::int64_t{1} << 20);
    const std::int64_t blocks = (count + per_block - 1) / per_block;
    return static_cast<unsigned int>(blocks < most ? blocks : most);
}

// The same for several planes, indexed by blockIdx.y.
inline dim3 strided_planes(std::int64_t plane, std::int64_t per_block, std::int64_t planes) {
    const std::int64_t most = most_blocks(65535);  // CUDA's limit along y
    return {strided_blocks(plane, per_block),
            static_cast<unsigned int>(planes < most ? planes : most)};
}

}  // namespace pycc
